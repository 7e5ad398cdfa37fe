package fs

import (
	"sync/atomic"
	"syscall"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
)

// handle is an open regular file.
type handle struct {
	node   *node
	fd     int
	key    fileKey
	writes bool        // it was opened for writing, and counts as a writer
	dirty  atomic.Bool // it was written to since it was last read again
}

// The operations on an open file that the mount supports.
var (
	_ gofs.FileReader    = (*handle)(nil)
	_ gofs.FileWriter    = (*handle)(nil)
	_ gofs.FileFlusher   = (*handle)(nil)
	_ gofs.FileFsyncer   = (*handle)(nil)
	_ gofs.FileReleaser  = (*handle)(nil)
	_ gofs.FileLseeker   = (*handle)(nil)
	_ gofs.FileAllocater = (*handle)(nil)
)

// notPassed are the flags of open(2) that are not given to the tree: what the
// kernel has done already, what is done here after the guards have agreed
// (O_TRUNC), and what would put conditions on our buffers (O_DIRECT). With
// O_APPEND the kernel tells the offset of each write.
const notPassed = unix.O_CREAT | unix.O_EXCL | unix.O_TRUNC | unix.O_APPEND | unix.O_DIRECT | unix.O_NOCTTY

func writes(flags uint32) bool {
	return flags&unix.O_ACCMODE != unix.O_RDONLY || flags&unix.O_TRUNC != 0
}

// Open implements open(2).
func (n *node) Open(ctx ctxt, flags uint32) (gofs.FileHandle, uint32, syscall.Errno) {
	h, errno := n.openHandle(ctx, flags)
	if errno != 0 {
		return nil, 0, errno
	}
	return h, 0, 0
}

func (n *node) openHandle(ctx ctxt, flags uint32) (*handle, syscall.Errno) {
	p, ok := n.path()
	if !ok {
		return nil, syscall.ENOENT
	}
	return n.openAt(ctx, p, flags)
}

// openAt opens the file at p. A writer is registered before the guard is asked:
// an operation that starts in between meets one of the two. O_NONBLOCK: a FIFO
// that took the file's place on the tree must not stop us, and its opener, for ever.
func (n *node) openAt(ctx ctxt, p chain.Path, flags uint32) (*handle, syscall.Errno) {
	if writes(flags) && chain.InHidden(p) {
		return nil, syscall.EPERM
	}
	mode := int(flags)&^notPassed | unix.O_NOFOLLOW | unix.O_NONBLOCK
	if flags&unix.O_TRUNC != 0 && flags&unix.O_ACCMODE == unix.O_RDONLY {
		mode = mode&^unix.O_ACCMODE | unix.O_RDWR
	}
	fd, err := n.mount.source.OpenPath(p, mode, 0)
	if err != nil {
		return nil, errnoOf(err)
	}
	st, err := statx(fd)
	if err != nil {
		unix.Close(fd) // nothing was written
		return nil, errnoOf(err)
	}
	if cacheable(st) { // not a regular file: it is not what the kernel asked for
		unix.Close(fd)
		return nil, syscall.ESTALE
	}
	h := &handle{node: n, fd: fd, key: keyOf(st), writes: writes(flags)}
	n.keep(h)
	n.mount.openedBy(h).add(h.key)
	if h.writes {
		if err := n.mount.tree.CheckWrite(ctx, p, st.Ino, st.Nlink, n.mount.fresh.has(n.mount.stable(st))); err != nil {
			n.mount.tell("open for writing", p, err)
			n.closeHandle(h)
			return nil, errnoOf(err)
		}
	}
	if flags&unix.O_TRUNC != 0 {
		h.dirty.Store(true)
		if err := unix.Ftruncate(fd, 0); err != nil {
			n.closeHandle(h)
			return nil, errnoOf(err)
		}
	}
	return h, 0
}

// openedBy is where a handle is counted.
func (m *mount) openedBy(h *handle) *counts {
	if h.writes {
		return &m.writers
	}
	return &m.readers
}

