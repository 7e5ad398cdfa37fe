package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/chainfs/chainfs/cmd/chainfs/control"
	"github.com/chainfs/chainfs/fs"
	"github.com/chainfs/chainfs/store"
)

// daemonConfig says what is mounted where. Paths are absolute and without
// symbolic links.
type daemonConfig struct {
	mountOptions
	Source     string
	Mountpoint string
	Log        *slog.Logger
	OnStore    func(dir string) error // when the store's directory is there; empty for none
}

// daemon is a mount with all that it stands on. A process can have several.
type daemon struct {
	config    daemonConfig
	session   *session
	listener  *control.Listener
	http      *http.Server
	server    *fs.Server
	unmounted chan struct{}
}

// openDaemon opens the tree, its store, the chains and the control socket, and
// mounts it; it returns when the mount answers. ctx ends the opening only.
func openDaemon(ctx context.Context, cfg daemonConfig) (*daemon, error) {
	d := &daemon{config: cfg, unmounted: make(chan struct{})}
	if err := d.open(ctx); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	cfg.Log.Info("mounted", "source", cfg.Source, "mountpoint", cfg.Mountpoint, "tree", d.session.source.ID(), "read-only", cfg.ReadOnly)
	return d, nil
}

func (d *daemon) open(ctx context.Context) (err error) {
	cfg := d.config
	opts := sessionOptions{
		Source: cfg.Source, Mountpoint: cfg.Mountpoint, Store: cfg.Store,
		ReadOnly: cfg.ReadOnly, Log: cfg.Log, OpenStore: d.openStore,
		Verify: cfg.Verify, LimitRate: cfg.LimitRate,
	}
	if !cfg.ReadOnly {
		opts.Deferral = &cfg.Deferral
	}
	if d.session, err = openSession(opts); err != nil {
		return err
	}
	if !cfg.ReadOnly {
		if err := d.session.store.SetMountpoint(cfg.Mountpoint); err != nil {
			return err
		}
	}
	d.session.daemon = true
	if err := d.session.openChains(ctx); err != nil {
		return err
	}
	d.session.probe()
	if err := d.listen(); err != nil {
		return err
	}
	if err := d.mount(); err != nil {
		return err
	}
	if !cfg.ReadOnly {
		d.session.startReclaimer()
	}
	return nil
}

// openStore keeps a read-only mount from writing anything anywhere.
func (d *daemon) openStore(dir, treeID string, log *slog.Logger) (*store.Store, error) {
	open := createStore
	if d.config.ReadOnly {
		dir, open = "", forgetfulStore
	} else if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the store: %w", err)
	}
	if d.config.OnStore != nil {
		if err := d.config.OnStore(dir); err != nil {
			return nil, err
		}
	}
	return open(dir, treeID, log)
}

// listen answers on the control socket.
func (d *daemon) listen() (err error) {
	readOnlyAt := ""
	if d.config.ReadOnly {
		readOnlyAt = d.config.Mountpoint
	}
	id := d.session.source.ID()
	path := filepath.Join(control.Dir(os.Geteuid()), control.Name(id, readOnlyAt))
	if d.listener, err = control.Listen(path); err != nil {
		return err
	}
	d.http = &http.Server{
		Handler: control.Handler(d.session, control.Status{
			PID: os.Getpid(), Version: version(), Tree: id, Source: d.config.Source,
			Mountpoint: d.config.Mountpoint, ReadOnly: d.config.ReadOnly, Since: time.Now(),
		}),
		// A session that ends cancels its requests.
		BaseContext:       func(net.Listener) context.Context { return d.session.life },
		ReadHeaderTimeout: time.Minute,
		ErrorLog:          slog.NewLogLogger(d.config.Log.Handler(), slog.LevelWarn),
	}
	go d.http.Serve(d.listener) // it returns when Close closes the listener
	return nil
}

func (d *daemon) mount() (err error) {
	cfg := d.config
	d.server, err = fs.Mount(fs.Options{
		Source: d.session.source, Tree: d.session.tree, Mountpoint: cfg.Mountpoint,
		TreeID: d.session.source.ID(), FsName: cfg.Source,
		ReadOnly: cfg.ReadOnly, AllowOther: cfg.AllowOther, Debug: cfg.Debug,
		MountOptions: cfg.Kernel, Log: cfg.Log, Status: d.session.statusText,
	})
	if err != nil {
		return err
	}
	go func() {
		d.server.Wait()
		close(d.unmounted)
	}()
	return nil
}

// Unmounted is closed when the mount is gone, whoever unmounted it.
func (d *daemon) Unmounted() <-chan struct{} { return d.unmounted }

// How long the ends of running work are waited for.
const (
	undoTime    = 30 * time.Second
	unmountTime = 2 * time.Second
	abortTime   = 5 * time.Second
)

// Stop ends running operations, which are undone, unmounts, by force where the
// mount is in use, and closes all.
func (d *daemon) Stop() error {
	d.session.stop()
	d.awaitOperations()
	err := d.unmount()
	return errors.Join(err, d.Close())
}

func (d *daemon) awaitOperations() {
	for end := time.Now().Add(undoTime); len(d.session.tree.Running()) > 0 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
}

// unmount tries for a while, then detaches the mount from the tree of
// directories and cuts off those that still have files open in it.
func (d *daemon) unmount() error {
	var err error
	for end := time.Now().Add(unmountTime); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if err = d.server.Unmount(); err == nil || d.isUnmounted(0) {
			return nil
		}
	}
	d.config.Log.Warn("the mount is in use; detaching it", "err", err)
	abort := abortFile(d.config.Mountpoint)
	if err := detach(d.config.Mountpoint); err != nil {
		return fmt.Errorf("detach %s: %w", d.config.Mountpoint, err)
	}
	if d.isUnmounted(time.Second) {
		return nil
	}
	if err := os.WriteFile(abort, []byte("1\n"), 0); err != nil {
		// The end of this process does it, a moment later.
		d.config.Log.Warn("the mount's users could not be cut off", "err", err)
		return nil
	}
	if !d.isUnmounted(abortTime) {
		d.config.Log.Warn("the kernel still has requests; ending anyway")
	}
	return nil
}

func (d *daemon) isUnmounted(wait time.Duration) bool {
	select {
	case <-d.unmounted:
		return true
	case <-time.After(wait):
		return false
	}
}

// Close gives up the tree, once nothing is mounted. The lock of the control
// socket goes last: who waits for it finds the tree free.
func (d *daemon) Close() error {
	if d.session == nil {
		return nil
	}
	d.session.stop()
	var errs []error
	if d.http != nil {
		ctx, cancel := context.WithTimeout(context.Background(), undoTime)
		defer cancel()
		errs = append(errs, d.http.Shutdown(ctx))
	}
	errs = append(errs, d.session.Close())
	if d.listener != nil {
		errs = append(errs, d.listener.Release())
	}
	return errors.Join(errs...)
}
