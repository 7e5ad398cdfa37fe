package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// createScratch makes the scratch file, for our eyes only until it gets the
// child's owner and mode. One that is there was left by a run that was cut off.
func (w *rebase) createScratch(context.Context) error {
	w.opts.Step("REBASE:SCRATCH")
	if err := w.unlinkScratch(); err != nil {
		return err
	}
	const flags = unix.O_RDWR | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(int(w.dir.Fd()), w.job.Scratch.Base(), flags, 0o600)
	if err != nil {
		return fmt.Errorf("create %s: %w", w.job.Scratch, err)
	}
	w.scratch = os.NewFile(uintptr(fd), w.job.Scratch.Base())
	return nil
}

// removeScratch removes the scratch file after an error, if it was created.
func (w *rebase) removeScratch() error {
	if w.scratch == nil {
		return nil
	}
	return w.unlinkScratch()
}

func (w *rebase) unlinkScratch() error {
	err := unix.Unlinkat(int(w.dir.Fd()), w.job.Scratch.Base(), 0)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove %s: %w", w.job.Scratch, err)
	}
	return nil
}

// copyChild fills the scratch file: shared extents where the file system has
// them, a sparse copy elsewhere.
func (w *rebase) copyChild(ctx context.Context) error {
	switch err := unix.IoctlFileClone(int(w.scratch.Fd()), int(w.child.Fd())); {
	case err == nil:
		return w.checkSpace(0)
	case !cannotShare(err):
		return fmt.Errorf("clone %s: %w", w.job.Child, err)
	}
	st, err := stat(w.child)
	if err != nil {
		return err
	}
	if err := w.checkSpace(st.Blocks * 512); err != nil {
		return err
	}
	if err := copySparse(ctx, w.scratch, w.child, st.Size); err != nil {
		return fmt.Errorf("copy %s: %w", w.job.Child, err)
	}
	return nil
}

// cannotShare reports an error that means "not here" and not that something is
// wrong, from FICLONE and copy_file_range.
func cannotShare(err error) bool {
	for _, e := range []error{unix.EXDEV, unix.EINVAL, unix.ENOSYS, unix.EOPNOTSUPP, unix.ENOTTY, unix.EPERM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// copySparse copies size bytes and leaves holes where from has holes.
func copySparse(ctx context.Context, to, from *os.File, size int64) error {
	if err := to.Truncate(size); err != nil {
		return err
	}
	for off := int64(0); off < size; {
		data, err := unix.Seek(int(from.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // a hole up to the end
		}
		if err != nil {
			data = off // a file system that knows no holes: all is data
		}
		hole, err := unix.Seek(int(from.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			hole = size
		}
		if hole = min(hole, size); hole <= data {
			return fmt.Errorf("the file shrank: %w", io.ErrUnexpectedEOF)
		}
		if err := copyRange(ctx, to, from, data, hole); err != nil {
			return err
		}
		off = hole
	}
	return nil
}

// copyChunk is how much is copied before a cancelled context is noticed, and
// maxUnsynced how much before it is made durable: a sync cannot be ended, and one of
// all of a large child would take as long as the copy.
const (
	copyChunk   = 1 << 20
	maxUnsynced = 64 << 20
)

func copyRange(ctx context.Context, to, from *os.File, off, end int64) error {
	for unsynced := int64(0); off < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := copySome(to, from, off, min(end-off, copyChunk))
		if err != nil {
			return err
		}
		off += n
		if unsynced += n; unsynced >= maxUnsynced {
			unsynced = 0
			if err := to.Sync(); err != nil {
				return err
			}
		}
	}
	return nil
}

// copySome copies at most n bytes.
func copySome(to, from *os.File, off, n int64) (int64, error) {
	in, out := off, off
	m, err := unix.CopyFileRange(int(from.Fd()), &in, int(to.Fd()), &out, int(n), 0)
	if err == nil && m > 0 {
		return int64(m), nil
	}
	if err != nil && !cannotShare(err) && !errors.Is(err, unix.EINTR) {
		return 0, err
	}
	// Not here, or nothing at once (some file systems answer 0): by hand.
	return copyBytes(to, from, off, n)
}

func copyBytes(to, from *os.File, off, n int64) (int64, error) {
	m, err := io.Copy(io.NewOffsetWriter(to, off), io.NewSectionReader(from, off, n))
	if err == nil && m < n {
		err = io.ErrUnexpectedEOF
	}
	return m, err
}

// syncScratch makes the scratch durable. Its descriptor is older than the first
// write of qemu-img, so an error of any write since is reported here, even one
// that qemu-img was told and did not pass on.
func (w *rebase) syncScratch(context.Context) error {
	if err := w.scratch.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", w.job.Scratch, err)
	}
	return nil
}
