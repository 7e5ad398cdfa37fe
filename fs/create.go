package fs

import (
	"syscall"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
)

// Mkdir implements mkdir(2).
func (n *node) Mkdir(ctx ctxt, name string, mode uint32, out *fuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	return n.make(ctx, name, mode, out, func(dir int, name string) error {
		return unix.Mkdirat(dir, name, mode)
	})
}

// Mknod implements mknod(2).
func (n *node) Mknod(ctx ctxt, name string, mode, dev uint32, out *fuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	return n.make(ctx, name, mode, out, func(dir int, name string) error {
		return unix.Mknodat(dir, name, mode, int(dev))
	})
}

// Symlink implements symlink(2).
func (n *node) Symlink(ctx ctxt, target, name string, out *fuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	return n.make(ctx, name, 0, out, func(dir int, name string) error {
		return unix.Symlinkat(target, dir, name)
	})
}

// Link implements link(2). The new name is an image of its own if the file is one.
func (n *node) Link(ctx ctxt, target gofs.InodeEmbedder, name string, out *fuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	p, errno := n.toChange(name)
	if errno != 0 {
		return nil, errno
	}
	from, ok := target.(*node)
	if !ok || from.isOurs() {
		return nil, syscall.EPERM
	}
	fd, release, errno := from.fd(nil)
	if errno != 0 {
		return nil, errno
	}
	defer release()
	if errno := n.at(name, func(dir int, name string) error {
		return unix.Linkat(unix.AT_FDCWD, procPath(fd), dir, name, unix.AT_SYMLINK_FOLLOW)
	}); errno != 0 {
		return nil, errno
	}
	n.mount.changed(p)
	return n.enter(ctx, p, out)
}

// make creates a file that is no regular one, for the caller.
func (n *node) make(ctx ctxt, name string, mode uint32, out *fuse.EntryOut, create func(dir int, name string) error) (*gofs.Inode, syscall.Errno) {
	p, errno := n.toChange(name)
	if errno != 0 {
		return nil, errno
	}
	if errno := n.at(name, create); errno != 0 {
		return nil, errno
	}
	if err := n.mount.own(ctx, p, mode); err != nil {
		// Leaving a file of root's behind would be worse than none.
		n.at(name, func(dir int, name string) error {
			if mode&unix.S_IFMT == unix.S_IFDIR {
				return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
			}
			return unix.Unlinkat(dir, name, 0)
		})
		return nil, errnoOf(err)
	}
	return n.enter(ctx, p, out)
}

// own gives a new file to the caller. Its group stays as the kernel chose it
// where the directory has the setgid bit.
func (m *mount) own(ctx ctxt, p chain.Path, mode uint32) error {
	caller, ok := fuse.FromContext(ctx)
	if !ok {
		return nil
	}
	fd, err := m.source.OpenPath(p, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return m.ownFD(fd, p, mode, caller.Owner)
}

func (m *mount) ownFD(fd int, p chain.Path, mode uint32, owner fuse.Owner) error {
	dir, err := m.statPath(p.Dir())
	if err != nil {
		return err
	}
	gid := int(owner.Gid)
	if dir.Mode&unix.S_ISGID != 0 {
		gid = -1
	}
	if err := unix.Fchownat(fd, "", int(owner.Uid), gid, unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if mode&(unix.S_ISUID|unix.S_ISGID|unix.S_ISVTX) == 0 || mode&unix.S_IFMT == unix.S_IFLNK {
		return nil
	}
	st, err := statx(fd)
	if err != nil {
		return err
	}
	return unix.Chmod(procPath(fd), uint32(st.Mode)&07777|mode&07000)
}

// Create implements open(2) with O_CREAT.
func (n *node) Create(ctx ctxt, name string, flags, mode uint32, out *fuse.EntryOut) (*gofs.Inode, gofs.FileHandle, uint32, syscall.Errno) {
	p, errno := n.toChange(name)
	if errno != 0 {
		return nil, nil, 0, errno
	}
	fd, err := n.mount.source.OpenPath(p, int(flags)&^notPassed|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, mode&07777)
	if err == unix.EEXIST && flags&unix.O_EXCL == 0 {
		return n.createExisting(ctx, name, flags, out)
	}
	if err != nil {
		return nil, nil, 0, errnoOf(err)
	}
	if caller, ok := fuse.FromContext(ctx); ok {
		if err := n.mount.ownFD(fd, p, mode, caller.Owner); err != nil {
			unix.Close(fd) // it is empty, and about to be removed
			n.at(name, func(dir int, name string) error { return unix.Unlinkat(dir, name, 0) })
			return nil, nil, 0, errnoOf(err)
		}
	}
	st, err := statx(fd)
	if err != nil {
		unix.Close(fd) // it is empty
		return nil, nil, 0, errnoOf(err)
	}
	n.mount.fillEntry(st, out)
	inode := n.NewInode(ctx, &node{mount: n.mount}, n.mount.stable(st))
	h := &handle{node: inode.Operations().(*node), fd: fd, key: keyOf(st), writes: writes(flags)}
	h.dirty.Store(true)
	h.node.keep(h)
	n.mount.fresh.add(n.mount.stable(st))
	n.mount.openedBy(h).add(h.key)
	return inode, h, 0, 0
}

// createExisting opens a file that somebody created on the tree since the
// kernel looked it up.
func (n *node) createExisting(ctx ctxt, name string, flags uint32, out *fuse.EntryOut) (*gofs.Inode, gofs.FileHandle, uint32, syscall.Errno) {
	inode, errno := n.Lookup(ctx, name, out)
	if errno != 0 {
		return nil, nil, 0, errno
	}
	child := inode.Operations().(*node)
	p, errno := n.child(name)
	if errno != 0 {
		return nil, nil, 0, errno
	}
	h, errno := child.openAt(ctx, p, flags)
	if errno != 0 {
		return nil, nil, 0, errno
	}
	return inode, h, 0, 0
}
