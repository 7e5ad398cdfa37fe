package fs

import (
	"fmt"
	"strings"
	"sync"
	"syscall"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
)

// node is a file of the tree as the kernel knows it.
type node struct {
	gofs.Inode
	mount *mount

	mu   sync.Mutex
	open map[*handle]bool // guarded by mu; they keep an unlinked file within reach
}

// The operations that the mount supports.
var (
	_ gofs.NodeStatfser       = (*node)(nil)
	_ gofs.NodeGetattrer      = (*node)(nil)
	_ gofs.NodeSetattrer      = (*node)(nil)
	_ gofs.NodeGetxattrer     = (*node)(nil)
	_ gofs.NodeSetxattrer     = (*node)(nil)
	_ gofs.NodeRemovexattrer  = (*node)(nil)
	_ gofs.NodeListxattrer    = (*node)(nil)
	_ gofs.NodeReadlinker     = (*node)(nil)
	_ gofs.NodeOpener         = (*node)(nil)
	_ gofs.NodeLookuper       = (*node)(nil)
	_ gofs.NodeOpendirHandler = (*node)(nil)
	_ gofs.NodeCreater        = (*node)(nil)
	_ gofs.NodeMkdirer        = (*node)(nil)
	_ gofs.NodeMknoder        = (*node)(nil)
	_ gofs.NodeSymlinker      = (*node)(nil)
	_ gofs.NodeLinker         = (*node)(nil)
	_ gofs.NodeUnlinker       = (*node)(nil)
	_ gofs.NodeRmdirer        = (*node)(nil)
	_ gofs.NodeRenamer        = (*node)(nil)
	_ gofs.NodeIoctler        = (*node)(nil)
	_ gofs.NodeCopyFileRanger = (*node)(nil)
)

// path is where the node is in the tree; false when it was unlinked.
func (n *node) path() (chain.Path, bool) {
	var names []string
	at := n.EmbeddedInode()
	for !at.IsRoot() {
		name, parent := at.Parent()
		if parent == nil {
			return "", false
		}
		names = append(names, name)
		at = parent
	}
	var b strings.Builder
	for i := len(names) - 1; i >= 0; i-- {
		b.WriteString(names[i])
		if i > 0 {
			b.WriteByte('/')
		}
	}
	return chain.Path(b.String()), true
}

// child is the path of a name in the directory n.
func (n *node) child(name string) (chain.Path, syscall.Errno) {
	dir, ok := n.path()
	if !ok {
		return "", syscall.ENOENT
	}
	return dir.Join(name), 0
}

// toChange is child for a name that is to be created, changed or removed. What
// has a hidden name, and what lies below one, belongs to chainfs: it can be
// looked up and read, because images read through it, and is changed by chainfs
// alone.
func (n *node) toChange(name string) (chain.Path, syscall.Errno) {
	p, errno := n.child(name)
	if errno == 0 && chain.InHidden(p) {
		errno = syscall.EPERM
	}
	return p, errno
}

// isOurs reports whether the node has, or is below, a hidden name.
func (n *node) isOurs() bool {
	p, ok := n.path()
	return ok && chain.InHidden(p)
}

// isControl reports whether the name is that of the control directory in n. The
// tree has a directory of this name too, which is never seen in the mount.
func (n *node) isControl(name string) bool { return name == chain.ControlName && n.IsRoot() }

// fd is a descriptor for calls about the file itself; opened with O_PATH where
// no better one is at hand. The caller calls release.
func (n *node) fd(f gofs.FileHandle) (fd int, release func(), errno syscall.Errno) {
	if h, ok := f.(*handle); ok {
		return h.fd, func() {}, 0
	}
	p, ok := n.path()
	if !ok {
		return n.anyOpen()
	}
	fd, err := n.mount.source.OpenPath(p, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err == unix.ENOENT {
		return n.anyOpen()
	}
	if err != nil {
		return -1, nil, errnoOf(err)
	}
	return fd, func() { unix.Close(fd) }, 0
}

// anyOpen answers for a file that was unlinked while it was open.
func (n *node) anyOpen() (int, func(), syscall.Errno) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for h := range n.open {
		fd, err := unix.FcntlInt(uintptr(h.fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return -1, nil, errnoOf(err)
		}
		return fd, func() { unix.Close(fd) }, 0
	}
	return -1, nil, syscall.ENOENT
}

// procPath names an open file for the calls that take no O_PATH descriptor.
func procPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

const statxMask = unix.STATX_BASIC_STATS | unix.STATX_BTIME

func statx(fd int) (*unix.Statx_t, error) {
	var st unix.Statx_t
	for {
		err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW, statxMask, &st)
		if err != unix.EINTR {
			return &st, err
		}
	}
}

// statPath is statx for a path of the tree.
func (m *mount) statPath(p chain.Path) (*unix.Statx_t, error) {
	dir, name, release, err := m.source.At(p)
	if err != nil {
		return nil, err
	}
	defer release()
	var st unix.Statx_t
	for {
		err := unix.Statx(dir, name, unix.AT_SYMLINK_NOFOLLOW, statxMask, &st)
		if err != unix.EINTR {
			return &st, err
		}
	}
}

func device(st *unix.Statx_t) uint64 { return unix.Mkdev(st.Dev_major, st.Dev_minor) }

func keyOf(st *unix.Statx_t) fileKey { return fileKey{device(st), st.Ino} }

// stable is the node's identity: the tree's inode number, and the time of birth
// to tell a reused number apart. Files on other devices below the tree are kept
// apart by their device number.
func (m *mount) stable(st *unix.Statx_t) gofs.StableAttr {
	dev, root := device(st), m.rootDev
	return gofs.StableAttr{
		Mode: uint32(st.Mode),
		Ino:  st.Ino ^ (dev<<32 | dev>>32) ^ (root<<32 | root>>32),
		Gen:  1 + uint64(st.Btime.Sec)*1e9 + uint64(st.Btime.Nsec),
	}
}

func (m *mount) fillAttr(st *unix.Statx_t, out *fuse.Attr) {
	out.Ino = m.stable(st).Ino
	out.Size, out.Blocks, out.Blksize = st.Size, st.Blocks, st.Blksize
	out.Mode, out.Nlink = uint32(st.Mode), st.Nlink
	out.Owner = fuse.Owner{Uid: st.Uid, Gid: st.Gid}
	out.Rdev = uint32(unix.Mkdev(st.Rdev_major, st.Rdev_minor))
	out.Atime, out.Atimensec = uint64(st.Atime.Sec), st.Atime.Nsec
	out.Mtime, out.Mtimensec = uint64(st.Mtime.Sec), st.Mtime.Nsec
	out.Ctime, out.Ctimensec = uint64(st.Ctime.Sec), st.Ctime.Nsec
}

func (m *mount) fillEntry(st *unix.Statx_t, out *fuse.EntryOut) {
	m.fillAttr(st, &out.Attr)
	if cacheable(st) {
		out.SetEntryTimeout(cacheFor)
		out.SetAttrTimeout(cacheFor)
	}
}

// cacheable reports whether the kernel may answer for the file by itself.
func cacheable(st *unix.Statx_t) bool { return st.Mode&unix.S_IFMT != unix.S_IFREG }

// enter makes the node for a file that was looked up or created.
func (n *node) enter(ctx ctxt, p chain.Path, out *fuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	st, err := n.mount.statPath(p)
	if err != nil {
		return nil, n.mount.missing(err)
	}
	n.mount.fillEntry(st, out)
	return n.NewInode(ctx, &node{mount: n.mount}, n.mount.stable(st)), 0
}
