package qcow2

import (
	"encoding/binary"
	"slices"
)

// write is bytes that are to be written to a file.
type write struct {
	off  int64
	data []byte
}

// table is a table of an image, or a block of one, that is being changed in
// memory: an L2 table, a refcount block, the refcount table.
type table struct {
	off   int64 // in the file
	data  []byte
	fresh bool           // it is not in the file yet, or nothing leads to it
	dirty map[int64]bool // sectors that differ from the file's
}

func newTable(off int64, data []byte, fresh bool) *table {
	return &table{off: off, data: data, fresh: fresh, dirty: map[int64]bool{}}
}

// touch notes that bytes at off were changed. They lie in one sector, as every
// entry of every table does, so that a power cut leaves the old or the new entry.
func (t *table) touch(off int64) { t.dirty[off/sectorSize] = true }

func (t *table) get64(i int64) uint64 { return binary.BigEndian.Uint64(t.data[i*8:]) }

func (t *table) put64(i int64, v uint64) {
	if t.get64(i) != v {
		binary.BigEndian.PutUint64(t.data[i*8:], v)
		t.touch(i * 8)
	}
}

// sector is what makes one sector of the file's table equal to this one's.
func (t *table) sector(n int64) write {
	from, to := n*sectorSize, min((n+1)*sectorSize, int64(len(t.data)))
	return write{t.off + from, t.data[from:to]}
}

// writes are what makes the file's table equal to this one: all of a fresh
// table, otherwise the sectors that were touched.
func (t *table) writes() []write {
	if t.fresh {
		return []write{{t.off, t.data}}
	}
	var sectors []int64
	for s := range t.dirty {
		sectors = append(sectors, s)
	}
	slices.Sort(sectors)
	var all []write
	for i := 0; i < len(sectors); {
		n := i + 1
		for n < len(sectors) && sectors[n] == sectors[n-1]+1 {
			n++
		}
		from, to := sectors[i]*sectorSize, min((sectors[n-1]+1)*sectorSize, int64(len(t.data)))
		all = append(all, write{t.off + from, t.data[from:to]})
		i = n
	}
	return all
}
