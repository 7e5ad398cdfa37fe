package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// existingDir is the real path of a directory.
func existingDir(role, dir string) (string, error) {
	real, err := realDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("%s %s does not exist", role, dir)
	case err != nil:
		return "", fmt.Errorf("%s %w", role, pathError(dir, err))
	case !isDir(real):
		return "", fmt.Errorf("%s %s is not a directory", role, dir)
	}
	return real, nil
}

func realDir(dir string) (string, error) {
	abs, err := absolute(dir)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(abs)
}

// freeMountpoint is the real path of a directory to be mounted on. What a dead
// daemon left there is detached.
func freeMountpoint(dir string, log *slog.Logger) (string, error) {
	if _, err := os.Stat(dir); errors.Is(err, unix.ENOTCONN) {
		if err := detachStale(dir, log); err != nil {
			return "", err
		}
	}
	real, err := existingDir("MOUNTPOINT", dir)
	if err != nil {
		return "", err
	}
	mounts, err := readMounts()
	if err != nil {
		return "", err
	}
	if m, is := mountAt(mounts, real); is && m.Point == real {
		return "", fmt.Errorf("MOUNTPOINT %s: %s is already mounted there; unmount it first (chainfs umount %s)", real, m.Source, real)
	} else if is {
		return "", fmt.Errorf("MOUNTPOINT %s is inside the chainfs mount at %s; choose a directory outside", real, m.Point)
	}
	return real, nil
}

// detachStale removes the mount of a daemon that was killed.
func detachStale(dir string, log *slog.Logger) error {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	log.Warn("detaching the mount that a dead daemon left", "mountpoint", abs)
	if err := detach(abs); err != nil {
		return fmt.Errorf("detach the dead mount at %s: %w", abs, err)
	}
	return nil
}

// apart refuses a mount that would be part of its own tree, or hide it, and a
// tree in another chainfs mount.
func apart(source, mountpoint string) error {
	switch {
	case within(mountpoint, source):
		return fmt.Errorf("MOUNTPOINT %s is inside SOURCE %s; choose a directory outside of the tree", mountpoint, source)
	case within(source, mountpoint):
		return fmt.Errorf("MOUNTPOINT %s would hide SOURCE %s, which is inside; choose another directory", mountpoint, source)
	}
	mounts, err := readMounts()
	if err != nil {
		return err
	}
	if m, is := mountAt(mounts, source); is {
		return fmt.Errorf("SOURCE %s is inside the chainfs mount at %s; name the directory that is mounted there", source, m.Point)
	}
	return nil
}
