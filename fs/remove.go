package fs

import (
	"syscall"

	gofs "github.com/hanwen/go-fuse/v2/fs"

	"github.com/chainfs/chainfs/chain"
)

// Unlink implements unlink(2): the plan for the file is made and carried out
// before it returns.
func (n *node) Unlink(ctx ctxt, name string) syscall.Errno {
	p, errno := n.toChange(name)
	if errno != 0 {
		return errno
	}
	st, err := n.mount.statPath(p)
	if err != nil {
		return n.mount.missing(err)
	}
	err = n.mount.tree.Delete(ctx, []chain.Path{p}, chain.DeleteOptions{Inode: st.Ino}, nil)
	n.mount.tell("unlink", p, err)
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
	return syscall.EIO
}

// tell logs why a call did not do what it was asked for.
func (m *mount) tell(act string, p chain.Path, err error) {
	switch {
	case err == nil:
	case isRefused(err):
		m.log.Info("refused", "act", act, "path", p, "why", err)
	default:
		m.log.Warn("not done", "act", act, "path", p, "err", err)
	}
}

// Rename implements renameat2(2).
func (n *node) Rename(ctx ctxt, name string, newParent gofs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	from, errno := n.toChange(name)
	if errno != 0 {
		return errno
	}
	dir, ok := newParent.(*node)
	if !ok {
		return syscall.EPERM
	}
	to, errno := dir.toChange(newName)
	if errno != 0 {
		return errno
	}
	err := n.mount.tree.Rename(ctx, from, to, uint(flags))
	n.mount.tell("rename", from, err)
	return errnoOf(err)
}
