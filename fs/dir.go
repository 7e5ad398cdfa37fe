package fs

import (
	"os"
	"syscall"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
)

// Lookup implements the look-up of one name.
func (n *node) Lookup(ctx ctxt, name string, out *fuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	if n.isControl(name) {
		return n.mount.control.enter(ctx, out)
	}
	p, errno := n.child(name)
	if errno != 0 {
		return nil, errno
	}
	return n.enter(ctx, p, out)
}

// directory is an open directory: its names as they were when it was opened.
type directory struct {
	gofs.FileReaddirenter
	stream gofs.DirStream
	file   *os.File
}

var (
	_ gofs.FileSeekdirer    = (*directory)(nil)
	_ gofs.FileReleasedirer = (*directory)(nil)
	_ gofs.FileFsyncdirer   = (*directory)(nil)
)

// OpendirHandle implements opendir(3): the newest backups first, children
// before the images they stand on, so that what deletes in this order deletes
// from the tail of every chain.
func (n *node) OpendirHandle(ctxt, uint32) (gofs.FileHandle, uint32, syscall.Errno) {
	p, ok := n.path()
	if !ok {
		return nil, 0, syscall.ENOENT
	}
	if n.IsRoot() && !n.mount.presence.holds(n.mount.source) {
		return nil, 0, syscall.EIO
	}
	file, err := n.mount.source.OpenDir(p)
	if err != nil {
		return nil, 0, n.mount.missing(err)
	}
	list, err := n.list(p, file)
	if err != nil {
		file.Close() // only read from
		return nil, 0, errnoOf(err)
	}
	stream := gofs.NewListDirStream(list)
	return &directory{stream.(gofs.FileReaddirenter), stream, file}, 0, 0
}

// list reads the names of a directory in the order in which they are shown.
func (n *node) list(p chain.Path, file *os.File) ([]fuse.DirEntry, error) {
	found, err := file.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	entries := make(map[string]fuse.DirEntry, len(found))
	names := make([]string, 0, len(found))
	for _, e := range found {
		name := e.Name()
		if chain.IsHidden(name) {
			continue
		}
		names = append(names, name)
		entries[name] = fuse.DirEntry{Name: name, Mode: typeBits(e.Type())}
	}
	n.mount.tree.View(func(g *chain.Graph) { g.NewestFirst(p, names) })
	list := make([]fuse.DirEntry, 0, len(names)+2)
	list = append(list, fuse.DirEntry{Name: ".", Mode: unix.S_IFDIR}, fuse.DirEntry{Name: "..", Mode: unix.S_IFDIR})
	for i, name := range names {
		entry := entries[name]
		if len(names) >= sortedByInode {
			entry.Ino = uint64(i + 1)
		}
		list = append(list, entry)
	}
	return list, nil
}

// sortedByInode is the number of names from which on each gets an inode number
// of its own in a listing, in the order of the listing. GNU rm, find and du (fts
// of gnulib) keep that order in directories of up to 10,000 names, and sort
// larger ones by these numbers, which nobody takes for those of stat(2): for a
// mount point they differ as well.
const sortedByInode = 10_000

func typeBits(m os.FileMode) uint32 {
	switch m.Type() {
	case os.ModeDir:
		return unix.S_IFDIR
	case os.ModeSymlink:
		return unix.S_IFLNK
	case os.ModeNamedPipe:
		return unix.S_IFIFO
	case os.ModeSocket:
		return unix.S_IFSOCK
	case os.ModeDevice:
		return unix.S_IFBLK
	case os.ModeDevice | os.ModeCharDevice:
		return unix.S_IFCHR
	}
	return unix.S_IFREG
}

// Seekdir implements seekdir(3).
func (d *directory) Seekdir(ctx ctxt, off uint64) syscall.Errno {
	return d.stream.(gofs.FileSeekdirer).Seekdir(ctx, off)
}

// Releasedir implements closedir(3).
func (d *directory) Releasedir(ctxt, uint32) {
	d.file.Close() // only read from
}

// Fsyncdir implements fsync(2) of a directory.
func (d *directory) Fsyncdir(ctxt, uint32) syscall.Errno { return errnoOf(d.file.Sync()) }

// Rmdir implements rmdir(2).
func (n *node) Rmdir(ctx ctxt, name string) syscall.Errno {
	p, errno := n.toChange(name)
	if errno != 0 {
		return errno
	}
	errno = n.at(name, func(dir int, name string) error { return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR) })
	if errno == syscall.ENOTEMPTY || errno == syscall.EEXIST {
		return n.mount.removeHiding(ctx, p)
	}
	return errno
}

// removeHiding removes a directory in which nothing is left for its user: what
// is in it was deleted, and lies there until its children have absorbed it.
func (m *mount) removeHiding(ctx ctxt, p chain.Path) syscall.Errno {
	only, err := m.source.OnlyHidden(p)
	if err != nil {
		return m.deleteErrno(p, err)
	}
	if !only {
		return syscall.ENOTEMPTY
	}
	err = m.tree.Rmdir(ctx, p)
	m.tell("rmdir", p, err)
	return m.deleteErrno(p, err)
}

// at calls f with the directory that holds a name of n.
func (n *node) at(name string, f func(dir int, name string) error) syscall.Errno {
	p, errno := n.child(name)
	if errno != 0 {
		return errno
	}
	dir, base, release, err := n.mount.source.At(p)
	if err != nil {
		return errnoOf(err)
	}
	defer release()
	return errnoOf(f(dir, base))
}
