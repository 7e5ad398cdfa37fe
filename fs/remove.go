package fs

import (
	"syscall"

	gofs "github.com/hanwen/go-fuse/v2/fs"

	"github.com/chainfs/chainfs/chain"
)

// Unlink implements unlink(2): the plan for the file is made and carried out
// before it returns.
func (n *node) Unlink(ctx ctxt, name string) syscall.Errno {
	if n.hides(name) {
		return syscall.ENOENT
	}
	if chain.IsHidden(name) {
		return syscall.EPERM
	}
	p, errno := n.child(name)
	if errno != 0 {
		return errno
	}
	st, err := n.mount.statPath(p)
	if err != nil {
		return errnoOf(err)
	}
	err = n.mount.tree.Delete(ctx, []chain.Path{p}, chain.DeleteOptions{Inode: st.Ino}, nil)
	if err != nil && isRefused(err) {
		n.mount.log.Info("refused", "act", "unlink", "path", p, "why", err)
	}
	if now, _ := n.child(name); err != nil && now != p {
		return syscall.EBUSY // its directory was renamed meanwhile, and the file is there
	}
	return n.mount.deleteErrno(p, err)
}

// deleteErrno keeps an error from looking as if the file had not been there.
func (m *mount) deleteErrno(p chain.Path, err error) syscall.Errno {
	errno := errnoOf(err)
	if !swallowed[errno] {
		return errno
	}
	if _, statErr := m.statPath(p); statErr != nil && swallowed[errnoOf(statErr)] {
		return errno
	}
	m.log.Error("unlink failed", "path", p, "err", err)
	return syscall.EIO
}

// Rename implements renameat2(2).
func (n *node) Rename(ctx ctxt, name string, newParent gofs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	if n.hides(name) {
		return syscall.ENOENT
	}
	if chain.IsHidden(name) {
		return syscall.EPERM
	}
	from, errno := n.child(name)
	if errno != 0 {
		return errno
	}
	to, errno := newParent.(*node).newName(newName)
	if errno != 0 {
		return errno
	}
	err := n.mount.tree.Rename(ctx, from, to, uint(flags))
	if err != nil && isRefused(err) {
		n.mount.log.Info("refused", "act", "rename", "path", from, "to", to, "why", err)
	}
	return errnoOf(err)
}
