package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
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
func freeMountpoint(ctx context.Context, dir string, log *slog.Logger) (string, error) {
	if err := clearMountpoint(ctx, dir, log); err != nil {
		return "", err
	}
	real, err := existingDir("MOUNTPOINT", dir)
	if err != nil {
		return "", err
	}
	mounts, err := readMounts()
	if err != nil {
		return "", err
	}
	if m, is := mountAt(mounts, real); is {
		return "", fmt.Errorf("MOUNTPOINT %s is inside the chainfs mount at %s; choose a directory outside", real, m.Point)
	}
	return real, nil
}

// clearMountpoint detaches dead mounts of ours and refuses one that lives. It
// asks for an attribute: what stat answers the kernel may have kept.
func clearMountpoint(ctx context.Context, dir string, log *slog.Logger) error {
	for {
		m, err := findMount(ctx, dir)
		if err != nil {
			return nil // nothing of ours is mounted there
		}
		_, err = inTime(ctx, func() (string, error) { return treeAttr(m.Point) })
		if !errors.Is(err, unix.ENOTCONN) {
			return fmt.Errorf("MOUNTPOINT %s: %s is already mounted there; unmount it first (chainfs umount %s)", m.Point, m.Source, m.Point)
		}
		log.Warn("detaching the mount that a dead daemon left", "mountpoint", m.Point)
		if err := detachDead(m); err != nil {
			return err
		}
	}
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
