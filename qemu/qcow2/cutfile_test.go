package qcow2

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
)

var errCut = errors.New("injected")

// cutFile is the first cluster of a file of size bytes, the rest of it zeros.
// It tells what was written between syncs, and fails the write or sync number
// failAt (from 1 on), of which the first failSectors sectors got through.
type cutFile struct {
	neverCalled
	cache   []byte // what is read
	disk    []byte // what a power cut leaves
	size    int64
	pending []cutWrite // since the last sync
	trace   []string
	steps   []cutStep

	failAt, failSectors int
}

// neverCalled stands for what a header's change must not call.
type neverCalled interface {
	Truncate(size int64) error
	CopyRange(off int64, src Source, srcOff, n int64) (int64, error)
}

type cutWrite struct {
	off int64
	b   []byte
}

// cutStep is the moment before a write or sync has come back: what is on disk,
// and what may be as well.
type cutStep struct {
	disk    []byte
	pending []cutWrite
}

func newCutFile(cluster0 []byte) *cutFile {
	return &cutFile{cache: bytes.Clone(cluster0), disk: bytes.Clone(cluster0), size: 1 << 40}
}

func (f *cutFile) Size() (int64, error) { return f.size, nil }

func (f *cutFile) ReadAt(b []byte, off int64) (int, error) { return padded(f.cache).ReadAt(b, off) }

func (f *cutFile) WriteAt(b []byte, off int64) (int, error) {
	f.trace = append(f.trace, fmt.Sprintf("write %d+%d", off, len(b)))
	if len(f.trace) == f.failAt {
		n := min(len(b), f.failSectors*sectorSize-int(off%sectorSize))
		f.write(b[:max(n, 0)], off)
		return max(n, 0), errCut
	}
	f.write(b, off)
	return len(b), nil
}

func (f *cutFile) write(b []byte, off int64) {
	copy(f.cache[off:], b)
	f.pending = append(f.pending, cutWrite{off, bytes.Clone(b)})
	f.steps = append(f.steps, cutStep{bytes.Clone(f.disk), slices.Clone(f.pending)})
}

// Sync that fails leaves what Linux leaves: a cache that says otherwise than
// the disk, and nothing that the next sync would write.
func (f *cutFile) Sync() error {
	f.trace = append(f.trace, "sync")
	pending := f.pending
	f.pending = nil
	if len(f.trace) == f.failAt {
		for _, w := range pending {
			n := min(len(w.b), max(0, f.failSectors*sectorSize-int(w.off%sectorSize)))
			copy(f.disk[w.off:], w.b[:n])
		}
		return errCut
	}
	for _, w := range pending {
		copy(f.disk[w.off:], w.b)
	}
	f.steps = append(f.steps, cutStep{bytes.Clone(f.disk), nil})
	return nil
}

func (f *cutFile) Evict(off, n int64) {
	if len(f.pending) == 0 {
		copy(f.cache, f.disk)
	}
}

func (f *cutFile) String() string { return strings.Join(f.trace, ", ") }

// everyCut calls do with each disk that a power cut may leave: at each step all
// subsets of the sectors that were not synced.
func (f *cutFile) everyCut(do func(disk []byte)) {
	for _, s := range f.steps {
		var sectors []cutWrite
		for _, w := range s.pending {
			for len(w.b) > 0 {
				n := min(int64(len(w.b)), sectorSize-w.off%sectorSize)
				sectors = append(sectors, cutWrite{w.off, w.b[:n]})
				w = cutWrite{w.off + n, w.b[n:]}
			}
		}
		for kept := range 1 << len(sectors) {
			disk := bytes.Clone(s.disk)
			for i, w := range sectors {
				if kept>>i&1 != 0 {
					copy(disk[w.off:], w.b)
				}
			}
			do(disk)
		}
	}
}
