package qemu

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// qemu's image locks are single bytes of the image file, locked by open file
// description (block/file-posix.c: RAW_LOCK_PERM_BASE, RAW_LOCK_SHARED_BASE,
// raw_apply_lock_bytes, raw_check_lock_bytes). Byte 100+n is locked by who has
// permission n, byte 200+n by who does not share it. All these locks are read
// locks, so that a descriptor open for reading will do; a conflict is found by
// asking whether a write lock on the opposite byte would be granted.
const (
	heldBase     = 100
	unsharedBase = 200
	permissions  = 4

	permRead   = 0 // consistent read
	permWrite  = 1
	permResize = 3 // 2 is write-unchanged, which needs no lock of ours
)

// ErrLocked: a qemu process uses the image in a way that excludes what was asked.
var ErrLocked = errors.New("a qemu process is using it")

// LockImage locks an image, as a qemu that reads it and lets nobody write: from
// then on qemu can open it for reading only. The locks last until f is closed.
// When somebody has it open for writing they are not taken, and the error is
// ErrLocked.
func LockImage(f *os.File) error {
	// As in qemu: first announce, then look, so that of two who come at the same
	// time at least one sees the other.
	for _, b := range []int64{heldBase + permRead, unsharedBase + permWrite, unsharedBase + permResize} {
		if err := setLock(f, unix.F_RDLCK, b); err != nil {
			return errors.Join(fmt.Errorf("lock byte %d: %w", b, err), unlockImage(f))
		}
	}
	for _, b := range []int64{unsharedBase + permRead, heldBase + permWrite, heldBase + permResize} {
		if held, err := isLocked(f, b, 1); err != nil || held {
			if err == nil {
				err = ErrLocked
			}
			return errors.Join(err, unlockImage(f))
		}
	}
	return nil
}

func unlockImage(f *os.File) error {
	for _, base := range []int64{heldBase, unsharedBase} {
		for n := range int64(permissions) {
			if err := setLock(f, unix.F_UNLCK, base+n); err != nil {
				return fmt.Errorf("unlock byte %d: %w", base+n, err)
			}
		}
	}
	return nil
}

func setLock(f *os.File, typ int16, b int64) error {
	l := unix.Flock_t{Type: typ, Whence: unix.SEEK_SET, Start: b, Len: 1}
	return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &l)
}

// isLocked reports whether anybody but f itself has a lock on n bytes at start.
func isLocked(f *os.File, start, n int64) (bool, error) {
	l, err := findLock(f, start, n)
	return l != nil, err
}

func findLock(f *os.File, start, n int64) (*unix.Flock_t, error) {
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: unix.SEEK_SET, Start: start, Len: n}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l); err != nil {
		return nil, fmt.Errorf("look for locks on byte %d: %w", start, err)
	}
	if l.Type == unix.F_UNLCK {
		return nil, nil
	}
	return &l, nil
}
