package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
	"unsafe"

	"github.com/chainfs/chainfs/chain"
	"golang.org/x/sys/unix"
)

// copyAttributes gives the scratch all that the child has beside its content.
func (w *rebase) copyAttributes(context.Context) error {
	w.opts.Step("REBASE:VERIFIED")
	st, err := stat(w.child)
	if err != nil {
		return err
	}
	fd := int(w.scratch.Fd())
	// The owner first: changing it clears set-uid bits and capabilities.
	if err := unix.Fchown(fd, int(st.Uid), int(st.Gid)); err != nil {
		return fmt.Errorf("set the owner of %s: %w", w.job.Scratch, err)
	}
	if err := copyXattrs(w.scratch, w.child); err != nil {
		return fmt.Errorf("copy extended attributes of %s: %w", w.job.Child, err)
	}
	if err := unix.Fchmod(fd, st.Mode&0o7777); err != nil {
		return fmt.Errorf("set the mode of %s: %w", w.job.Scratch, err)
	}
	return w.setTimes(w.job.Scratch, w.scratch)
}

// mtimeStep is by how much a rebase moves an image's modification time.
//
// The file did change, and what keeps replicas of the tree (rsync compares size
// and time, in seconds) must see that: a replica with the old header would name a
// parent that is gone. But the backup is as old as it was, and retention by age
// ("find -mtime") must not take it for a new one.
const mtimeStep = 2 * time.Second

// setTimes gives f, whose name is p, the time of the child's last access and one
// a step after its last modification.
func (w *rebase) setTimes(p chain.Path, f *os.File) error {
	next := time.Unix(w.modified.Unix()).Add(mtimeStep)
	if now := time.Now(); next.After(now) {
		next = now
	}
	mtime, err := unix.TimeToTimespec(next)
	if err == nil {
		err = futimens(f, w.atime, mtime)
	}
	if err != nil {
		return fmt.Errorf("set the times of %s: %w", p, err)
	}
	return nil
}

// futimens is futimens(3). By name another file could be met, which somebody put
// in the place of ours.
func futimens(f *os.File, atime, mtime unix.Timespec) error {
	times := [2]unix.Timespec{atime, mtime}
	_, _, e := unix.Syscall6(unix.SYS_UTIMENSAT, f.Fd(), 0, uintptr(unsafe.Pointer(&times)), 0, 0, 0)
	if e != 0 {
		return e
	}
	return nil
}

// copyXattrs makes the attributes of to those of from, access lists included.
// Those that to has and from has not came from the directory's default list.
func copyXattrs(to, from *os.File) error {
	want, err := xattrNames(from)
	if err != nil {
		return err
	}
	have, err := xattrNames(to)
	if err != nil {
		return err
	}
	for _, attr := range have {
		if slices.Contains(want, attr) {
			continue
		}
		// A security label that the system gives to every file cannot be removed.
		if err := unix.Fremovexattr(int(to.Fd()), attr); err != nil && !strings.HasPrefix(attr, "security.") {
			return fmt.Errorf("remove %s: %w", attr, err)
		}
	}
	for _, attr := range want {
		value, err := xattr(from, attr)
		if err != nil {
			return fmt.Errorf("read %s: %w", attr, err)
		}
		if old, err := xattr(to, attr); err == nil && bytes.Equal(old, value) {
			continue
		}
		if err := unix.Fsetxattr(int(to.Fd()), attr, value, 0); err != nil {
			return fmt.Errorf("set %s: %w", attr, err)
		}
	}
	return nil
}

// xattrNames is empty on a file system without extended attributes.
func xattrNames(f *os.File) ([]string, error) {
	b, err := growing(func(b []byte) (int, error) { return unix.Flistxattr(int(f.Fd()), b) })
	if errors.Is(err, unix.EOPNOTSUPP) || err == nil && len(b) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list attributes: %w", err)
	}
	return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00"), nil
}

func xattr(f *os.File, attr string) ([]byte, error) {
	return growing(func(b []byte) (int, error) { return unix.Fgetxattr(int(f.Fd()), attr, b) })
}

// growing calls read with a buffer that holds the 64 KiB the kernel allows.
func growing(read func([]byte) (int, error)) ([]byte, error) {
	b := make([]byte, 64<<10)
	n, err := read(b)
	if err != nil {
		return nil, err
	}
	return b[:n], nil
}
