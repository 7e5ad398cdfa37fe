package source

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
)

// young is the age below which a directory's times do not prove that it was not
// changed: two changes within one tick of the file system's clock leave the same
// time. The tick is up to 10 ms on Linux before 6.13, a second and more on some
// servers, and the server's clock is not ours; a minute is generous with both.
//
// A young directory is therefore compared by what it lists as well. That costs
// four system calls instead of one, for the directories only that were changed
// in the last minute. To ask the file system's own clock for a narrower bound
// would need a write for each walk, and trust that all servers of a cluster
// have one clock.
const young = time.Minute

// stamp is what a directory was before it was listed.
type stamp struct {
	inode        uint64
	device       uint64
	mtime, ctime int64
	young        bool
	content      digest // of its listing
}

func stampOf(e chain.Entry, young time.Duration) stamp {
	id := e.Identity
	age := time.Since(time.Unix(0, max(id.MTime, id.CTime)))
	return stamp{inode: id.Inode, device: e.Device, mtime: id.MTime, ctime: id.CTime, young: age.Abs() < young}
}

// is reports whether e is the same directory, changed or not.
func (s stamp) is(e chain.Entry) bool {
	return e.Type == chain.Directory && s.inode == e.Identity.Inode && s.device == e.Device
}

// sameTimes reports whether e has not changed as far as its times tell.
func (s stamp) sameTimes(e chain.Entry) bool {
	return s.mtime == e.Identity.MTime && s.ctime == e.Identity.CTime
}

// look asks the server on NFS: its client may know attributes that are older
// than another host's change, and would answer a listing from before it. An
// empty name means fd itself.
func look(p chain.Path, fd int, name string) (chain.Entry, error) {
	flags := unix.AT_STATX_FORCE_SYNC | unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	var st unix.Statx_t
	if err := statx(fd, name, flags, &st); err != nil {
		return chain.Entry{}, err
	}
	return entryOfStatx(p, &st), nil
}

// verdict is what became of a directory since it was listed.
type verdict int

const (
	same    verdict = iota
	changed         // or cannot be looked at: it is to be listed again
	gone            // or another is in its place: its parent has changed
)

// check compares the directory name in parent, or with an empty name parent
// itself, with what d was when it was listed. Its path need not lead to it any
// more: what counts is that this directory still holds what it did.
func (d *dir) check(list *listing, parent int, name string) verdict {
	if !d.stamp.young {
		return d.compare(look(d.path, parent, name))
	}
	if name == "" {
		name = "."
	}
	fd, err := OpenBeneath(parent, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return d.compare(chain.Entry{}, err)
	}
	defer unix.Close(fd)
	if v := d.compare(look(d.path, fd, "")); v != same {
		return v
	}
	var content digest
	err = list.each(fd, func(e dirent) error {
		content.add(e)
		return nil
	})
	if err != nil || content != d.stamp.content {
		return changed
	}
	return same
}

func (d *dir) compare(now chain.Entry, err error) verdict {
	switch {
	case isMove(err):
		return gone
	case err != nil:
		return changed
	case !d.stamp.is(now):
		return gone
	case !d.stamp.sameTimes(now):
		return changed
	}
	return same
}

// family is a directory with some of those in it. They are checked together: to
// look a directory up in its parent takes one system call.
type family struct {
	parent *dir
	subs   []*dir
}

// maxFamily divides the work of a very wide directory.
const maxFamily = 128

// verification checks all directories again after the last was listed.
type verification struct {
	walk  *walk
	queue queue[family]

	mu    sync.Mutex
	again []*dir // guarded by mu; what is to be listed again
}

// verify returns the directories that must be listed again.
func (w *walk) verify(ctx context.Context) ([]*dir, error) {
	v := &verification{walk: w}
	v.judge(w.root, w.root.check(&w.list, w.tree.root, ""))
	err := v.queue.drain(w.workers, func(list *listing, f family) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		v.family(list, f)
		return nil
	})
	for _, d := range v.again {
		d.again = false
	}
	return v.again, err
}

// judge notes what follows from the verdict on d. A directory that changed may
// keep the others in it, which must be checked in this round too; those in a
// directory that is gone are met, if at all, as new ones in another place.
func (v *verification) judge(d *dir, is verdict) {
	switch is {
	case changed:
		v.repeat(d)
	case gone:
		v.repeat(d.holder())
		return
	}
	for subs := d.subs; len(subs) > 0; {
		n := min(len(subs), maxFamily)
		v.queue.push(family{d, subs[:n]})
		subs = subs[n:]
	}
}

func (v *verification) repeat(d *dir) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !d.again {
		d.again = true
		v.again = append(v.again, d)
	}
}

func (v *verification) family(list *listing, f family) {
	fd, err := v.walk.tree.OpenPath(f.parent.path, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		v.repeat(f.parent)
		v.repeat(f.parent.holder())
		return
	}
	defer unix.Close(fd)
	for _, d := range f.subs {
		if d.listed {
			v.judge(d, d.check(list, fd, d.path.Base()))
		}
	}
}
