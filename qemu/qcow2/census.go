package qcow2

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
)

// census counts what refers to each cluster of an image's file: header, tables,
// data, snapshots, bitmaps. It is what "qemu-img check" does (block/qcow2-refcount.c,
// calculate_refcounts), and decides about every cluster that is changed or freed.
type census struct {
	im     *Image
	refs   tally
	blocks map[int64]bool     // refcount blocks: each must be named once only
	tables map[int64]*l2Table // by their offset
	found  findings
	spare  int64 // clusters before the last one in use that are counted, and nobody's
}

// l2Table is an L2 table and how often L1 tables name it. It is read once only:
// a file could name one table millions of times.
type l2Table struct {
	active, snapshots uint32
}

// tally counts references by cluster, in pages: what a file says of its length,
// and how far apart its clusters lie, is up to who wrote it.
type tally struct {
	pages   map[int64]*[tallyPage]uint32
	highest int64 // the highest cluster that has a reference; -1 without any
}

const (
	tallyPage   = 4096
	packedMark  = 1 << 31 // compressed data is among the references
	flaggedMark = 1 << 30 // an active entry says that the refcount is one
	plainMark   = 1 << 29 // an active entry says that it is not
	tallyMarks  = packedMark | flaggedMark | plainMark
	tallyMost   = 1<<29 - 1 // this many references, or more
)

// add notes n references.
func (t *tally) add(cluster int64, n, mark uint32) {
	page := t.pages[cluster/tallyPage]
	if page == nil {
		page = new([tallyPage]uint32)
		t.pages[cluster/tallyPage] = page
	}
	c := &page[cluster%tallyPage]
	*c = min(*c&^tallyMarks+min(n, tallyMost), tallyMost) | *c&tallyMarks | mark
	t.highest = max(t.highest, cluster)
}

// of is how many references a cluster has, and whether compressed data is among them.
func (t *tally) of(cluster int64) (n uint64, packed bool) {
	c := t.at(cluster)
	return uint64(c &^ tallyMarks), c&packedMark != 0
}

// contradicts reports whether an active entry says otherwise than a refcount:
// stale is a flag that is missing, which costs nothing but a copy of the cluster
// when it is written to.
func (t *tally) contradicts(cluster int64, count uint64) (wrong, stale bool) {
	c := t.at(cluster)
	return c&flaggedMark != 0 && count != 1, c&plainMark != 0 && count == 1
}

func (t *tally) at(cluster int64) uint32 {
	if page := t.pages[cluster/tallyPage]; page != nil {
		return page[cluster%tallyPage]
	}
	return 0
}

// take counts everything. The error is about reading; what is wrong with the
// image is in found.
func take(im *Image) (*census, error) {
	c := &census{
		im: im, blocks: map[int64]bool{}, tables: map[int64]*l2Table{},
		refs: tally{pages: map[int64]*[tallyPage]uint32{}, highest: -1},
	}
	h := im.header
	c.count("the header", 0, 1)
	c.count("the refcount table", int64(h.RefcountTableOffset), int64(h.RefcountTableClusters)<<h.ClusterBits)
	for _, walk := range []func() error{c.refcountBlocks, c.active, c.snapshots, c.l2Tables, c.bitmaps} {
		if err := walk(); err != nil {
			return nil, err
		}
	}
	c.sharedBlocks()
	return c, nil
}

// sharedBlocks finds refcount blocks that are something else, too. Their own
// count may be right; the next change of any count in them destroys the other.
func (c *census) sharedBlocks() {
	for off := range c.blocks {
		if n, _ := c.refs.of(off / c.im.cluster()); n > 1 {
			c.found.corrupt("the refcount block at %#x is used %d times", off, n)
		}
	}
}

// count notes n bytes of metadata or data at off, and reports whether they are in
// the file. One that ends less than a cluster behind the end of the file is, as
// for qemu-img (qcow2_inc_refcounts_imrt).
func (c *census) count(what string, off, n int64) bool { return c.countAs(what, off, n, 1, 0) }

