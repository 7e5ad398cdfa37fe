package qcow2

import (
	"errors"
	"fmt"
	"reflect"
)

// ErrChanged: somebody else, who asked nobody, changed the child meanwhile.
// It was left as it was found then.
var ErrChanged = errors.New("the file is not as it was left")

// extend makes the file as long as the work can make it, before anything leads to
// what is to come. QEMU asks for a file's length once, when it opens it, and reads
// zeros behind that (block/io.c, bdrv_aligned_preadv): a reader that had opened
// the shorter file, and reads the L2 table when it leads to a new cluster, would
// get zeros in place of data.
func (m *mover) extend() error {
	m.length = m.oldEnd
	if m.total.Clusters == 0 {
		return nil
	}
	m.length = max(m.longest()*m.im.cluster(), m.oldEnd)
	if m.length > offsetMask+sectorSize {
		return fmt.Errorf("the file would be longer than offsets can tell: %w", ErrFallback)
	}
	// All that is new is a hole until it is written, and the last cluster is whole.
	if err := m.file.Truncate(m.length); err != nil {
		return fmt.Errorf("extend the file: %w", err)
	}
	if m.Extended == nil {
		return nil
	}
	return m.Extended()
}

// longest is the most clusters that the file may have when all is done. It may be
// too many, because what is not used is cut off; move gives up beyond it.
func (m *mover) longest() int64 {
	w := m.writer
	n := w.end + m.total.Clusters + min(int64(m.im.header.L1Size), m.total.Clusters)
	if m.total.Compressed > 0 {
		n += m.total.Clusters // where one that is full of references is left for the next
	}
	n += n/w.refs.perBlock() + 2
	if blocks := n/w.refs.perBlock() + 1; blocks > w.refs.entries() {
		// The tables of all times it grows by half: three of the last, each rounded up.
		n += 3*(blocks*3/2*8/m.im.cluster()+1) + 64
	}
	return n + n/w.refs.perBlock() - w.end/w.refs.perBlock()
}

// unchanged looks, before anything is linked or named, whether the file is still
// the one that was worked on: a writer that knows of no locks may have put
// another image in it.
func (m *mover) unchanged() error {
	now, err := Open(m.file)
	if format := (*FormatError)(nil); errors.As(err, &format) || errors.Is(err, ErrNotQcow2) {
		return fmt.Errorf("%w: %w", ErrChanged, err)
	}
	if err != nil {
		return err
	}
	want := *m.im.header
	if t := m.writer.refs.table; t.fresh {
		want.RefcountTableOffset = uint64(t.off)
		want.RefcountTableClusters = uint32(int64(len(t.data)) / m.im.cluster())
	}
	if now.fileSize != m.length {
		return fmt.Errorf("it has %d bytes, had %d: %w", now.fileSize, m.length, ErrChanged)
	}
	got := *now.header
	got.Autoclear, want.Autoclear = 0, 0 // a change of the header clears what is unknown
	if !reflect.DeepEqual(got, want) {
		return fmt.Errorf("another header: %w", ErrChanged)
	}
	return nil
}

// cut gives back what of the file was not needed after all.
func (m *mover) cut() error {
	end := max(m.writer.end*m.im.cluster(), m.oldEnd)
	if end >= m.length {
		return nil
	}
	if err := m.file.Truncate(end); err != nil {
		return fmt.Errorf("cut the file off at %d: %w", end, err)
	}
	m.length = end
	return nil
}
