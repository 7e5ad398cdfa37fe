package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"
)

// census counts what refers to each cluster of an image's file: header, tables,
// data, snapshots, bitmaps. It is what "qemu-img check" does (block/qcow2-refcount.c,
// calculate_refcounts), and decides about every cluster that is changed or freed.
type census struct {
	ctx    context.Context
	im     *Image
	refs   tally
	again  []bool            // refcount table entries that name a block for the second time
	tables map[int64]l2Table // by their offset; its memory is part of what refs may use
	found  Findings
	spare  int64 // clusters before the last one in use that are counted, and nobody's
}

// l2Table is how often L1 tables name an L2 table. It is read once only: a file
// could name one table millions of times.
type l2Table struct {
	active, snapshots uint32
}

func (t l2Table) names() uint64 { return uint64(t.active) + uint64(t.snapshots) }

func newCensus(ctx context.Context, im *Image) *census {
	return &census{ctx: ctx, im: im, refs: newTally(), tables: map[int64]l2Table{}}
}

// take counts everything. The error is about reading; what is wrong with the
// image is in found. A file can have it read the same tables for years, so it
// ends when ctx does.
func take(ctx context.Context, im *Image) (*census, error) {
	c := newCensus(ctx, im)
	h := im.header
	c.count("the header", 0, 1, markMeta)
	c.count("the refcount table", int64(h.RefcountTableOffset), int64(h.RefcountTableClusters)<<h.ClusterBits, markMeta)
	for _, walk := range []func() error{c.refcountBlocks, c.active, c.snapshots, c.l2Tables, c.bitmaps, c.stop} {
		if err := walk(); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// stop is why the census cannot go on, if it cannot.
func (c *census) stop() error {
	if c.refs.full {
		return errTooFar
	}
	return c.ctx.Err()
}

// count notes n bytes of metadata or data at off, and reports whether they are in
// the file. One that ends less than a cluster behind the end of the file is, as
// for qemu-img (qcow2_inc_refcounts_imrt).
func (c *census) count(what string, off, n int64, m mark) bool { return c.countAs(what, off, n, 1, m) }

// countAs notes the references of several entries.
func (c *census) countAs(what string, off, n int64, entries uint64, m mark) bool {
	if n == 0 {
		return true
	}
	cluster := c.im.cluster()
	if off < 0 || off > c.im.fileSize || n-(c.im.fileSize-off) >= cluster {
		c.corrupt("%s lies behind the end of the file, at %#x", what, off)
		return false
	}
	for i := off / cluster; i <= (off+n-1)/cluster && !c.refs.full; i++ {
		c.refs.add(i, entries, m)
	}
	return true
}

func (c *census) refcountBlocks() error {
	h := c.im.header
	n := int64(h.RefcountTableClusters) << h.ClusterBits / 8
	c.again = make([]bool, n)
	return c.each(int64(h.RefcountTableOffset), n, func(i int64, entry uint64) error {
		off := int64(entry &^ 0x1ff)
		switch {
		case entry == 0:
		case entry&0x1ff != 0 || off%c.im.cluster() != 0:
			c.corrupt("a refcount block's offset %#x is not aligned", entry)
		case c.refs.has(off/c.im.cluster(), markBlock):
			c.again[i] = true
			c.corrupt("the refcount block at %#x is in the table twice", off)
		default:
			c.count("a refcount block", off, c.im.cluster(), markMeta|markBlock)
		}
		return nil
	})
}

// each calls f for n 8-byte entries at off.
func (c *census) each(off, n int64, f func(i int64, entry uint64) error) error {
	for i := int64(0); i < n; {
		if err := c.stop(); err != nil {
			return err
		}
		b, err := c.im.meta.view(off+i*8, (n-i)*8)
		if err != nil {
			return err
		}
		for ; len(b) >= 8; b, i = b[8:], i+1 {
			if err := f(i, binary.BigEndian.Uint64(b)); err != nil {
				return err
			}
		}
	}
	return nil
}

// active counts the disk as it is now.
func (c *census) active() error {
	return c.disk("", int64(c.im.header.L1Offset), int64(c.im.header.L1Size))
}

// disk counts an L1 table, the active one or a snapshot's, and the tables that
// it names. What is wrong with an entry does not keep what it leads to from being
// counted, as in qemu-img: it may be in use.
func (c *census) disk(of string, l1, entries int64) error {
	c.count("the L1 table"+of, l1, entries*8, markMeta)
	return c.each(l1, entries, func(_ int64, entry uint64) error {
		table := int64(entry & offsetMask)
		if entry&l1Reserved != 0 {
			c.corrupt("an L1 entry%s has reserved bits: %#x", of, entry)
		}
		if table == 0 {
			if entry == flagCopied { // QEMU takes the header for its table
				c.corrupt("an L1 entry%s has a flag and no table", of)
			}
			return nil
		}
		if table%c.im.cluster() != 0 {
			c.corrupt("an L2 table's offset %#x is not aligned", table)
		}
		if c.count("an L2 table"+of, table, c.im.cluster(), claim(of, entry)) && table < c.im.fileSize {
			c.name(table, of)
		}
		return nil
	})
}

// name notes that an L1 table names an L2 table.
func (c *census) name(table int64, of string) {
	t, known := c.tables[table]
	switch {
	case !known && !c.refs.reserve(l2TableUse):
		return
	case of == "":
		t.active++ // an L1 table has no 2^32 entries
	case t.snapshots == math.MaxUint32:
		c.refs.full = true
	default:
		t.snapshots++
	}
	c.tables[table] = t
}

// l2Tables counts what the L2 tables name, once for each time that they are named.
func (c *census) l2Tables() error {
	all := slices.AppendSeq(make([]int64, 0, len(c.tables)), maps.Keys(c.tables))
	slices.Sort(all)
	for _, off := range all {
		t := c.tables[off]
		err := c.eachEntry(off, func(_ int64, e l2Entry) error {
			if e != (l2Entry{}) {
				c.entry(t, e)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// eachEntry calls f for each entry of the L2 table at off. The end of the file is
// the end of a table that is not aligned.
func (c *census) eachEntry(off int64, f func(at int64, e l2Entry) error) error {
	size := c.im.entrySize()
	for at := off; at < min(off+c.im.cluster(), c.im.fileSize); {
		if err := c.stop(); err != nil {
			return err
		}
		b, err := c.im.meta.view(at, off+c.im.cluster()-at)
		if err != nil {
			return err
		}
		for ; int64(len(b)) >= size; b, at = b[size:], at+size {
			if err := f(at, c.im.entryOf(b)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *census) entry(t l2Table, e l2Entry) {
	of := ""
	if t.active == 0 {
		of = " of a snapshot"
	}
	for sub := 0; sub < 1 || c.im.extended && sub < subclusters; sub++ {
		if _, err := c.im.kindOf(e, sub); err != nil {
			c.corrupt("an L2 entry%s: %s", of, reasonOf(err))
			break
		}
	}
	switch {
	case e.compressed():
		off, size := c.im.packed(e)
		if e.desc&flagCopied != 0 {
			c.corrupt("a compressed cluster has the flag of a refcount of one, at %#x", off)
		}
		c.countAs("compressed data"+of, off, size, t.names(), 0)
	case e.host() != 0:
		c.countAs("data"+of, e.host(), c.im.cluster(), t.names(), claim(of, e.desc))
	}
	if !e.compressed() && e.desc&l2Reserved != 0 {
		c.corrupt("an L2 entry%s has reserved bits: %#x", of, e.desc)
	}
}

// claim is what an entry of the disk as it is now says of the refcount of what it
// names. Which claims are right is known when all is counted.
func claim(of string, entry uint64) mark {
	switch {
	case of != "":
		return 0 // the flag means nothing in a snapshot, and its tables may be shared
	case entry&flagCopied != 0:
		return markCopied
	}
	return markShared
}

// reasonOf is a format error's reason alone.
func reasonOf(err error) string {
	if f, ok := err.(*FormatError); ok {
		return f.Reason
	}
	return err.Error()
}

// snapshots counts the internal snapshots (specification, "Snapshots").
func (c *census) snapshots() error {
	h := c.im.header
	off, left := int64(h.SnapshotsOffset), h.Snapshots
	for ; left > 0; left-- {
		if err := c.stop(); err != nil {
			return err
		}
		var b [40]byte
		if err := c.im.meta.read(b[:], off); err != nil {
			return fmt.Errorf("read the snapshot table: %w", err)
		}
		l1, entries := int64(binary.BigEndian.Uint64(b[:])), int64(binary.BigEndian.Uint32(b[8:]))
		switch {
		case l1 < 0 || l1%c.im.cluster() != 0 || entries*8 > maxL1Bytes:
			c.corrupt("a snapshot's L1 table is at %#x with %d entries", l1, entries)
		case entries > 0 && entries*8 > c.im.fileSize-l1:
			c.corrupt("a snapshot's L1 table lies behind the end of the file")
		default:
			if err := c.disk(" of a snapshot", l1, entries); err != nil {
				return err
			}
		}
		id, name := int64(binary.BigEndian.Uint16(b[12:])), int64(binary.BigEndian.Uint16(b[14:]))
		extra := int64(binary.BigEndian.Uint32(b[36:]))
		if h.Version >= 3 && extra < minSnapshotExtra || extra > maxSnapshotExtra {
			c.corrupt("a snapshot has %d bytes of extra data", extra)
		}
		off += (40 + extra + id + name + 7) &^ 7
		if off-int64(h.SnapshotsOffset) > maxSnapshotTable {
			c.corrupt("the snapshot table is longer than %d bytes", maxSnapshotTable)
			break
		}
	}
	if h.Snapshots > 0 {
		c.count("the snapshot table", int64(h.SnapshotsOffset), off-int64(h.SnapshotsOffset), markMeta)
	}
	return nil
}

const (
	maxSnapshotTable = 64 << 20 // QCOW_MAX_SNAPSHOTS_SIZE
	minSnapshotExtra = 16       // specification, "Snapshots": in version 3
	maxSnapshotExtra = 1024     // QCOW_MAX_SNAPSHOT_EXTRA_DATA
)
