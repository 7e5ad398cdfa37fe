package qcow2

import (
	"bytes"
	"io"

	"golang.org/x/sys/unix"
)

// memFile is a File in memory. A file that would become longer than most is a
// full disk.
type memFile struct {
	b    []byte
	most int64
}

var _ File = (*memFile)(nil)

func newMemFile(b []byte) *memFile { return &memFile{bytes.Clone(b), 8 << 20} }

func (f *memFile) Size() (int64, error) { return int64(len(f.b)), nil }

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(f.b)) {
		return 0, io.EOF
	}
	n := copy(p, f.b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	if end := off + int64(len(p)); end > int64(len(f.b)) {
		if err := f.Truncate(end); err != nil {
			return 0, err
		}
	}
	return copy(f.b[off:], p), nil
}

func (f *memFile) Truncate(size int64) error {
	switch has := int64(len(f.b)); {
	case size > f.most:
		return unix.ENOSPC
	case size <= has:
		f.b = f.b[:size:size] // what is behind is zeros when it grows again
	default:
		f.b = append(f.b, make([]byte, size-has)...)
	}
	return nil
}

func (f *memFile) Sync() error { return nil }

func (f *memFile) CopyRange(off int64, src Source, srcOff, n int64) (int64, error) {
	from, ok := src.(*memFile)
	if !ok {
		return 0, unix.EXDEV
	}
	n = max(min(n, int64(len(from.b))-srcOff), 0)
	m, err := f.WriteAt(from.b[srcOff:srcOff+n], off)
	return int64(m), err
}