// countAs notes the references of several entries.
func (c *census) countAs(what string, off, n int64, entries, mark uint32) bool {
	if n == 0 {
		return true
	}
	cluster := c.im.cluster()
	if off < 0 || off > c.im.fileSize || off+n-c.im.fileSize >= cluster {
		c.found.corrupt("%s lies behind the end of the file, at %#x", what, off)
		return false
	}
	for i := off / cluster; i <= (off+n-1)/cluster; i++ {
		c.refs.add(i, entries, mark)
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
		case c.blocks[off]:
			c.found.corrupt("the refcount block at %#x is in the table twice", off)
		default:
			c.blocks[off] = true
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

// disk counts an L1 table, the active one or a snapshot's, and the tables that
// it names. What is wrong with an entry does not keep what it leads to from being
// counted, as in qemu-img: it may be in use.
func (c *census) disk(of string, l1, entries int64) error {
	c.count("the L1 table"+of, l1, entries*8)
	return c.each(l1, entries, func(_ int64, entry uint64) error {
		table, mark := int64(entry&offsetMask), uint32(0)
		if entry&l1Reserved != 0 {
			c.found.corrupt("an L1 entry%s has reserved bits: %#x", of, entry)
		}
		if table == 0 {
			if entry == flagCopied { // QEMU takes the header for its table
				c.found.corrupt("an L1 entry%s has a flag and no table", of)
			}
			return nil
		}
		if table%c.im.cluster() != 0 {
			c.found.corrupt("an L2 table's offset %#x is not aligned", table)
		}
		if of == "" {
			mark = markOf(entry)
		}
		if !c.countAs("an L2 table"+of, table, c.im.cluster(), 1, mark) || table >= c.im.fileSize {
			return nil
		}
		t := c.tables[table]
		if t == nil {
			t = &l2Table{}
			c.tables[table] = t
		}
		if of == "" {
			t.active = min(t.active+1, tallyMost)
		} else {
			t.snapshots = min(t.snapshots+1, tallyMost)
		}
		return nil
	})
}

// markOf is what an active entry says about the refcount of where it leads.
func markOf(entry uint64) uint32 {
	if entry&flagCopied != 0 {
		return flaggedMark
	}
	return plainMark
}

// l2Tables counts what the L2 tables name, once for each time that they are named.
func (c *census) l2Tables() error {
	for _, off := range slices.Sorted(maps.Keys(c.tables)) {
		if err := c.l2(off, c.tables[off]); err != nil {
			return err
		}
	}
	return nil
}

func (c *census) l2(off int64, t *l2Table) error {
	return eachEntry(c.im, off, func(_ int64, e l2Entry) error {
		if e != (l2Entry{}) {
			c.entry(t, e)
		}
		return nil
	})
}

// eachEntry calls f for each entry of the L2 table at off. The end of the file is
// the end of a table that is not aligned.
func eachEntry(im *Image, off int64, f func(at int64, e l2Entry) error) error {
	size := im.entrySize()
	for at := off; at < min(off+im.cluster(), im.fileSize); {
		b, err := im.meta.view(at, off+im.cluster()-at)
		if err != nil {
			return err
		}
		for ; int64(len(b)) >= size; b, at = b[size:], at+size {
			if err := f(at, im.entryOf(b)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *census) entry(t *l2Table, e l2Entry) {
	of, n, mark := "", t.active+t.snapshots, uint32(0)
	if t.active == 0 {
		of = " of a snapshot"
	}
	for sub := 0; sub < 1 || c.im.extended && sub < subclusters; sub++ {
		if _, err := c.im.kindOf(e, sub); err != nil {
			c.found.corrupt("an L2 entry%s: %s", of, reasonOf(err))
			break
		}
	}
	switch {
	case e.compressed():
		off, size := c.im.packed(e)
		if e.desc&flagCopied != 0 {
			c.found.corrupt("a compressed cluster has the flag of a refcount of one, at %#x", off)
		}
		c.countAs("compressed data"+of, off, size, n, packedMark)
	case e.host() != 0:
		if t.active > 0 {
			mark = markOf(e.desc)
		}
		c.countAs("data"+of, e.host(), c.im.cluster(), n, mark)
	}
	if !e.compressed() && e.desc&l2Reserved != 0 {
		c.found.corrupt("an L2 entry%s has reserved bits: %#x", of, e.desc)
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
		if h.Version >= 3 && extra < minSnapshotExtra || extra > maxSnapshotExtra {
			c.found.corrupt("a snapshot has %d bytes of extra data", extra)
		}
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

const (
	maxSnapshotTable = 64 << 20 // QCOW_MAX_SNAPSHOTS_SIZE
	minSnapshotExtra = 16       // specification, "Snapshots": in version 3
	maxSnapshotExtra = 1024     // QCOW_MAX_SNAPSHOT_EXTRA_DATA
)
