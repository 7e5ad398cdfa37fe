package fs

import (
	"syscall"
	"time"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Statfs implements statfs(2).
func (n *node) Statfs(_ ctxt, out *fuse.StatfsOut) syscall.Errno {
	fd, release, errno := n.fd(nil)
	if errno != 0 {
		return errno
	}
	defer release()
	var st syscall.Statfs_t
	if err := syscall.Fstatfs(fd, &st); err != nil {
		return errnoOf(err)
	}
	out.FromStatfsT(&st)
	return 0
}

// Getattr implements stat(2) and fstat(2).
func (n *node) Getattr(_ ctxt, f gofs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	fd, release, errno := n.fd(f)
	if errno != 0 {
		return errno
	}
	defer release()
	st, err := statx(fd)
	if err != nil {
		return errnoOf(err)
	}
	n.mount.fillAttr(st, &out.Attr)
	if cacheable(st) {
		out.SetTimeout(cacheFor)
	}
	return 0
}

// Setattr implements chmod(2), chown(2), utimensat(2) and truncate(2).
func (n *node) Setattr(ctx ctxt, f gofs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if n.isOurs() {
		return syscall.EPERM
	}
	if size, ok := in.GetSize(); ok {
		if errno := n.truncate(ctx, f, int64(size)); errno != 0 {
			return errno
		}
	}
	if errno := n.setMeta(f, in); errno != 0 {
		return errno
	}
	return n.Getattr(ctx, f, out)
}

func (n *node) setMeta(f gofs.FileHandle, in *fuse.SetAttrIn) syscall.Errno {
	fd, release, errno := n.fd(f)
	if errno != 0 {
		return errno
	}
	defer release()
	// The owner first: a change of owner clears the setuid bit that a mode may set.
	for _, set := range []func(int, *fuse.SetAttrIn) error{setOwner, setMode, setTimes} {
		if err := set(fd, in); err != nil {
			return errnoOf(err)
		}
	}
	return 0
}

func setOwner(fd int, in *fuse.SetAttrIn) error {
	uid, hasUID := in.GetUID()
	gid, hasGID := in.GetGID()
	if !hasUID && !hasGID {
		return nil
	}
	u, g := -1, -1
	if hasUID {
		u = int(uid)
	}
	if hasGID {
		g = int(gid)
	}
	return unix.Fchownat(fd, "", u, g, unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW)
}

func setMode(fd int, in *fuse.SetAttrIn) error {
	mode, ok := in.GetMode()
	if !ok {
		return nil
	}
	return unix.Chmod(procPath(fd), mode&07777)
}

func setTimes(fd int, in *fuse.SetAttrIn) error {
	atime, hasA := in.GetATime()
	mtime, hasM := in.GetMTime()
	if !hasA && !hasM {
		return nil
	}
	ts := []unix.Timespec{timespec(atime, hasA), timespec(mtime, hasM)}
	return unix.UtimesNanoAt(unix.AT_FDCWD, procPath(fd), ts, 0)
}

func timespec(t time.Time, set bool) unix.Timespec {
	if !set {
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	}
	return unix.NsecToTimespec(t.UnixNano())
}

// truncate changes the size of a file, which is writing to it.
func (n *node) truncate(ctx ctxt, f gofs.FileHandle, size int64) syscall.Errno {
	if h, ok := f.(*handle); ok && h.writes {
		h.dirty.Store(true)
		return errnoOf(unix.Ftruncate(h.fd, size))
	}
	h, errno := n.openHandle(ctx, unix.O_WRONLY)
	if errno != 0 {
		return errno
	}
	defer n.closeHandle(h)
	h.dirty.Store(true)
	return errnoOf(unix.Ftruncate(h.fd, size))
}

// Readlink implements readlink(2).
func (n *node) Readlink(ctxt) ([]byte, syscall.Errno) {
	p, ok := n.path()
	if !ok {
		return nil, syscall.ENOENT
	}
	dir, name, release, err := n.mount.source.At(p)
	if err != nil {
		return nil, errnoOf(err)
	}
	defer release()
	buf := make([]byte, unix.PathMax)
	size, err := unix.Readlinkat(dir, name, buf)
	if err != nil {
		return nil, errnoOf(err)
	}
	return buf[:size], 0
}

// Ioctl is never passed on: it would run with the daemon's rights, and there
// are calls that shut a file system down.
func (n *node) Ioctl(ctxt, gofs.FileHandle, uint32, uint64, []byte, []byte) (int32, syscall.Errno) {
	return 0, syscall.ENOTTY
}
