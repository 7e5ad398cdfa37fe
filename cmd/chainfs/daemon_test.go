package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/cmd/chainfs/control"
	"github.com/chainfs/chainfs/fs/source"
)

// mounted mounts a new tree in this process.
func mounted(t *testing.T, change func(*daemonConfig)) *daemon {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	cfg := daemonConfig{
		mountOptions: mountOptions{Store: t.TempDir(), Deferral: defaultDeferral},
		Source:       t.TempDir(), Mountpoint: t.TempDir(),
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	if change != nil {
		change(&cfg)
	}
	d, err := openDaemon(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { detach(cfg.Mountpoint) }) // fails when the test has unmounted it
	return d
}

// TestTwoMounts: a process can hold two, and each command finds its own.
func TestTwoMounts(t *testing.T) {
	a, b := mounted(t, nil), mounted(t, nil)
	for _, d := range []*daemon{a, b} {
		for _, path := range []string{d.config.Mountpoint, d.config.Source} {
			at, err := locate(context.Background(), path)
			if err != nil || at.tree != d.session.source.ID() {
				t.Fatalf("locate %s: %+v, %v", path, at, err)
			}
			c, err := control.Dial(context.Background(), at.sockets[0])
			if err != nil || c.Status().Source != d.config.Source {
				t.Fatalf("dial %s: %v", at.sockets[0], err)
			}
			c.Close()
		}
	}
	for _, d := range []*daemon{a, b} {
		if err := d.Stop(); err != nil {
			t.Error(err)
		}
	}
}

func TestSecondWriter(t *testing.T) {
	d := mounted(t, nil)
	defer d.Stop()
	cfg := d.config
	cfg.Store, cfg.Mountpoint = t.TempDir(), t.TempDir()
	_, err := openDaemon(context.Background(), cfg)
	var owned *source.OwnedError
	host, _ := os.Hostname()
	if !errors.As(err, &owned) || !strings.Contains(err.Error(), host) {
		t.Fatalf("second writer: %v", err)
	}
	cfg.ReadOnly = true
	ro, err := openDaemon(context.Background(), cfg)
	if err != nil {
		t.Fatalf("read-only beside a writer: %v", err)
	}
	if err := ro.Stop(); err != nil {
		t.Error(err)
	}
}

// TestStopWhileInUse: the mount goes although a file is open in it.
func TestStopWhileInUse(t *testing.T) {
	d := mounted(t, nil)
	if _, err := os.Stat(abortFile(d.config.Mountpoint)); err != nil {
		defer d.Stop()
		t.Skip("users of a mount can be cut off only where fusectl is mounted; the end of the process does it elsewhere")
	}
	f, err := os.Create(filepath.Join(d.config.Mountpoint, "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() // the mount is gone by then
	if err := d.Stop(); err != nil {
		t.Error(err)
	}
	if _, err := f.Write([]byte("x")); err == nil {
		t.Error("a write to the open file went on")
	}
}

// chainfs runs this test binary as the command.
func chainfs(t *testing.T, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath("chainfs") // testscript.Main put it into PATH
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.WaitDelay = time.Second // a daemon that kept our pipes open would make this fail
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestDaemon: mount returns when the mount answers, and umount when the tree is
// free; in between a kill leaves a mount that the next one replaces.
func TestDaemon(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	src, mnt, store := t.TempDir(), t.TempDir(), t.TempDir()
	t.Cleanup(func() { detach(mnt) }) // fails when all went well
	mount := []string{"mount", "-o", "store=" + store, src, mnt}
	must := func(args ...string) {
		t.Helper()
		if out, err := chainfs(t, args...); err != nil || out != "" {
			t.Fatalf("chainfs %v: %v: %s", args, err, out)
		}
	}
	for range 3 {
		must(mount...)
		if err := os.WriteFile(filepath.Join(mnt, "file"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		must("umount", mnt)
	}
	must(mount...)
	if out, err := chainfs(t, mount...); err == nil || !strings.Contains(out, "already mounted") {
		t.Errorf("second mount: %v: %s", err, out)
	}
	killDaemon(t, mnt)
	if out, err := chainfs(t, "tree", mnt); err == nil || !strings.Contains(out, "dead") {
		t.Errorf("tree of a dead mount: %v: %s", err, out)
	}
	must(mount...)
	must("umount", mnt)
}

func killDaemon(t *testing.T, mnt string) {
	t.Helper()
	at, err := locate(context.Background(), mnt)
	if err != nil {
		t.Fatal(err)
	}
	c, err := control.Dial(context.Background(), at.sockets[0])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := unix.Kill(c.Status().PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := control.WaitReleased(at.sockets[0], time.Minute); err != nil {
		t.Fatal(err)
	}
}
