package fs

import (
	"os"
	"sync"
	"syscall"
	"time"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// The control directory is .chainfs in the mount's root: no listing has it, and
// it can be reached by name. What is in it is made by chainfs when it is opened,
// and is nowhere in the tree. It belongs to the daemon's user and is read-only.

// controlDir is the control directory of a mount.
type controlDir struct {
	unchangeable
	files map[string]func() ([]byte, error)
	since time.Time

	once  sync.Once
	inode *gofs.Inode // set once
}

var (
	_ gofs.NodeOnAdder   = (*controlDir)(nil)
	_ gofs.NodeGetattrer = (*controlDir)(nil)
)

func newControlDir(m *mount) *controlDir {
	d := &controlDir{unchangeable: unchangeable{mount: m}, files: map[string]func() ([]byte, error){}, since: time.Now()}
	if m.opts.Status != nil {
		d.files["status.json"] = m.opts.Status
	}
	return d
}

// enter makes the directory's inode, the same each time.
func (d *controlDir) enter(ctx ctxt, out *fuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	d.once.Do(func() {
		d.inode = d.mount.root.NewPersistentInode(ctx, d, gofs.StableAttr{Mode: unix.S_IFDIR})
	})
	d.fill(&out.Attr)
	return d.inode, 0
}

// OnAdd puts the files in, for as long as the mount is there.
func (d *controlDir) OnAdd(ctx ctxt) {
	for name, text := range d.files {
		d.AddChild(name, d.NewPersistentInode(ctx, &controlFile{unchangeable{mount: d.mount}, text}, gofs.StableAttr{Mode: unix.S_IFREG}), true)
	}
}

func (d *controlDir) fill(out *fuse.Attr) {
	*out = ownAttr(unix.S_IFDIR|0o555, 0, d.since)
	out.Nlink = 2
}

// Getattr implements stat(2).
func (d *controlDir) Getattr(_ ctxt, _ gofs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	d.fill(&out.Attr)
	return 0
}

// controlFile is a file whose text is made when it is opened.
type controlFile struct {
	unchangeable
	text func() ([]byte, error)
}

var (
	_ gofs.NodeGetattrer = (*controlFile)(nil)
	_ gofs.NodeOpener    = (*controlFile)(nil)
)

// Getattr implements stat(2), with the size that the text has now, and fstat(2),
// with the size of what can be read there.
func (f *controlFile) Getattr(_ ctxt, h gofs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	text, is := h.(openText)
	if !is {
		now, err := f.text()
		if err != nil {
			return errnoOf(err)
		}
		text = openText(now)
	}
	out.Attr = ownAttr(unix.S_IFREG|0o400, len(text), time.Now())
	return 0
}

// Open makes the text. The kernel must not cache it: the next open has another.
func (f *controlFile) Open(_ ctxt, flags uint32) (gofs.FileHandle, uint32, syscall.Errno) {
	if writes(flags) {
		return nil, 0, syscall.EPERM
	}
	text, err := f.text()
	if err != nil {
		return nil, 0, errnoOf(err)
	}
	return openText(text), fuse.FOPEN_DIRECT_IO, 0
}

// openText is an open file, the same however often it is read.
type openText string

var _ gofs.FileReader = openText("")

// Read implements read(2).
func (t openText) Read(_ ctxt, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n := 0
	if off < int64(len(t)) {
		n = copy(dest, t[off:])
	}
	return fuse.ReadResultData(dest[:n]), 0
}

// ownAttr are the attributes of what is in no tree: only the daemon's user can
// read it, as the control socket.
func ownAttr(mode uint32, size int, at time.Time) fuse.Attr {
	a := fuse.Attr{Mode: mode, Size: uint64(size), Nlink: 1, Blksize: 4096}
	a.Owner = fuse.Owner{Uid: uint32(os.Geteuid()), Gid: uint32(os.Getegid())}
	a.SetTimes(&at, &at, &at)
	return a
}

// unchangeable is an inode of which every change is refused. Each refusal has to
// be spelled out: what a node does not answer, go-fuse may take for done.
type unchangeable struct {
	gofs.Inode
	mount *mount
}

var (
	_ gofs.NodeStatfser      = (*unchangeable)(nil)
	_ gofs.NodeSetattrer     = (*unchangeable)(nil)
	_ gofs.NodeSetxattrer    = (*unchangeable)(nil)
	_ gofs.NodeRemovexattrer = (*unchangeable)(nil)
	_ gofs.NodeCreater       = (*unchangeable)(nil)
	_ gofs.NodeMkdirer       = (*unchangeable)(nil)
	_ gofs.NodeMknoder       = (*unchangeable)(nil)
	_ gofs.NodeSymlinker     = (*unchangeable)(nil)
	_ gofs.NodeLinker        = (*unchangeable)(nil)
	_ gofs.NodeUnlinker      = (*unchangeable)(nil)
	_ gofs.NodeRmdirer       = (*unchangeable)(nil)
	_ gofs.NodeRenamer       = (*unchangeable)(nil)
	_ gofs.NodeIoctler       = (*unchangeable)(nil)
)

// Statfs answers as everywhere in the mount.
func (u *unchangeable) Statfs(ctx ctxt, out *fuse.StatfsOut) syscall.Errno {
	return u.mount.root.Statfs(ctx, out)
}

// Setattr is refused.
func (*unchangeable) Setattr(ctxt, gofs.FileHandle, *fuse.SetAttrIn, *fuse.AttrOut) syscall.Errno {
	return syscall.EPERM
}

// Setxattr is refused.
func (*unchangeable) Setxattr(ctxt, string, []byte, uint32) syscall.Errno { return syscall.EPERM }

// Removexattr is refused.
func (*unchangeable) Removexattr(ctxt, string) syscall.Errno { return syscall.EPERM }

// Create is refused.
func (*unchangeable) Create(ctxt, string, uint32, uint32, *fuse.EntryOut) (*gofs.Inode, gofs.FileHandle, uint32, syscall.Errno) {
	return nil, nil, 0, syscall.EPERM
}

// Mkdir is refused.
func (*unchangeable) Mkdir(ctxt, string, uint32, *fuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	return nil, syscall.EPERM
}

// Mknod is refused.
func (*unchangeable) Mknod(ctxt, string, uint32, uint32, *fuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	return nil, syscall.EPERM
}

// Symlink is refused.
func (*unchangeable) Symlink(ctxt, string, string, *fuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	return nil, syscall.EPERM
}

// Link is refused.
func (*unchangeable) Link(ctxt, gofs.InodeEmbedder, string, *fuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	return nil, syscall.EPERM
}

// Unlink is refused.
func (*unchangeable) Unlink(ctxt, string) syscall.Errno { return syscall.EPERM }

// Rmdir is refused.
func (*unchangeable) Rmdir(ctxt, string) syscall.Errno { return syscall.EPERM }

// Rename is refused.
func (*unchangeable) Rename(ctxt, string, gofs.InodeEmbedder, string, uint32) syscall.Errno {
	return syscall.EPERM
}

// Ioctl is refused as on every file of the mount.
func (*unchangeable) Ioctl(ctxt, gofs.FileHandle, uint32, uint64, []byte, []byte) (int32, syscall.Errno) {
	return 0, syscall.ENOTTY
}
