package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
)

// unmount is umount(2), by way of fusermount3 for users who may not.
func unmount(mountpoint string, flags int) error {
	err := unix.Unmount(mountpoint, flags|unix.UMOUNT_NOFOLLOW)
	if err != unix.EPERM {
		return err
	}
	args := []string{"-u"}
	if flags&unix.MNT_DETACH != 0 {
		args = append(args, "-z")
	}
	out, err := exec.Command("fusermount3", append(args, "--", mountpoint)...).CombinedOutput()
	switch {
	case err == nil:
		return nil
	case strings.Contains(string(out), "busy"):
		return unix.EBUSY
	}
	return fmt.Errorf("fusermount3: %w: %s", err, strings.TrimSpace(string(out)))
}

// detach takes the mount out of the tree of directories, whoever uses it.
func detach(mountpoint string) error { return unmount(mountpoint, unix.MNT_DETACH) }

// abortFile is the file that ends the FUSE connection of a mount when it is
// written to.
func abortFile(mountpoint string) string {
	mounts, err := readMounts()
	if err != nil {
		return ""
	}
	for _, m := range mounts {
		if _, minor, ok := strings.Cut(m.Device, ":"); ok && m.Point == mountpoint && m.Type == fuseType {
			return filepath.Join("/sys/fs/fuse/connections", minor, "abort")
		}
	}
	return ""
}

// usersOf names processes with a file or their working directory in a mount.
// It reads links only, and looks at no file: the mount may hang.
func usersOf(mountpoint string) []string {
	var users []string
	procs, _ := filepath.Glob("/proc/[0-9]*") // fails on a bad pattern only
	for _, proc := range procs {
		if usesMount(proc, mountpoint) {
			comm, _ := os.ReadFile(proc + "/comm") // it may have ended
			users = append(users, fmt.Sprintf("%s (process %s)", chain.Printable(strings.TrimSpace(string(comm))), filepath.Base(proc)))
		}
	}
	return users
}

func usesMount(proc, mountpoint string) bool {
	links := []string{proc + "/cwd", proc + "/root"}
	fds, _ := os.ReadDir(proc + "/fd") // it may have ended, or be another user's
	for _, fd := range fds {
		links = append(links, proc+"/fd/"+fd.Name())
	}
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && within(to, mountpoint) {
			return true
		}
	}
	return false
}

// busy says who keeps a mount from being unmounted.
func busy(mountpoint string, err error) error {
	if !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("unmount %s: %w", mountpoint, err)
	}
	users := usersOf(mountpoint)
	if len(users) == 0 {
		return fmt.Errorf("%s is in use; end what uses it and try again (fuser -vm %s shows it)", mountpoint, mountpoint)
	}
	return fmt.Errorf("%s is in use by %s; end that and try again", mountpoint, strings.Join(users, ", "))
}
