package qcow2

import (
	"errors"
	"fmt"
	"io"
)

// firstRead is enough for the header, the extensions and the backing name of
// any image that QEMU makes: one read per image when a tree is scanned.
const firstRead = 4096

// maxLostName is how long a backing name is read although it is not valid:
// PATH_MAX, beyond which no file can be opened by it.
const maxLostName = 4096

// ReadHeader reads the header of a file of size bytes.
//
// A nil Header means that the file is no qcow2 image (ErrNotQcow2), or that
// reading failed (the error of r). With any other error the Header holds what
// could be read, the backing name included.
func ReadHeader(r io.ReaderAt, size int64) (*Header, error) {
	in := &input{r: r, size: size}
	if err := in.fill(firstRead); err != nil {
		return nil, err
	}
	if len(in.buf) < len(Magic) || string(in.buf[:len(Magic)]) != Magic {
		return nil, ErrNotQcow2
	}
	fixed := make([]byte, max(len(in.buf), 112))
	copy(fixed, in.buf)
	h := decode(fixed)

	nameErr, err := h.readBacking(in)
	if err != nil {
		return nil, err
	}
	extErr, err := h.readExtensions(in)
	if err != nil {
		return nil, err
	}
	return h, firstError(h.validate(in.size), nameErr, extErr)
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// input reads a file's beginning and keeps it.
type input struct {
	r    io.ReaderAt
	size int64 // shrinks when the file turns out to be shorter
	buf  []byte
}

// fill makes the first n bytes of the file available in buf, or all there are.
func (in *input) fill(n int64) error {
	n = min(n, in.size)
	if n <= int64(len(in.buf)) {
		return nil
	}
	b, err := in.at(0, n)
	if err != nil {
		return err
	}
	in.buf = b
	if int64(len(b)) < n {
		in.size = int64(len(b))
	}
	return nil
}

// at reads n bytes at off, fewer where the file ends.
func (in *input) at(off, n int64) ([]byte, error) {
	if end := off + n; end <= int64(len(in.buf)) {
		return in.buf[off:end], nil
	}
	b := make([]byte, n)
	got, err := in.r.ReadAt(b, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read %d bytes at %d: %w", n, off, err)
	}
	return b[:got], nil
}

// readBacking reads the backing name wherever the header says it is, valid or
// not: only what lies outside the file, or is longer than any name, is lost.
// The first error is about the format, the second about reading.
func (h *Header) readBacking(in *input) (format, reading error) {
	if h.BackingOffset == 0 {
		return nil, nil
	}
	off, n := h.BackingOffset, uint64(h.BackingSize)
	if off > uint64(in.size) || n > uint64(in.size)-off {
		h.BackingLost = true
		return truncated("the backing name lies behind the end of the file"), nil
	}
	if n > maxLostName {
		h.BackingLost = true
		return corrupt("the backing name has %d bytes", n), nil
	}
	b, err := in.at(int64(off), int64(n))
	if err != nil {
		return nil, err
	}
	if uint64(len(b)) < n {
		h.BackingLost = true
		return truncated("the backing name lies behind the end of the file"), nil
	}
	h.BackingName = string(b)
	return nil, nil
}
