package qcow2

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
)

// span is the bytes [off, end) of the first cluster.
type span struct{ off, end int64 }

func (s span) empty() bool { return s.off >= s.end }

func (s span) overlaps(o span) bool {
	return !s.empty() && !o.empty() && s.off < o.end && o.off < s.end
}

// area is the header extension area as it lies in the first cluster, up to and
// including its END marker (specification, "Header extensions").
type area struct {
	exts   []rawExtension
	end    int64
	closed bool // there is an END marker
}

// rawExtension has the 8 bytes in front of the data and the padding as well.
type rawExtension []byte

func (e rawExtension) isFormat() bool {
	return binary.BigEndian.Uint32(e) == ExtBackingFormat
}

func formatExtension(format string) rawExtension {
	e := binary.BigEndian.AppendUint32(nil, ExtBackingFormat)
	e = binary.BigEndian.AppendUint32(e, uint32(len(format)))
	e = append(e, format...)
	return append(e, make([]byte, -len(format)&7)...)
}

// readArea walks the area as ReadHeader does, which has accepted it.
func readArea(cluster0 []byte, h *Header) area {
	off, limit, _ := h.extensionArea()
	var a area
	for off+8 <= limit {
		if binary.BigEndian.Uint32(cluster0[off:]) == ExtEnd {
			a.end, a.closed = off+8, true
			return a
		}
		next := off + 8 + (int64(binary.BigEndian.Uint32(cluster0[off+4:]))+7)&^7
		a.exts = append(a.exts, cluster0[off:min(next, int64(len(cluster0)))])
		off = next
	}
	a.end = off
	return a
}

// withFormat replaces the format where it stands, or puts it before all others
// as QEMU does. One that says the same keeps its bytes, the padding's too: it
// may lie where nothing can be changed.
func (a area) withFormat(format string, old *Header) []rawExtension {
	i := slices.IndexFunc(a.exts, rawExtension.isFormat)
	switch {
	case i < 0:
		return slices.Insert(slices.Clone(a.exts), 0, formatExtension(format))
	case old.BackingFormat == format:
		return a.exts
	}
	exts := slices.Clone(a.exts)
	exts[i] = formatExtension(format)
	return exts
}

func (a area) withoutFormat() []rawExtension {
	return slices.DeleteFunc(slices.Clone(a.exts), rawExtension.isFormat)
}

// layOut is the first cluster with another parent. The bytes of slack have to
// be on disk before sector 0 is written; outside both nothing differs.
func layOut(cluster0 []byte, h *Header, b Backing) (next []byte, slack span, err error) {
	old := readArea(cluster0, h)
	if b.Name != "" {
		return place(cluster0, h, old, old.withFormat(b.Format, h), b.Name)
	}
	if next, slack, err = place(cluster0, h, old, old.withoutFormat(), ""); err != nil {
		// QEMU pays no heed to the format where there is no name.
		next, slack, err = place(cluster0, h, old, old.exts, "")
	}
	return next, slack, err
}

// place puts the extensions, their END marker and the name down.
func place(cluster0 []byte, h *Header, old area, exts []rawExtension, name string) ([]byte, span, error) {
	// The marker is always written, and always empty: QEMU measures it too
	// against the end of the area, which the name's place decides.
	all := append(slices.Concat(exts...), make([]byte, 8)...)
	start, size := int64(h.HeaderLength), int64(len(cluster0))
	end := start + int64(len(all))
	if end > size {
		return nil, span{}, fmt.Errorf("%w: the extensions need %d bytes", ErrNoRoom, len(all))
	}
	next := bytes.Clone(cluster0)
	copy(next[start:], all)
	if end < sectorSize {
		clear(next[end:sectorSize]) // nothing of the old name is left in what is written anyway
	}
	// What the extensions take beyond the old ones is written with the name.
	slack := span{max(sectorSize, old.end), end}

	at := h.placeName(name, end, old.end)
	if at.end > size {
		return nil, span{}, fmt.Errorf("%w: a backing name of %d bytes", ErrNoRoom, len(name))
	}
	copy(next[at.off:], name)
	if at.off >= sectorSize && at != h.nameSpan() {
		if slack.empty() {
			slack = at
		}
		slack.end = at.end
	}
	binary.BigEndian.PutUint64(next[8:], uint64(at.off))
	binary.BigEndian.PutUint32(next[16:], uint32(len(name)))
	if slack.empty() {
		slack = span{}
	}
	return next, slack, h.keepsUsed(cluster0, next, old.end, slack)
}

// placeName finds the place of a name behind an area that ends at end and
// replaces one that ended at oldEnd.
func (h *Header) placeName(name string, end, oldEnd int64) span {
	n, old := int64(len(name)), h.nameSpan()
	switch {
	case n == 0:
		return span{}
	case name == h.BackingName && old.off >= end:
		return old
	case end+n <= sectorSize:
		return span{end, end + n} // over whatever is there: the sector is atomic
	}
	at := max(end, oldEnd, sectorSize)
	if old.overlaps(span{at, at + n}) {
		at = old.end
	}
	return span{at, at + n}
}

func (h *Header) nameSpan() span {
	off := int64(h.BackingOffset)
	return span{off, off + int64(h.BackingSize)}
}

// keepsUsed: outside sector 0, where no write is atomic together with it,
// whatever the old header uses stays as it is until the new one stands. A format
// and a bitmap that a torn write left half changed would be read as such.
func (h *Header) keepsUsed(old, next []byte, areaEnd int64, slack span) error {
	size := int64(len(old))
	for _, used := range []span{{0, int64(h.HeaderLength)}, {int64(h.HeaderLength), areaEnd}, h.nameSpan()} {
		used = span{max(used.off, sectorSize), min(used.end, size)}
		if used.empty() {
			continue
		}
		if slack.overlaps(used) || !bytes.Equal(old[used.off:used.end], next[used.off:used.end]) {
			return fmt.Errorf("%w: bytes %d to %d are in use", ErrNoRoom, used.off, used.end)
		}
	}
	return nil
}
