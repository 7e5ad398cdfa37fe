package qcow2

import "encoding/binary"

// Extent is a range of a disk that comes from one place.
type Extent struct {
	Start, Length int64 // on the guest's disk, bytes

	Kind  Kind
	Layer int   // of the chain; -1 where no layer has anything, which reads as zeros
	Host  int64 // Data, Compressed: offset in the layer's file

	// Packed is how many bytes of the file a compressed cluster may take. Its
	// extent covers the cluster, or the part of it that was asked for.
	Packed int64
}

// End is the first byte behind the extent.
func (e Extent) End() int64 { return e.Start + e.Length }

// join appends next when it goes on where e ends.
func (e *Extent) join(next Extent) bool {
	switch {
	case e.Kind != next.Kind, e.Layer != next.Layer, e.Kind == Compressed,
		e.Kind == Data && e.Host+e.Length != next.Host:
		return false
	}
	e.Length += next.Length
	return true
}

// maxSearched bounds how many bytes of the tables are searched for the end of an
// extent: a file can name one table in millions of places.
const maxSearched = 128 << 10

// extent is the longest extent that starts at off, of at most n bytes, or as much
// of it as can be found quickly. The range must lie inside the disk. Layer is 0.
func (im *Image) extent(off, n int64) (Extent, error) {
	e, err := im.piece(off, n)
	left := maxSearched / min(im.cluster(), metaBlock) // pieces: none ends behind its table or block
	for ; err == nil && e.Length < n && left > 1; left-- {
		var next Extent
		next, err = im.piece(e.End(), n-e.Length)
		if err != nil || !e.join(next) {
			break // an error is told when it is met at the start
		}
	}
	if e.Length > 0 {
		err = nil
	}
	return e, err
}

// piece is the start of the extent at off: what one look into a table tells.
func (im *Image) piece(off, n int64) (Extent, error) {
	if im.header == nil {
		return im.rawPiece(off, n)
	}
	span := im.tableSpan()
	i := off / span
	l1, err := im.meta.view(int64(im.header.L1Offset)+i*8, (int64(im.header.L1Size)-i)*8)
	if err != nil {
		return Extent{}, err
	}
	table, err := im.checkL1(binary.BigEndian.Uint64(l1))
	if err != nil {
		return Extent{}, err
	}
	if table == 0 {
		return Extent{Start: off, Length: min(n, im.emptyTables(l1)*span-off%span)}, nil
	}
	size := im.entrySize()
	at := off % span / im.cluster() * size
	entries, err := im.meta.view(table+at, im.cluster()-at)
	if err != nil {
		return Extent{}, err
	}
	e, err := im.entryExtent(im.entryOf(entries), off, n)
	for entries = entries[size:]; err == nil && e.Length < n && int64(len(entries)) >= size && e.End()%im.cluster() == 0; entries = entries[size:] {
		next, nextErr := im.entryExtent(im.entryOf(entries), e.End(), n-e.Length)
		if nextErr != nil || !e.join(next) {
			break
		}
	}
	return e, err
}

// emptyTables is how many entries at the start of l1 name no table, one at least.
func (im *Image) emptyTables(l1 []byte) int64 {
	n := int64(1)
	for l1 = l1[8:]; len(l1) >= 8 && binary.BigEndian.Uint64(l1) == 0; l1 = l1[8:] {
		n++
	}
	return n
}

// entryExtent is what one entry says about the disk from off on.
func (im *Image) entryExtent(entry l2Entry, off, n int64) (Extent, error) {
	in := off % im.cluster()
	sub := int(in / im.unit())
	kind, err := im.kindOf(entry, sub)
	if err != nil {
		return Extent{}, err
	}
	e := Extent{Start: off, Kind: kind, Length: im.cluster() - in}
	if im.extended && kind != Compressed {
		e.Length = int64(sub+entry.alike(sub))*im.unit() - in
	}
	e.Length = min(e.Length, n)
	switch kind {
	case Data:
		e.Host = entry.host() + in
		if entry.desc&l2Reserved != 0 {
			return Extent{}, corrupt("an L2 entry has reserved bits: %#x", entry.desc)
		}
		if entry.host() >= im.fileSize {
			return Extent{}, truncated("data of the disk at %d lies behind the end of the file", off)
		}
	case Compressed:
		e.Host, e.Packed = im.packed(entry)
		if e.Host >= im.fileSize {
			return Extent{}, truncated("data of the disk at %d lies behind the end of the file", off)
		}
	}
	return e, nil
}

func (im *Image) rawPiece(off, n int64) (Extent, error) {
	e := Extent{Start: off, Length: n, Kind: Data, Host: off}
	h, ok := im.src.(Holer)
	if !ok {
		return e, nil
	}
	start, end, err := h.NextData(off)
	switch {
	case err != nil:
		return Extent{}, err
	case start > off:
		return Extent{Start: off, Length: min(n, start-off), Kind: Zero}, nil
	case end > off:
		e.Length = min(n, end-off)
	}
	return e, nil
}
