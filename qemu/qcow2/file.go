package qcow2

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Source is a file that is only read: a layer that goes away or stays.
type Source interface {
	io.ReaderAt
	Size() (int64, error)
}

// File is an image file that is changed. Everything that reaches the disk goes
// through it, which is where tests cut the power and inject faults.
type File interface {
	Source
	io.WriterAt
	Truncate(size int64) error

	// Sync makes all that was written durable, the file's size included. After
	// an error nothing is known about what was written since the last success,
	// and no later success says anything about it.
	Sync() error

	// CopyRange has the kernel copy n bytes of src to this file, as
	// copy_file_range(2): it may copy less, and copies nothing at the end of src.
	// EXDEV, EINVAL, ENOSYS and EOPNOTSUPP say that it cannot be done this way.
	CopyRange(off int64, src Source, srcOff, n int64) (int64, error)
}

// OSFile is a File on disk.
type OSFile struct{ *os.File }

var _ File = OSFile{}

// Size is the file's length in bytes.
func (f OSFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// CopyRange is copy_file_range(2). A source that is no OSFile is EXDEV.
func (f OSFile) CopyRange(off int64, src Source, srcOff, n int64) (int64, error) {
	from, ok := src.(OSFile)
	if !ok {
		return 0, unix.EXDEV
	}
	m, err := unix.CopyFileRange(int(from.Fd()), &srcOff, int(f.Fd()), &off, int(n), 0)
	return int64(m), err
}

// Evict drops what the page cache has of a range that was synced, so that the
// next read comes from the disk. It is advice: nothing depends on it.
func (f OSFile) Evict(off, n int64) { _ = unix.Fadvise(int(f.Fd()), off, n, unix.FADV_DONTNEED) }

// NextData asks the file system for holes; one that knows none has none.
func (f OSFile) NextData(off int64) (start, end int64, err error) {
	size, err := f.Size()
	if err != nil || off >= size {
		return size, size, err
	}
	start, err = unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO): // a hole up to the end
		return size, size, nil
	case err != nil:
		return off, size, nil // all of it can be read as data
	}
	if end, err = unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE); err != nil {
		end = size
	}
	return start, end, nil
}
