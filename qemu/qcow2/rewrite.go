package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
)

// sectorSize is what a disk writes in full or not at all.
const sectorSize = 512

// knownAutoclear is bit 0, the bitmaps: a new header says nothing about what
// the disk contains, so they stay consistent. All other bits must be cleared by
// a writer that does not know them (specification, "Header", bytes 88 to 95).
const knownAutoclear = 1

// HeaderChange is what a header is to say from now on. What is nil or 0 stays.
type HeaderChange struct {
	Backing           *Backing
	RefcountTable     *TableAt
	VirtualSize       *uint64 // bytes
	ClearIncompatible uint64  // Dirty, Corrupt or both: the other bits tell the layout
}

// Backing names an image's parent.
type Backing struct {
	Name   string // 1 to 1023 bytes without a NUL; empty for no parent
	Format string // 1 to 15 bytes, as "qcow2" or "raw"; ignored without a name
}

// TableAt is where a table lies.
type TableAt struct {
	Offset   uint64 // bytes
	Clusters uint32
}

// check refuses what no header can say.
func (c HeaderChange) check() error {
	if c.ClearIncompatible&^(Dirty|Corrupt) != 0 {
		return fmt.Errorf("incompatible feature bits %#x tell the layout and cannot be cleared", c.ClearIncompatible)
	}
	if c.Backing == nil || c.Backing.Name == "" {
		return nil
	}
	switch name, format := c.Backing.Name, c.Backing.Format; {
	case len(name) > maxBackingName:
		return fmt.Errorf("a backing name of %d bytes: at most %d are possible", len(name), maxBackingName)
	case format == "":
		return errors.New("a backing file without its format would be probed")
	case len(format) > maxBackingFormat:
		return fmt.Errorf("a backing format of %d bytes: at most %d are possible", len(format), maxBackingFormat)
	case strings.IndexByte(name+format, 0) >= 0:
		return errors.New("a NUL byte in the backing name or its format")
	}
	return nil
}

// saidBy reports whether the header says all that already.
func (c HeaderChange) saidBy(h *Header) bool {
	t := c.RefcountTable
	return (c.Backing == nil || c.Backing.saidBy(h)) &&
		(t == nil || *t == TableAt{h.RefcountTableOffset, h.RefcountTableClusters}) &&
		(c.VirtualSize == nil || *c.VirtualSize == h.VirtualSize) &&
		h.Incompatible&c.ClearIncompatible == 0
}

// saidBy: a format without a parent means nothing, so it may be left.
func (b Backing) saidBy(h *Header) bool {
	if b.Name == "" {
		return h.BackingOffset == 0
	}
	return h.BackingName == b.Name && h.BackingFormat == b.Format
}

// rewrite is a change of a header as two writes. After the first the header
// still reads as before; the second is atomic.
type rewrite struct {
	slackOff int64
	slack    []byte // to unused space outside sector 0; often empty
	sector   []byte // sector 0
}

// planHeader lays a changed header out. The first cluster is given in full, and
// h is what ReadHeader says of it. Nothing is written, and what is returned
// without an error has been proved on a copy.
func planHeader(cluster0 []byte, h *Header, c HeaderChange) (rewrite, error) {
	if err := c.check(); err != nil {
		return rewrite{}, err
	}
	// Without this, a file that changed between two reads would be laid out by
	// lengths that are not its own.
	if now, err := parseCluster(cluster0); err != nil || int64(len(cluster0)) != h.ClusterSize() || !reflect.DeepEqual(now, h) {
		return rewrite{}, errors.New("the header changed while it was read")
	}
	next, slack := bytes.Clone(cluster0), span{}
	if c.Backing != nil && !c.Backing.saidBy(h) {
		var err error
		if next, slack, err = layOut(cluster0, h, *c.Backing); err != nil {
			return rewrite{}, err
		}
	}
	c.putFields(next, h)
	r := rewrite{slack.off, next[slack.off:slack.end], next[:sectorSize]}
	return r, r.prove(cluster0, h, c)
}

