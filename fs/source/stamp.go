package source

import (
	"context"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
)

// young is the age below which a directory's times do not prove that it was not
// changed: two changes within one tick of the file system's clock leave the same
// time. The tick is up to 10 ms on Linux before 6.13, a second and more on some
// servers, and the server's clock is not ours; a minute is generous with both.
const young = time.Minute

// stamp is what a directory was before it was listed.
type stamp struct {
	path         chain.Path
	inode        uint64
	device       uint64
	mtime, ctime int64
	young        bool
	names        digest // of its listing
}

// stampOf asks the server on NFS: its client may know attributes that are
// older than another host's change, and would answer a listing from before it.
func stampOf(p chain.Path, fd int) (stamp, error) {
	var st unix.Statx_t
	if err := statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_FORCE_SYNC, &st); err != nil {
		return stamp{}, err
	}
	e := entryOfStatx(p, &st)
	id := e.Identity
	age := time.Since(time.Unix(0, max(id.MTime, id.CTime)))
	return stamp{
		path:   p,
		inode:  id.Inode,
		device: e.Device,
		mtime:  id.MTime,
		ctime:  id.CTime,
		young:  age.Abs() < young,
	}, nil
}

// sameTimes reports whether o is the same directory, not changed as far as its
// times tell.
func (s stamp) sameTimes(o stamp) bool {
	return s.inode == o.inode && s.device == o.device && s.mtime == o.mtime && s.ctime == o.ctime
}

// unchanged checks all directories again, after the last was listed.
func (w *walk) unchanged(ctx context.Context) error {
	for _, s := range w.seen {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !w.still(s) {
			w.moved = s.path
			return errMoved
		}
	}
	return nil
}

// still reports whether a directory is what it was. One that cannot be looked
// at any more is not.
func (w *walk) still(s stamp) bool {
	flags := unix.O_PATH
	if s.young {
		flags = unix.O_RDONLY
	}
	fd, err := w.tree.OpenPath(s.path, flags|unix.O_DIRECTORY, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	now, err := stampOf(s.path, fd)
	if err != nil || !s.sameTimes(now) {
		return false
	}
	return !s.young || w.sameNames(fd, s.names)
}

// sameNames lists a directory whose times prove nothing once more. A file
// replaced by another of the same name keeps the digest; that hides no image,
// and the image's own identity tells.
func (w *walk) sameNames(fd int, want digest) bool {
	var got digest
	err := w.list.each(fd, func(name []byte) error {
		got.add(name)
		return nil
	})
	return err == nil && got == want
}
