package source

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
)

// Stat is lstat. ENOENT and ENOTDIR are fs.ErrNotExist, and nothing else is.
// On NFS it asks the server: what is about to be changed or deleted must not
// be judged by attributes cached before another host wrote the file.
func (t *Tree) Stat(p chain.Path) (chain.Entry, error) {
	dir, name, release, err := t.At(p)
	if err == nil {
		defer release()
		var st unix.Statx_t
		if err = statx(dir, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_STATX_FORCE_SYNC, &st); err == nil {
			return entryOfStatx(p, &st), nil
		}
	}
	if err == unix.ENOTDIR {
		err = notDir{}
	}
	return chain.Entry{}, pathError("stat", p, err)
}

// notDir is ENOTDIR where it says that a file does not exist, because what
// should be its directory is a file.
type notDir struct{}

func (notDir) Error() string        { return unix.ENOTDIR.Error() }
func (notDir) Unwrap() error        { return unix.ENOTDIR }
func (notDir) Is(target error) bool { return target == fs.ErrNotExist }

// errNotRegular is why Open refuses a file.
var errNotRegular = errors.New("is not a regular file")

// Open opens a regular file for reading, and nothing but a regular file.
func (t *Tree) Open(p chain.Path) (*os.File, error) {
	fd, err := t.openRegular(p)
	if err != nil {
		return nil, pathError("open", p, err)
	}
	return os.NewFile(uintptr(fd), p.String()), nil
}

func (t *Tree) openRegular(p chain.Path) (int, error) {
	dir, name, release, err := t.At(p)
	if err != nil {
		return -1, err
	}
	defer release()
	// Opening a device can do things (a tape rewinds), so look first; O_NONBLOCK
	// is for a FIFO put there in between.
	var st unix.Stat_t
	if err := fstatat(dir, name, &st); err != nil {
		return -1, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return -1, errNotRegular
	}
	fd, err := openQuietly(dir, name)
	if err != nil {
		return -1, err
	}
	if err := regular(fd); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// openQuietly leaves the access time alone where it may: reading every header
// of the tree would otherwise write to every inode.
func openQuietly(dir int, name string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOFOLLOW
	fd, err := OpenBeneath(dir, name, flags|unix.O_NOATIME, 0)
	if err == unix.EPERM {
		fd, err = OpenBeneath(dir, name, flags, 0)
	}
	return fd, err
}

// regular checks the open file and makes its reads block again.
func regular(fd int) error {
	var st unix.Stat_t
	if err := retry(func() error { return unix.Fstat(fd, &st) }); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return errNotRegular
	}
	return unix.SetNonblock(fd, false)
}

// OpenDir opens a directory for the calls of the at-family.
func (t *Tree) OpenDir(p chain.Path) (*os.File, error) {
	fd, err := t.OpenPath(p, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, pathError("open directory", p, err)
	}
	return os.NewFile(uintptr(fd), p.String()), nil
}

// Unlink removes a file that is not a directory.
func (t *Tree) Unlink(p chain.Path) error {
	dir, name, release, err := t.At(p)
	if err == nil {
		defer release()
		err = retry(func() error { return unix.Unlinkat(dir, name, 0) })
	}
	if err != nil {
		return pathError("unlink", p, err)
	}
	return nil
}

// Rename moves a file with the flags of renameat2(2).
func (t *Tree) Rename(from, to chain.Path, flags uint) error {
	if err := t.rename(from, to, flags); err != nil {
		return &os.LinkError{Op: "rename", Old: from.String(), New: to.String(), Err: err}
	}
	return nil
}

func (t *Tree) rename(from, to chain.Path, flags uint) error {
	return t.atBoth(from, to, func(oldDir int, oldName string, newDir int, newName string) error {
		return retry(func() error { return unix.Renameat2(oldDir, oldName, newDir, newName, flags) })
	})
}

// atBoth calls f with the directories that hold two names, for the calls of the
// at-family that take two.
func (t *Tree) atBoth(from, to chain.Path, f func(oldDir int, oldName string, newDir int, newName string) error) error {
	oldDir, oldName, releaseOld, err := t.At(from)
	if err != nil {
		return err
	}
	defer releaseOld()
	newDir, newName, releaseNew, err := t.At(to)
	if err != nil {
		return err
	}
	defer releaseNew()
	return f(oldDir, oldName, newDir, newName)
}

// SyncDir makes the directory's entries durable. After an error nothing is
// known about them: a second fsync may answer success for what was lost.
func (t *Tree) SyncDir(p chain.Path) error {
	fd, err := t.OpenPath(p, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return pathError("open directory to sync", p, err)
	}
	err = retry(func() error { return unix.Fsync(fd) })
	if closeErr := unix.Close(fd); err == nil && closeErr != unix.EINTR {
		err = closeErr // EINTR: Linux has closed it, and what counts was synced
	}
	if err == nil {
		err = t.alive()
	}
	if err != nil {
		return pathError("sync directory", p, err)
	}
	return nil
}

// alive is an error when the tree's file system has shut down. XFS answers an
// fsync of a directory with success then, and only that of a file with an error
// (Linux 6.18, measured): one that is alive after an fsync was alive during it.
func (t *Tree) alive() error {
	if t.owner == nil {
		return nil // read-only: nothing was changed that could be lost
	}
	return retry(t.owner.file.Sync)
}
