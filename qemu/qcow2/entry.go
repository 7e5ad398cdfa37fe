package qcow2

import "math/bits"

// Masks and flags of L1 and L2 entries (specification, "Cluster mapping").
const (
	offsetMask     = 0x00fffffffffffe00 // bits 9 to 55
	flagCopied     = 1 << 63            // the refcount is exactly one
	flagCompressed = 1 << 62
	flagZero       = 1 << 0

	l1Reserved = ^uint64(offsetMask | flagCopied)
	l2Reserved = ^uint64(offsetMask | flagCopied | flagZero)

	subclusters = 32 // of a cluster with extended L2 entries
)

// Kind says where a guest's bytes come from, as one layer knows it.
type Kind uint8

// The kinds of extent.
const (
	Absent     Kind = iota // the layer has nothing: they come from below
	Zero                   // zeros, whatever is below
	Data                   // in the layer's file, as they are
	Compressed             // in the layer's file, compressed
)

var kindNames = [...]string{"absent", "zero", "data", "compressed"}

func (k Kind) String() string { return kindNames[k] }

// geometry is how an image's disk is cut up.
type geometry struct {
	version     uint32
	clusterBits uint32
	extended    bool // extended L2 entries
}

func (h *Header) geometry() geometry {
	return geometry{h.Version, h.ClusterBits, h.Has(ExtendedL2)}
}

func (g geometry) cluster() int64 { return 1 << g.clusterBits }

// unit is what can be allocated by itself: a cluster, or a subcluster.
func (g geometry) unit() int64 {
	if g.extended {
		return g.cluster() / subclusters
	}
	return g.cluster()
}

func (g geometry) entrySize() int64 {
	if g.extended {
		return 16
	}
	return 8
}

// tableEntries is the number of entries in an L2 table.
func (g geometry) tableEntries() int64 { return g.cluster() / g.entrySize() }

// tableSpan is how many bytes of the disk an L2 table covers.
func (g geometry) tableSpan() int64 { return g.tableEntries() << g.clusterBits }

// l2Entry is one entry of an L2 table; bitmap is zero in images without
// extended entries.
type l2Entry struct{ desc, bitmap uint64 }

func (e l2Entry) compressed() bool { return e.desc&flagCompressed != 0 }

// host is the cluster's offset in the file, 0 for none. Not for compressed ones.
func (e l2Entry) host() int64 { return int64(e.desc & offsetMask) }

// packed is where a compressed cluster lies (specification, "Compressed Clusters
// Descriptor"): its length is known in sectors only, so that it may end with
// bytes that are not its own.
func (g geometry) packed(e l2Entry) (off, n int64) {
	shift := 62 - (g.clusterBits - 8)
	off = int64(e.desc & (1<<shift - 1))
	sectors := int64(e.desc&(flagCompressed-1)>>shift) + 1
	return off, sectors*sectorSize - off%sectorSize
}

// pack makes the descriptor for n compressed bytes at off.
func (g geometry) pack(off, n int64) (l2Entry, bool) {
	shift := 62 - (g.clusterBits - 8)
	more := (off%sectorSize+n+sectorSize-1)/sectorSize - 1
	if off >= 1<<shift || more >= 1<<(g.clusterBits-8) {
		return l2Entry{}, false
	}
	return l2Entry{desc: uint64(off) | uint64(more)<<shift | flagCompressed}, true
}

// kindOf is the kind of the subcluster sub of an entry; sub is 0 without
// extended entries.
func (g geometry) kindOf(e l2Entry, sub int) (Kind, error) {
	switch {
	case e.compressed():
		if e.bitmap != 0 {
			return 0, corrupt("a compressed cluster has a subcluster bitmap")
		}
		return Compressed, nil
	case e.host()%g.cluster() != 0:
		return 0, corrupt("a cluster's offset %#x is not aligned", e.host())
	case g.extended:
		return g.subclusterKind(e, sub)
	case e.desc&flagZero != 0 && g.version < 3:
		return 0, corrupt("there is a zero cluster in a version 2 image")
	case e.desc&flagZero != 0:
		return Zero, nil
	case e.host() != 0:
		return Data, nil
	}
	return Absent, nil
}

// subclusterKind: specification, "Extended L2 Entries".
func (g geometry) subclusterKind(e l2Entry, sub int) (Kind, error) {
	allocated, zero := uint32(e.bitmap), uint32(e.bitmap>>32)
	switch {
	case allocated&zero != 0:
		return 0, corrupt("a subcluster is allocated and zero at once")
	case allocated != 0 && e.host() == 0:
		return 0, corrupt("a subcluster is allocated in a cluster that is not")
	case zero>>sub&1 != 0:
		return Zero, nil
	case allocated>>sub&1 != 0:
		return Data, nil
	}
	return Absent, nil
}

// alike is how many subclusters from sub on are of the same kind as sub.
func (e l2Entry) alike(sub int) int {
	same := func(b uint32) int { // leading run of equal bits
		b >>= sub
		if b&1 != 0 {
			b = ^b
		}
		return bits.TrailingZeros32(b)
	}
	return min(same(uint32(e.bitmap)), same(uint32(e.bitmap>>32)), subclusters-sub)
}
