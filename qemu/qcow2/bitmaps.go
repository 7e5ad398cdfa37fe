package qcow2

import (
	"encoding/binary"
	"fmt"
)

// The limits of persistent bitmaps (specification, "Bitmaps extension", and
// block/qcow2-bitmap.c). QEMU does not open an image in which one is broken.
const (
	maxBitmapTable     = 0x8000000 // BME_MAX_TABLE_SIZE
	minBitmapGrain     = 9         // BME_MIN_GRANULARITY_BITS
	maxBitmapGrain     = 31        // BME_MAX_GRANULARITY_BITS
	maxBitmapName      = 1023
	bitmapInUse        = 1 << 0 // the bitmap was not saved; its table may be of another size
	knownBitmapFlags   = 1<<0 | 1<<1
	dirtyTracking      = 1 // the only type of bitmap there is
	bitmapAllOnes      = 1 << 0
	bitmapEntryHeader  = 24
	bitmapReserved     = ^uint64(offsetMask | bitmapAllOnes)
	bitmapExtensionLen = 24
)

// bitmaps counts the persistent bitmaps. Without the autoclear bit they are stale
// and their clusters belong to nobody.
func (c *census) bitmaps() error {
	h := c.im.header
	e := h.extension(ExtBitmaps)
	if e == nil || h.Autoclear&1 == 0 {
		return nil
	}
	n := int64(binary.BigEndian.Uint32(e.Data))
	size, off := int64(binary.BigEndian.Uint64(e.Data[8:])), int64(binary.BigEndian.Uint64(e.Data[16:]))
	if n == 0 || n > maxBitmaps || binary.BigEndian.Uint32(e.Data[4:]) != 0 || len(e.Data) != bitmapExtensionLen {
		c.corrupt("the bitmaps extension is not valid; it has %d bitmaps", n)
	}
	c.count("the bitmap directory", off, size, markMeta)
	end := off + size
	for ; n > 0; n-- {
		if err := c.stop(); err != nil {
			return err
		}
		if end-off < bitmapEntryHeader {
			c.corrupt("the bitmap directory is too short")
			return nil
		}
		var b [bitmapEntryHeader]byte
		if err := c.im.meta.read(b[:], off); err != nil {
			return fmt.Errorf("read the bitmap directory: %w", err)
		}
		if err := c.bitmap(b[:]); err != nil {
			return err
		}
		name, extra := int64(binary.BigEndian.Uint16(b[18:])), int64(binary.BigEndian.Uint32(b[20:]))
		off += (bitmapEntryHeader + extra + name + 7) &^ 7
	}
	if off != end {
		c.corrupt("the bitmap directory is of another size than its bitmaps")
	}
	return nil
}

// bitmap counts the bitmap of a directory entry.
func (c *census) bitmap(b []byte) error {
	if problem := c.bitmapProblem(b); problem != "" {
		c.corrupt("a bitmap %s", problem)
	}
	table, entries := int64(binary.BigEndian.Uint64(b)), int64(binary.BigEndian.Uint32(b[8:]))
	if table%c.im.cluster() != 0 || entries > maxBitmapTable || !c.count("a bitmap's table", table, entries*8, markMeta) {
		return nil
	}
	return c.each(table, entries, func(_ int64, entry uint64) error {
		off := int64(entry & offsetMask)
		if entry&bitmapReserved != 0 || off != 0 && (entry&bitmapAllOnes != 0 || off%c.im.cluster() != 0) {
			c.corrupt("an entry of a bitmap's table is not valid: %#x", entry)
		}
		if off != 0 {
			c.count("a bitmap's data", off, c.im.cluster(), markMeta)
		}
		return nil
	})
}

// bitmapProblem is what is wrong with a directory entry, empty for nothing.
func (c *census) bitmapProblem(b []byte) string {
	be := binary.BigEndian
	table, entries, flags := be.Uint64(b), int64(be.Uint32(b[8:])), be.Uint32(b[12:])
	kind, grain, name, extra := b[16], b[17], be.Uint16(b[18:]), be.Uint32(b[20:])
	switch {
	case table == 0, table%uint64(c.im.cluster()) != 0, entries == 0, entries > maxBitmapTable:
		return fmt.Sprintf("has its table at %#x, with %d entries", table, entries)
	case flags&^knownBitmapFlags != 0, kind != dirtyTracking, extra != 0:
		return fmt.Sprintf("is of type %d with flags %#x and %d bytes of extra data", kind, flags, extra)
	case grain < minBitmapGrain, grain > maxBitmapGrain:
		return fmt.Sprintf("has a granularity of %d bits", grain)
	case name == 0, name > maxBitmapName:
		return fmt.Sprintf("has a name of %d bytes", name)
	case flags&bitmapInUse == 0 && entries != c.bitmapEntries(grain):
		return fmt.Sprintf("has %d entries in its table and needs %d", entries, c.bitmapEntries(grain))
	}
	return ""
}

// bitmapEntries is how many clusters a bitmap of the disk takes.
func (c *census) bitmapEntries(grain uint8) int64 {
	up := func(n, by int64) int64 { return (n + by - 1) / by }
	return up(up(up(c.im.virtual, 1<<grain), 8), c.im.cluster())
}
