package qcow2

import (
	"encoding/binary"
	"fmt"
)

// census counts what refers to each cluster of an image's file: header, tables,
// data, snapshots, bitmaps. It is what "qemu-img check" does (block/qcow2-refcount.c,
// calculate_refcounts), and decides about every cluster that is changed or freed.
type census struct {
	im    *Image
	refs  tally
	met   map[int64]bool // tables that must be named once only
	found findings
}

// tally counts references by cluster, in pages: what a file says of its length,
// and how far apart its clusters lie, is up to who wrote it.
type tally struct {
	pages   map[int64]*[tallyPage]uint32
	highest int64 // the highest cluster that has a reference; -1 without any
}

const (
	tallyPage  = 4096
	packedMark = 1 << 31 // compressed data is among the references
)

func (t *tally) add(cluster int64, mark uint32) {
	page := t.pages[cluster/tallyPage]
	if page == nil {
		page = new([tallyPage]uint32)
		t.pages[cluster/tallyPage] = page
	}
	n := &page[cluster%tallyPage]
	if *n&^packedMark < packedMark-1 {
		*n++
	}
	*n |= mark
	t.highest = max(t.highest, cluster)
}

// of is how many references a cluster has, and whether compressed data is among them.
func (t *tally) of(cluster int64) (n uint64, packed bool) {
	page := t.pages[cluster/tallyPage]
	if page == nil {
		return 0, false
	}
	c := page[cluster%tallyPage]
	return uint64(c &^ packedMark), c&packedMark != 0
}

