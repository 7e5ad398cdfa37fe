package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

var update = flag.Bool("update", false, "write the fuzz corpus from headerCases")

const corpus = "testdata/fuzz/FuzzReadHeader"

// fuzzSize cuts corpus entries: nothing behind it is ever read with so few
// clusters, and the file's size is a second argument.
const fuzzSize = 1024

// The corpus holds every case of the table, so that a fuzzer starts from all of
// them and a past bug stays caught.
func TestCorpusHoldsEveryCase(t *testing.T) {
	for _, c := range headerCases {
		b := c.bytes()
		want := fmt.Sprintf("go test fuzz v1\n[]byte(%q)\nint64(%d)\n", b[:min(len(b), fuzzSize)], len(b))
		name := filepath.Join(corpus, c.name)
		if *update {
			if err := os.MkdirAll(corpus, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != want {
			t.Errorf("%s differs; run with -update", name)
		}
	}
}

// sparse is a file of size bytes that holds b and then zeros.
type sparse struct {
	b    []byte
	size int64
}

func (s sparse) ReadAt(p []byte, off int64) (int, error) {
	all := bytes.NewReader(s.b)
	clear(p)
	if off < int64(len(s.b)) {
		_, _ = all.ReadAt(p, off) // what it does not fill are the zeros behind b
	}
	return len(p), nil
}

func FuzzReadHeader(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		size = max(size, int64(len(b)))
		r := &countingReader{r: sparse{b, size}}
		h, err := ReadHeader(r, size)
		if r.calls > 4 || r.bytes > 3<<20 {
			t.Errorf("%d reads of %d bytes", r.calls, r.bytes)
		}
		switch isMagic := len(b) >= 4 && string(b[:4]) == Magic; {
		case !isMagic && (h != nil || err != ErrNotQcow2):
			t.Fatalf("no magic: got %v, %v", h, err)
		case !isMagic:
			return
		case h == nil:
			t.Fatalf("no header: %v", err)
		}
		checkBackingName(t, h, b)
		if err == nil {
			checkSound(t, h, size)
			return
		}
		var format *FormatError
		if !errors.As(err, &format) {
			t.Errorf("not a format error: %v", err)
		}
	})
}

// checkBackingName: a name inside the file is found, however bad the rest is.
func checkBackingName(t *testing.T, h *Header, b []byte) {
	if len(b) < 20 {
		return
	}
	off, n := binary.BigEndian.Uint64(b[8:]), uint64(binary.BigEndian.Uint32(b[16:]))
	if off == 0 || n > maxBackingName || off > uint64(len(b)) || n > uint64(len(b))-off {
		return
	}
	if want := string(b[off : off+n]); h.BackingName != want || h.BackingLost {
		t.Errorf("got backing name %q (lost: %v), want %q", h.BackingName, h.BackingLost, want)
	}
}

func checkSound(t *testing.T, h *Header, size int64) {
	if h.ClusterBits < 9 || h.ClusterBits > 21 || h.BackingLost || len(h.BackingName) > 1023 {
		t.Errorf("accepted %+v", h)
	}
	if h.L1Offset+uint64(h.L1Size)*8 > uint64(size) || h.L1Size > 4<<20 {
		t.Errorf("accepted an L1 table outside the file: %+v", h)
	}
	if h.RefcountTableOffset+uint64(h.RefcountTableClusters)<<h.ClusterBits > uint64(size) {
		t.Errorf("accepted a refcount table outside the file: %+v", h)
	}
}
