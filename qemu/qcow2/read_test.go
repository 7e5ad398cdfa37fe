package qcow2

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

func TestReadHeader(t *testing.T) {
	for _, c := range headerCases {
		t.Run(c.name, func(t *testing.T) {
			b := c.bytes()
			h, err := ReadHeader(bytes.NewReader(b), int64(len(b)))
			if !errors.Is(err, c.group) {
				t.Fatalf("got error %v, want %v", err, c.group)
			}
			if (h == nil) != (c.group == ErrNotQcow2) {
				t.Fatalf("got header %v with error %v", h, err)
			}
			if h != nil && h.BackingName != c.back {
				t.Errorf("got backing name %q, want %q", h.BackingName, c.back)
			}
		})
	}
}

// An I/O error must never look like a bad image: the file might be sound, and
// the child of anything.
func TestReadHeaderPassesReadErrors(t *testing.T) {
	broken := errors.New("broken disk")
	d := newDraft(parent)
	d.name(40000, parent)
	for _, limit := range []int64{0, firstRead} {
		_, err := ReadHeader(&failingReader{bytes.NewReader(d), limit, broken}, int64(len(d)))
		if !errors.Is(err, broken) {
			t.Errorf("reads beyond %d fail: got error %v", limit, err)
		}
		var format *FormatError
		if errors.As(err, &format) {
			t.Errorf("reads beyond %d fail: got a format error %v", limit, err)
		}
	}
}

// A file that shrinks while it is read is a truncated one, not an I/O error.
func TestReadHeaderOfShrinkingFile(t *testing.T) {
	d := newDraft(parent)
	h, err := ReadHeader(bytes.NewReader(d[:300]), int64(len(d)))
	if !errors.Is(err, ErrTruncated) || h == nil || !h.BackingLost {
		t.Errorf("got %+v, %v", h, err)
	}
}

func TestReadHeaderReadsOnce(t *testing.T) {
	d := newDraft(parent)
	r := &countingReader{r: bytes.NewReader(d)}
	if _, err := ReadHeader(r, int64(len(d))); err != nil {
		t.Fatal(err)
	}
	if r.calls != 1 || r.bytes != firstRead {
		t.Errorf("got %d reads of %d bytes, want one of %d", r.calls, r.bytes, firstRead)
	}
}

type failingReader struct {
	r     io.ReaderAt
	limit int64
	err   error
}

func (r *failingReader) ReadAt(b []byte, off int64) (int, error) {
	if off+int64(len(b)) > r.limit {
		return 0, r.err
	}
	return r.r.ReadAt(b, off)
}

type countingReader struct {
	r     io.ReaderAt
	calls int
	bytes int64
}

func (r *countingReader) ReadAt(b []byte, off int64) (int, error) {
	r.calls++
	r.bytes += int64(len(b))
	return r.r.ReadAt(b, off)
}