// take counts everything. The error is about reading; what is wrong with the
// image is in found.
func take(im *Image) (*census, error) {
	c := &census{im: im, met: map[int64]bool{}, refs: tally{pages: map[int64]*[tallyPage]uint32{}, highest: -1}}
	h := im.header
	c.count("the header", 0, 1)
	c.count("the refcount table", int64(h.RefcountTableOffset), int64(h.RefcountTableClusters)<<h.ClusterBits)
	for _, walk := range []func() error{c.refcountBlocks, c.active, c.snapshots, c.bitmaps} {
		if err := walk(); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// count notes n bytes of metadata or data at off, and reports whether they are in
// the file. One that ends less than a cluster behind the end of the file is, as
// for qemu-img (qcow2_inc_refcounts_imrt).
func (c *census) count(what string, off, n int64) bool { return c.countAs(what, off, n, 0) }

func (c *census) countAs(what string, off, n int64, mark uint32) bool {
	if n == 0 {
		return true
	}
	cluster := c.im.cluster()
	if off < 0 || off > c.im.fileSize || off+n-c.im.fileSize >= cluster {
		c.found.corrupt("%s lies behind the end of the file, at %#x", what, off)
		return false
	}
	for i := off / cluster; i <= (off+n-1)/cluster; i++ {
		c.refs.add(i, mark)
	}
	return true
}

func (c *census) refcountBlocks() error {
	h := c.im.header
	return c.each(int64(h.RefcountTableOffset), int64(h.RefcountTableClusters)<<h.ClusterBits/8, func(_ int64, entry uint64) error {
		off := int64(entry &^ 0x1ff)
		switch {
		case entry == 0:
		case entry&0x1ff != 0 || off%c.im.cluster() != 0:
			c.found.corrupt("a refcount block's offset %#x is not aligned", entry)
		case c.met[off]:
			c.found.corrupt("the refcount block at %#x is in the table twice", off)
		default:
			c.met[off] = true
			c.count("a refcount block", off, c.im.cluster())
		}
		return nil
	})
}

// each calls f for n 8-byte entries at off.
func (c *census) each(off, n int64, f func(i int64, entry uint64) error) error {
	for i := int64(0); i < n; {
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
	c.count("the L1 table"+of, l1, entries*8)
	return c.each(l1, entries, func(_ int64, entry uint64) error {
		table := int64(entry & offsetMask)
		switch {
		case table == 0 && entry&l1Reserved == 0:
			return nil
		case entry&l1Reserved != 0:
			c.found.corrupt("an L1 entry%s has reserved bits: %#x", of, entry)
			return nil
		case table%c.im.cluster() != 0:
			c.found.corrupt("an L2 table's offset %#x is not aligned", table)
			return nil
		case of == "" && c.met[table]:
			// Not read again: a file could name one table millions of times.
			c.found.corrupt("the L2 table at %#x is named twice", table)
			return nil
		case !c.count("an L2 table"+of, table, c.im.cluster()):
			return nil
		}
		if of == "" {
			c.met[table] = true
			c.expectCopied("an L2 table", table, entry)
		}
		return c.l2(of, table)
	})
}

func (c *census) l2(of string, off int64) error {
	size := c.im.entrySize()
	for at := int64(0); at < c.im.cluster(); {
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
	for sub := 0; sub < 1 || c.im.extended && sub < subclusters; sub++ {
		if _, err := c.im.kindOf(e, sub); err != nil {
			c.found.corrupt("an L2 entry%s: %s", of, reasonOf(err))
			return
		}
	}
	switch {
	case e.compressed():
		off, n := c.im.packed(e)
		if e.desc&flagCopied != 0 {
			c.found.corrupt("a compressed cluster has the flag of a refcount of one, at %#x", off)
		}
		c.countAs("compressed data"+of, off, n, packedMark)
	case e.host() == 0:
	case c.count("data"+of, e.host(), c.im.cluster()) && of == "":
		c.expectCopied("a data cluster", e.host(), e.desc)
	}
	if !e.compressed() && e.desc&l2Reserved != 0 {
		c.found.corrupt("an L2 entry%s has reserved bits: %#x", of, e.desc)
	}
}

// flagged is a cluster that an active entry says has a refcount of one, or not
// of one. Which is right is known when all is counted.
type flagged struct {
	what   string
	copied bool
}

func (c *census) expectCopied(what string, off int64, entry uint64) {
	copied := entry&flagCopied != 0
	// Only what differs from the rule for images without snapshots is kept: a list
	// of all would be as long as the image has clusters.
	if !copied || c.im.header.Snapshots > 0 {
		if c.found.flags == nil {
			c.found.flags = map[int64]flagged{}
		}
		c.found.flags[off/c.im.cluster()] = flagged{what, copied}
	}
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
			c.found.corrupt("a snapshot's L1 table is at %#x with %d entries", l1, entries)
		case entries > 0 && l1+entries*8 > c.im.fileSize:
			c.found.corrupt("a snapshot's L1 table lies behind the end of the file")
		default:
			if err := c.disk(" of a snapshot", l1, entries); err != nil {
				return err
			}
		}
		id, name := int64(binary.BigEndian.Uint16(b[12:])), int64(binary.BigEndian.Uint16(b[14:]))
		extra := int64(binary.BigEndian.Uint32(b[36:]))
		off += (40 + extra + id + name + 7) &^ 7
		if off-int64(h.SnapshotsOffset) > maxSnapshotTable {
			c.found.corrupt("the snapshot table is longer than %d bytes", maxSnapshotTable)
			break
		}
	}
	if h.Snapshots > 0 {
		c.count("the snapshot table", int64(h.SnapshotsOffset), off-int64(h.SnapshotsOffset))
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
	c.count("the bitmap directory", off, size)
	for end := off + size; n > 0; n-- {
		if off+24 > end {
			c.found.corrupt("the bitmap directory is too short")
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
		c.found.corrupt("a bitmap's table is at %#x with %d entries", table, entries)
		return nil
	}
	if !c.count("a bitmap's table", table, entries*8) {
		return nil
	}
	return c.each(table, entries, func(_ int64, entry uint64) error {
		if off := int64(entry & offsetMask); off != 0 {
			c.count("a bitmap's data", off, c.im.cluster())
		}
		return nil
	})
}

const maxBitmapTable = 0x8000000 // BME_MAX_TABLE_SIZE
