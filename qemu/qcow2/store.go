package qcow2

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// writeAt writes all of p, also when a signal comes in between.
func writeAt(f File, p []byte, off int64) error {
	for {
		n, err := f.WriteAt(p, off)
		switch {
		case err == nil && n == len(p):
			return nil
		case err == nil && n == 0:
			err = unix.EIO // a disk that takes nothing, and says nothing
		case err == nil || errors.Is(err, unix.EINTR):
			p, off = p[n:], off+int64(n)
			continue
		}
		return fmt.Errorf("write %d bytes at %d: %w", len(p), off, err)
	}
}

// copyChunk is how much the kernel is asked to copy where no bytes are moved, and
// bufferSize how much is moved at once, by whomever: so long it takes at most until
// a cancelled context is noticed.
const (
	copyChunk  = 8 << 20
	bufferSize = 1 << 20
)

// maxUnsynced is how much is moved before it is made durable. A sync cannot be
// ended, and with all of a batch to be written it would take as long as the batch.
const maxUnsynced = 64 << 20

// pace is told of each number of bytes before they are moved and after.
type pace struct {
	limit    func(ctx context.Context, n int64) error // waits; nil for none
	progress func(n int64)
	unmoved  bool // what the kernel copies moves no bytes
}

func (p pace) before(ctx context.Context, n int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if p.limit == nil {
		return nil
	}
	return p.limit(ctx, n)
}

// chunk is how much is copied at once: with a limit less, so that it is smooth.
func (p pace) chunk() int64 {
	if p.limit != nil || !p.unmoved {
		return bufferSize
	}
	return copyChunk
}

// copier copies from layers to a file, in the kernel where that is possible.
type copier struct {
	file     File
	fresh    int64 // from here on the file is a hole until it is written
	byHand   bool  // the kernel said that it cannot
	buffer   []byte
	calls    int
	unsynced int64 // bytes that were written since the last sync
	pace     pace
}

// copy copies c from im's file. Behind the end of that there are zeros.
func (k *copier) copy(ctx context.Context, im *Image, c copying) error {
	for c.n > 0 {
		n := min(c.n, k.pace.chunk())
		if err := k.pace.before(ctx, n); err != nil {
			return err
		}
		n, err := k.some(im, c, n)
		if err != nil {
			return err
		}
		k.pace.progress(n)
		if k.byHand || !k.pace.unmoved {
			if err := k.wrote(n); err != nil {
				return err
			}
		}
		c.src, c.dst, c.n = c.src+n, c.dst+n, c.n-n
	}
	return nil
}

// wrote syncs the file when much of it was written. Nothing leads there yet, so it
// does no harm that it comes early.
func (k *copier) wrote(n int64) error {
	if k.unsynced += n; k.unsynced < maxUnsynced {
		return nil
	}
	k.unsynced = 0
	return syncFile(k.file)
}

// some copies at most n bytes, at least one.
func (k *copier) some(im *Image, c copying, n int64) (int64, error) {
	have := im.fileSize - c.src
	if have <= 0 {
		return n, k.zeros(c.dst, n)
	}
	n = min(n, have)
	if !k.byHand {
		k.calls++
		m, err := k.file.CopyRange(c.dst, im.src, c.src, n)
		switch {
		case err == nil && m > 0, errors.Is(err, unix.EINTR) && m > 0:
			return m, nil
		case errors.Is(err, unix.EINTR):
			return k.some(im, c, n)
		case cannotCopy(err):
			k.byHand = true
		case err != nil:
			return 0, fmt.Errorf("copy %d bytes to %d: %w", n, c.dst, err)
		}
		// Nothing was copied and nothing said: some file systems do that.
	}
	return k.through(im, c, n)
}

// cannotCopy are the answers of copy_file_range(2) that mean "not here", and
// nothing about the files.
func cannotCopy(err error) bool {
	for _, e := range []error{unix.EXDEV, unix.EINVAL, unix.ENOSYS, unix.EOPNOTSUPP, unix.EPERM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// through copies through a buffer.
func (k *copier) through(im *Image, c copying, n int64) (int64, error) {
	p := k.space(n)
	if err := im.readData(p, c.src); err != nil {
		return 0, err
	}
	return int64(len(p)), writeAt(k.file, p, c.dst)
}

func (k *copier) space(n int64) []byte {
	if k.buffer == nil {
		k.buffer = make([]byte, bufferSize)
	}
	return k.buffer[:min(n, bufferSize)]
}

// zeros makes a range of the file zeros, where it is not a hole already.
func (k *copier) zeros(off, n int64) error {
	if off >= k.fresh {
		return nil
	}
	p := k.space(min(n, k.fresh-off))
	clear(p)
	for end := min(off+n, k.fresh); off < end; off += int64(len(p)) {
		p = p[:min(int64(len(p)), end-off)]
		if err := writeAt(k.file, p, off); err != nil {
			return err
		}
	}
	return nil
}