func (n *node) keep(h *handle) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.open == nil {
		n.open = map[*handle]bool{}
	}
	n.open[h] = true
}

// closeHandle closes h and reads again what was written through it.
func (n *node) closeHandle(h *handle) syscall.Errno {
	n.mu.Lock()
	delete(n.open, h)
	n.mu.Unlock()
	n.mount.openedBy(h).remove(h.key)
	err := unix.Close(h.fd)
	h.lookAgain()
	return errnoOf(err)
}

// lookAgain reads the file's header again if it was written to.
func (h *handle) lookAgain() {
	if !h.writes || !h.dirty.Swap(false) {
		return
	}
	if p, ok := h.node.path(); ok {
		h.node.mount.changed(p)
	}
}

// changed reads a file again. An error is no error of the caller's, whose bytes
// are written: the next survey meets it again, and refuses until it is gone.
func (m *mount) changed(p chain.Path) {
	if m.opts.ReadOnly {
		return
	}
	if err := m.tree.Changed(p); err != nil {
		m.log.Warn("a file that was written could not be indexed", "path", p, "err", err)
	}
}

// Read implements read(2).
func (h *handle) Read(_ ctxt, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	return fuse.ReadResultFd(uintptr(h.fd), off, len(dest)), 0
}

// Write implements write(2): all of data or an error.
func (h *handle) Write(_ ctxt, data []byte, off int64) (uint32, syscall.Errno) {
	h.dirty.Store(true)
	done := 0
	for done < len(data) {
		n, err := unix.Pwrite(h.fd, data[done:], off+int64(done))
		switch {
		case err == unix.EINTR:
		case err != nil && done == 0:
			return 0, errnoOf(err)
		case err != nil || n == 0:
			return uint32(done), 0 // short, and the next write meets the error
		default:
			done += n
		}
	}
	return uint32(done), 0
}

// Flush implements the part of close(2) that can report an error: network file
// systems report failed writes here.
func (h *handle) Flush(ctxt) syscall.Errno {
	fd, err := unix.FcntlInt(uintptr(h.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.Close(fd)
	}
	h.lookAgain()
	return errnoOf(err)
}

// Release implements the last close of an open file.
func (h *handle) Release(ctxt) syscall.Errno { return h.node.closeHandle(h) }

// Fsync implements fsync(2) and fdatasync(2).
func (h *handle) Fsync(_ ctxt, flags uint32) syscall.Errno {
	const dataOnly = 1 // FUSE_FSYNC_FDATASYNC of linux/fuse.h
	if flags&dataOnly != 0 {
		return errnoOf(unix.Fdatasync(h.fd))
	}
	return errnoOf(unix.Fsync(h.fd))
}

// Lseek implements SEEK_DATA and SEEK_HOLE.
func (h *handle) Lseek(_ ctxt, off uint64, whence uint32) (uint64, syscall.Errno) {
	at, err := unix.Seek(h.fd, int64(off), int(whence))
	return uint64(at), errnoOf(err)
}

// Allocate implements fallocate(2).
func (h *handle) Allocate(_ ctxt, off, size uint64, mode uint32) syscall.Errno {
	h.dirty.Store(true)
	return errnoOf(unix.Fallocate(h.fd, mode, int64(off), int64(size)))
}

// CopyFileRange implements copy_file_range(2).
func (n *node) CopyFileRange(_ ctxt, in gofs.FileHandle, offIn uint64, _ *gofs.Inode, out gofs.FileHandle, offOut, size, flags uint64) (uint32, syscall.Errno) {
	from, ok1 := in.(*handle)
	to, ok2 := out.(*handle)
	if !ok1 || !ok2 {
		return 0, syscall.EBADF
	}
	to.dirty.Store(true)
	r, w := int64(offIn), int64(offOut)
	done, err := unix.CopyFileRange(from.fd, &r, to.fd, &w, int(min(size, 1<<30)), int(flags))
	return uint32(done), errnoOf(err)
}
