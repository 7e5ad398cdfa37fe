package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

func mountCommand() *cli.Command {
	return &cli.Command{
		Name:      "mount",
		Usage:     "mount the tree SOURCE so that rm in it is safe",
		ArgsUsage: "SOURCE MOUNTPOINT",
		Description: "Returns when the mount answers; a daemon serves it until it is unmounted.\n" +
			"-o takes a comma list of options of mount(8), as far as they mean something:\n" +
			"ro, rw, allow_other (the default for root), noallow_other, nodev, nosuid, noexec,\n" +
			"sync, dirsync, debug; and every long option as key=value.",
		Flags: append(slices.Concat(copyFlags(), deferralFlags()),
			&cli.StringSliceFlag{Name: "o", Usage: "mount `OPTIONS`, separated by commas"},
			&cli.BoolFlag{Name: "foreground", Usage: "do not become a daemon; log to stderr"},
			&cli.StringFlag{Name: "store", EnvVars: []string{"CHAINFS_STORE"}, Usage: "keep the tree's store in `DIR`, on a local disk (default: /var/lib/chainfs/TREE-ID)"},
			&cli.StringFlag{Name: "log-file", Usage: "log to `FILE` (default: chainfs.log in the store)"},
			&cli.StringFlag{Name: "log-level", Usage: "debug, info, warn or error (default: info)"},
		),
		Action: runMount,
	}
}

func runMount(c *cli.Context) error {
	if err := arguments(c, 2, 2); err != nil {
		return err
	}
	opts, err := mountOptionsOf(c, os.Geteuid() == 0)
	if err != nil {
		return err
	}
	ready, child := readiness()
	if !opts.Foreground && !child {
		return daemonise(c.Context)
	}
	return ready.tell(serve(c.Context, c.Args().Get(0), c.Args().Get(1), opts, ready))
}

// serve mounts and returns when the mount is gone.
func serve(ctx context.Context, sourceDir, mountpoint string, opts mountOptions, ready *readyPipe) error {
	signal.Ignore(unix.SIGHUP) // there is nothing to read again, and no terminal to lose
	log := &logTarget{w: os.Stderr}
	if ready.daemon {
		log.w = &bytes.Buffer{}
	}
	logger, err := log.logger(opts.LogLevel)
	if err != nil {
		return err
	}
	config, err := mountConfigOf(ctx, sourceDir, mountpoint, opts, logger)
	if err != nil {
		return err
	}
	if ready.daemon || opts.LogFile != "" {
		config.OnStore = func(dir string) error { return log.open(opts.LogFile, dir) }
	}
	d, err := openDaemon(ctx, config)
	if err != nil {
		return err
	}
	if ready.daemon {
		// Our working directory must not keep a file system from being unmounted.
		if err := os.Chdir("/"); err != nil {
			return errors.Join(err, d.Stop())
		}
	}
	ready.tell(nil)
	beThrifty()
	select {
	case <-d.Unmounted():
		logger.Info("unmounted")
		return d.Close()
	case <-ctx.Done():
		logger.Info("told to end")
		return d.Stop()
	}
}

// mountConfigOf makes paths absolute and looks whether they can be what they
// are to be.
func mountConfigOf(ctx context.Context, sourceDir, mountpoint string, opts mountOptions, log *slog.Logger) (daemonConfig, error) {
	cfg := daemonConfig{mountOptions: opts, Log: log}
	var err error
	if cfg.Source, err = existingDir("SOURCE", sourceDir); err != nil {
		return cfg, err
	}
	if cfg.Mountpoint, err = freeMountpoint(ctx, mountpoint, log); err != nil {
		return cfg, err
	}
	if opts.Store != "" {
		if cfg.Store, err = filepath.Abs(opts.Store); err != nil {
			return cfg, err
		}
	}
	return cfg, apart(cfg.Source, cfg.Mountpoint)
}

// logTarget is where the log goes. A daemon's first lines wait for its file.
type logTarget struct{ w io.Writer }

func (l *logTarget) Write(b []byte) (int, error) { return l.w.Write(b) }

func (l *logTarget) logger(level string) (*slog.Logger, error) {
	var min slog.Level
	if err := min.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("log level %q is unknown; it is one of debug, info, warn, error", level)
	}
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: min})), nil
}

// open turns to a file: the one named, or chainfs.log in the store. A read-only
// mount has no store; unless a file is named nobody reads what its daemon logs.
// Nobody writes to l meanwhile.
func (l *logTarget) open(name, store string) error {
	switch {
	case name == "" && store == "":
		l.w = io.Discard
		return nil
	case name == "":
		name = filepath.Join(store, "chainfs.log")
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	// What the Go runtime says when it dies goes to descriptor 2.
	if err := unix.Dup3(int(f.Fd()), 2, 0); err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	if early, ok := l.w.(*bytes.Buffer); ok {
		if _, err := early.WriteTo(f); err != nil {
			return fmt.Errorf("write the log: %w", err)
		}
	}
	l.w = f
	return nil
}

// beThrifty gives back what the first scan used. A daemon that mostly waits may
// collect more often for a smaller heap: with the default of 100 an index of
// 100,000 images would cost twice its size.
func beThrifty() {
	debug.SetGCPercent(25)
	debug.FreeOSMemory()
}