// putFields changes the fields of fixed place, those of the backing name apart.
func (c HeaderChange) putFields(b []byte, h *Header) {
	be := binary.BigEndian
	if c.VirtualSize != nil {
		be.PutUint64(b[24:], *c.VirtualSize)
	}
	if t := c.RefcountTable; t != nil {
		be.PutUint64(b[48:], t.Offset)
		be.PutUint32(b[56:], t.Clusters)
	}
	if h.Version >= 3 {
		be.PutUint64(b[72:], h.Incompatible&^c.ClearIncompatible)
		be.PutUint64(b[88:], h.Autoclear&knownAutoclear)
	}
}

// prove applies the rewrite to a copy and reads what it has become. It shares
// with the layout only the reading of headers.
func (r rewrite) prove(cluster0 []byte, h *Header, c HeaderChange) error {
	b := bytes.Clone(cluster0)
	copy(b[r.slackOff:], r.slack)
	if got, err := parseCluster(b); err != nil || !reflect.DeepEqual(got, h) {
		return fmt.Errorf("the first of two header writes would be seen: got %+v, %v, want %+v", got, err, h)
	}
	copy(b, r.sector)
	got, err := parseCluster(b)
	if err != nil {
		return fmt.Errorf("the new header would be wrong: %w", err)
	}
	if want := c.applied(h, got); !reflect.DeepEqual(got, want) {
		return fmt.Errorf("the new header would be another: got %+v, want %+v", got, want)
	}
	// What a later version keeps in a longer header is kept as it is.
	if n := h.HeaderLength; n > minHeaderLengthV3 && !bytes.Equal(b[minHeaderLengthV3:n], cluster0[minHeaderLengthV3:n]) {
		return errors.New("the new header would lose unknown fields")
	}
	// QEMU reads extensions up to the backing name or the cluster's end: without
	// the marker it would go on into what was unused.
	if c.Backing != nil && !c.Backing.saidBy(h) {
		if a := readArea(b, got); !a.closed || got.BackingOffset != 0 && got.BackingOffset < uint64(a.end) {
			return errors.New("the new header's extensions would have no end")
		}
	}
	return nil
}

// applied is what the header must read as after the change. Only where the name
// lies, and whether an idle format was left, is taken from what was got.
func (c HeaderChange) applied(h, got *Header) *Header {
	want := *h
	if c.VirtualSize != nil {
		want.VirtualSize = *c.VirtualSize
	}
	if t := c.RefcountTable; t != nil {
		want.RefcountTableOffset, want.RefcountTableClusters = t.Offset, t.Clusters
	}
	want.Incompatible &^= c.ClearIncompatible
	want.Autoclear &= knownAutoclear
	b := c.Backing
	if b == nil || b.saidBy(h) {
		return &want
	}
	want.BackingOffset, want.BackingName, want.BackingSize = 0, b.Name, uint32(len(b.Name))
	switch {
	case b.Name != "":
		want.BackingOffset = got.BackingOffset
		want.setFormat(&Extension{ExtBackingFormat, []byte(b.Format)})
	case got.extension(ExtBackingFormat) == nil:
		want.setFormat(nil)
	}
	return &want
}

// setFormat replaces the format's extension where it stands, adds it before all
// others, or drops it. The slice is shared with another header and not changed.
func (h *Header) setFormat(e *Extension) {
	var all []Extension
	if e != nil && h.extension(ExtBackingFormat) == nil {
		all = append(all, *e)
	}
	for _, o := range h.Extensions {
		if o.Type != ExtBackingFormat {
			all = append(all, o)
		} else if e != nil {
			all = append(all, *e)
		}
	}
	h.Extensions, h.BackingFormat = all, ""
	if e != nil {
		h.BackingFormat = string(e.Data)
	}
}

// parseCluster reads the header in a first cluster. The tables that it points
// at are outside, so every place counts as inside the file.
func parseCluster(b []byte) (*Header, error) {
	return ReadHeader(padded(b), math.MaxInt64)
}

// padded is a file that goes on with zeros for ever.
type padded []byte

func (p padded) ReadAt(b []byte, off int64) (int, error) {
	clear(b)
	if off < int64(len(p)) {
		copy(b, p[off:])
	}
	return len(b), nil
}
