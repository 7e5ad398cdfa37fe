package source

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
)

// MkdirLike makes the directory p with the owner, mode, extended attributes,
// access lists among them, and times of the directory like, and makes it durable.
// After an error it is not there, unless it was before. What is put into it moves
// its times, as in any directory.
func (t *Tree) MkdirLike(p, like chain.Path) error {
	dir, name, release, err := t.At(p)
	if err != nil {
		return pathError("mkdir", p, err)
	}
	defer release()
	model, err := t.OpenPath(like, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return pathError("open directory", like, err)
	}
	defer unix.Close(model) // it was only read
	// For our eyes only until it has its owner and mode.
	if err := retry(func() error { return unix.Mkdirat(dir, name, 0o700) }); err != nil {
		return pathError("mkdir", p, err)
	}
	err = makeLike(dir, name, model)
	if err == nil {
		err = t.SyncDir(p.Dir())
	}
	if err != nil {
		gone := retry(func() error { return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR) })
		return pathError("mkdir", p, errors.Join(err, gone))
	}
	return nil
}

// makeLike gives the new directory all that the model has beside its content.
func makeLike(dir int, name string, model int) error {
	fd, err := OpenBeneath(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd) // it was synced
	var st unix.Stat_t
	if err := retry(func() error { return unix.Fstat(model, &st) }); err != nil {
		return err
	}
	// The owner first: changing it clears bits of the mode. The times last.
	if err := ownLike(fd, &st); err != nil {
		return fmt.Errorf("set its owner: %w", err)
	}
	if err := copyXattrs(fd, model); err != nil {
		return fmt.Errorf("copy extended attributes: %w", err)
	}
	if err := retry(func() error { return unix.Fchmod(fd, st.Mode&0o7777) }); err != nil {
		return fmt.Errorf("set its mode: %w", err)
	}
	if err := futimens(fd, st.Atim, st.Mtim); err != nil {
		return fmt.Errorf("set its times: %w", err)
	}
	return retry(func() error { return unix.Fsync(fd) })
}

// ownLike changes only what differs: who may not give files away may keep them.
func ownLike(fd int, want *unix.Stat_t) error {
	var has unix.Stat_t
	if err := retry(func() error { return unix.Fstat(fd, &has) }); err != nil {
		return err
	}
	if has.Uid == want.Uid && has.Gid == want.Gid {
		return nil
	}
	return retry(func() error { return unix.Fchown(fd, int(want.Uid), int(want.Gid)) })
}

// futimens is futimens(3), by descriptor.
func futimens(fd int, atime, mtime unix.Timespec) error {
	times := [2]unix.Timespec{atime, mtime}
	return retry(func() error {
		_, _, e := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&times)), 0, 0, 0)
		if e != 0 {
			return e
		}
		return nil
	})
}

// copyXattrs makes the attributes of one directory those of another, access lists
// included; those that only the new one has came from its parent's default list.
// An attribute that we may not set is left out: those are labels and marks of the
// system, which gives them to new files itself. Access lists are never among them,
// once the owner is right.
func copyXattrs(to, from int) error {
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
		if err := unix.Fremovexattr(to, attr); err != nil && !ofSystem(attr) {
			return fmt.Errorf("remove %s: %w", attr, err)
		}
	}
	for _, attr := range want {
		value, err := xattr(from, attr)
		if err != nil && !ofSystem(attr) {
			return fmt.Errorf("read %s: %w", attr, err)
		}
		if old, oldErr := xattr(to, attr); err != nil || oldErr == nil && bytes.Equal(old, value) {
			continue
		}
		if err := unix.Fsetxattr(to, attr, value, 0); err != nil && !ofSystem(attr) {
			return fmt.Errorf("set %s: %w", attr, err)
		}
	}
	return nil
}

func ofSystem(attr string) bool {
	return strings.HasPrefix(attr, "security.") || strings.HasPrefix(attr, "trusted.")
}

// xattrNames is empty on a file system without extended attributes.
func xattrNames(fd int) ([]string, error) {
	b := make([]byte, 64<<10) // the most that the kernel allows
	n, err := unix.Flistxattr(fd, b)
	if err == unix.EOPNOTSUPP || err == nil && n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list attributes: %w", err)
	}
	return strings.Split(strings.TrimSuffix(string(b[:n]), "\x00"), "\x00"), nil
}

func xattr(fd int, attr string) ([]byte, error) {
	b := make([]byte, 64<<10)
	n, err := unix.Fgetxattr(fd, attr, b)
	if err != nil {
		return nil, err
	}
	return b[:n], nil
}
