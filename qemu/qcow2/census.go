package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
)

// census counts what refers to each cluster of an image's file: header, tables,
// data, snapshots, bitmaps. It is what "qemu-img check" does (block/qcow2-refcount.c,
// calculate_refcounts), and decides about every cluster that is changed or freed.
type census struct {
	ctx   context.Context
	im    *Image
	refs  tally
	again []bool // refcount table entries that name a block for the second time
	found Findings
}

// take counts everything. The error is about reading; what is wrong with the
// image is in found. A file can have it read the same tables for years, so it
// ends when ctx does.
func take(ctx context.Context, im *Image) (*census, error) {
	c := &census{ctx: ctx, im: im, refs: newTally()}
	h := im.header
	c.count("the header", 0, 1, markMeta)
	c.count("the refcount table", int64(h.RefcountTableOffset), int64(h.RefcountTableClusters)<<h.ClusterBits, markMeta)
	for _, walk := range []func() error{c.refcountBlocks, c.active, c.snapshots, c.bitmaps, c.stop} {
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
func (c *census) count(what string, off, n int64, m mark) bool {
	if n == 0 {
		return true
	}
	cluster := c.im.cluster()
	if off < 0 || off > c.im.fileSize || n-(c.im.fileSize-off) >= cluster {
		c.corrupt("%s lies behind the end of the file, at %#x", what, off)
		return false
	}
	for i := off / cluster; i <= (off+n-1)/cluster && !c.refs.full; i++ {
		c.refs.add(i, m)
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
		case c.refs.has(off/c.im.cluster(), markTable):
			c.again[i] = true
			c.corrupt("the refcount block at %#x is in the table twice", off)
		default:
			c.count("a refcount block", off, c.im.cluster(), markMeta|markTable)
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

// disk counts an L1 table with all below it: the active one, or a snapshot's.
func (c *census) disk(of string, l1, entries int64) error {
	c.count("the L1 table"+of, l1, entries*8, markMeta)
	return c.each(l1, entries, func(_ int64, entry uint64) error {
		table := int64(entry & offsetMask)
		switch {
		case table == 0 && entry&l1Reserved == 0:
			return nil
		case entry&l1Reserved != 0:
			c.corrupt("an L1 entry%s has reserved bits: %#x", of, entry)
			return nil
		case table%c.im.cluster() != 0:
			c.corrupt("an L2 table's offset %#x is not aligned", table)
			return nil
		case of == "" && c.refs.has(table/c.im.cluster(), markTable):
			// Not read again: a file could name one table millions of times.
			c.corrupt("the L2 table at %#x is named twice", table)
			return nil
		case !c.count("an L2 table"+of, table, c.im.cluster(), claim(of, entry, markTable)):
			return nil
		}
		return c.l2(of, table)
	})
}

func (c *census) l2(of string, off int64) error {
	size := c.im.entrySize()
	for at := int64(0); at < c.im.cluster(); {
		if err := c.stop(); err != nil {
			return err
		}
		b, err := c.im.meta.view(off+at, c.im.cluster()-at)
		if err != nil {
			return err
		}
		for ; int64(len(b)) >= size; b, at = b[size:], at+size {
			if e := c.im.entryOf(b); e != (l2Entry{}) {
				c.entry(of, e)
			}
		}
	}
	return nil
}

func (c *census) entry(of string, e l2Entry) {
	if _, err := c.im.kindOf(e, 0); err != nil { // what is wrong is so for all subclusters
		c.corrupt("an L2 entry%s: %s", of, reasonOf(err))
		return
	}
	switch {
	case e.compressed():
		off, n := c.im.packed(e)
		if e.desc&flagCopied != 0 {
			c.corrupt("a compressed cluster has the flag of a refcount of one, at %#x", off)
		}
		c.count("compressed data"+of, off, n, 0)
	case e.host() != 0:
		c.count("data"+of, e.host(), c.im.cluster(), claim(of, e.desc, 0))
	}
	if !e.compressed() && e.desc&l2Reserved != 0 {
		c.corrupt("an L2 entry%s has reserved bits: %#x", of, e.desc)
	}
}

// claim is m with what an entry of the disk as it is now says of the refcount of
// what it names. Which claims are right is known when all is counted.
func claim(of string, entry uint64, m mark) mark {
	switch {
	case of != "":
		return 0 // the flag means nothing in a snapshot, and its tables may be shared
	case entry&flagCopied != 0:
		return m | markCopied
	}
	return m | markShared
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

const maxSnapshotTable = 64 << 20 // QCOW_MAX_SNAPSHOTS_SIZE

// bitmaps counts the persistent bitmaps (specification, "Bitmaps extension").
// Without the autoclear bit they are stale and their clusters belong to nobody.
func (c *census) bitmaps() error {
	h := c.im.header
	e := h.extension(ExtBitmaps)
	if e == nil || h.Autoclear&1 == 0 {
		return nil
	}
	n := int64(binary.BigEndian.Uint32(e.Data))
	size, off := int64(binary.BigEndian.Uint64(e.Data[8:])), int64(binary.BigEndian.Uint64(e.Data[16:]))
	c.count("the bitmap directory", off, size, markMeta)
	for end := off + size; n > 0; n-- {
		if end-off < 24 {
			c.corrupt("the bitmap directory is too short")
			return nil
		}
		var b [24]byte
		if err := c.im.meta.read(b[:], off); err != nil {
			return fmt.Errorf("read the bitmap directory: %w", err)
		}
		if err := c.bitmap(int64(binary.BigEndian.Uint64(b[:])), int64(binary.BigEndian.Uint32(b[8:]))); err != nil {
			return err
		}
		name, extra := int64(binary.BigEndian.Uint16(b[18:])), int64(binary.BigEndian.Uint32(b[20:]))
		off += (24 + extra + name + 7) &^ 7
	}
	return nil
}

func (c *census) bitmap(table, entries int64) error {
	if table%c.im.cluster() != 0 || entries > maxBitmapTable {
		c.corrupt("a bitmap's table is at %#x with %d entries", table, entries)
		return nil
	}
	if !c.count("a bitmap's table", table, entries*8, markMeta) {
		return nil
	}
	return c.each(table, entries, func(_ int64, entry uint64) error {
		if off := int64(entry & offsetMask); off != 0 {
			c.count("a bitmap's data", off, c.im.cluster(), markMeta)
		}
		return nil
	})
}

const maxBitmapTable = 0x8000000 // BME_MAX_TABLE_SIZE
