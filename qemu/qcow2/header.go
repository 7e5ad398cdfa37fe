package qcow2

import "encoding/binary"

// Magic is what every qcow and qcow2 file starts with (specification, "Header",
// bytes 0 to 3).
const Magic = "QFI\xfb"

// The limits of what is accepted.
const (
	minClusterBits    = 9  // specification, "Header", bytes 20 to 23
	maxClusterBits    = 21 // implementation limit of QEMU, same place
	minExtL2Bits      = 14 // same place: with extended L2 entries
	maxRefcountOrder  = 6  // bytes 96 to 99
	maxBackingName    = 1023
	maxBackingFormat  = 15       // QEMU keeps the format's name in 16 bytes
	maxL1Bytes        = 32 << 20 // implementation limit of QEMU, bytes 24 to 31
	maxRefcountBytes  = 8 << 20  // QCOW_MAX_REFTABLE_SIZE
	maxSnapshots      = 65536    // QCOW_MAX_SNAPSHOTS
	minSnapshotEntry  = 40       // specification, "Snapshots": bytes of a table entry without its strings
	maxBitmaps        = 65535    // QCOW2_MAX_BITMAPS
	headerLengthV2    = 72
	minHeaderLengthV3 = 104

	maxBitmapDirectory = 1024 * maxBitmaps // QCOW2_MAX_BITMAP_DIRECTORY_SIZE, bytes
)

// Incompatible feature bits (specification, bytes 72 to 79).
const (
	Dirty            = 1 << 0 // refcounts may be stale; data is sound
	Corrupt          = 1 << 1
	ExternalData     = 1 << 2
	CompressionType  = 1 << 3
	ExtendedL2       = 1 << 4
	knownIncompat    = Dirty | Corrupt | ExternalData | CompressionType | ExtendedL2
	maxCompression   = 1 // 0 deflate, 1 zstd
	maxCryptMethod   = 2 // 0 none, 1 AES, 2 LUKS
	refcountOrderV2  = 4
	compressionField = 104
)

// Header is an image's header as it stands in the file. When it came together
// with an error its numbers must not be used to find anything in the file.
type Header struct {
	Version               uint32
	ClusterBits           uint32
	VirtualSize           uint64 // bytes
	CryptMethod           uint32 // 0 none, 1 AES, 2 LUKS
	L1Size                uint32 // entries
	L1Offset              uint64
	RefcountTableOffset   uint64
	RefcountTableClusters uint32
	Snapshots             uint32 // number of internal snapshots
	SnapshotsOffset       uint64
	Incompatible          uint64
	Compatible            uint64
	Autoclear             uint64
	RefcountOrder         uint32
	HeaderLength          uint32
	CompressionType       uint8

	// BackingOffset is 0 for an image without a backing file. BackingName is
	// the name's bytes, whatever they are.
	BackingOffset uint64
	BackingSize   uint32
	BackingName   string

	// BackingLost is set when the header has a backing name that is not inside
	// the file, or too long to be one: there is a parent, and nobody can say which.
	BackingLost bool

	BackingFormat string // as its extension has it, empty without
	DataFile      string // the external data file's name, empty without
	HasBitmaps    bool
	Extensions    []Extension // in the file's order, the known ones too
}

// ClusterSize is in bytes. It is meaningful only when ReadHeader gave no error.
func (h *Header) ClusterSize() int64 { return 1 << h.ClusterBits }

// Has reports whether all bits are set among the incompatible features.
func (h *Header) Has(bits uint64) bool { return h.Incompatible&bits == bits }

// decode reads the fixed fields from b, which is padded with zeros up to at
// least 112 bytes.
func decode(b []byte) *Header {
	be := binary.BigEndian
	h := &Header{
		Version:       be.Uint32(b[4:]),
		BackingOffset: be.Uint64(b[8:]),
		BackingSize:   be.Uint32(b[16:]),
	}
	if h.Version == 1 { // from byte 20 on version 1 has another layout
		h.VirtualSize = be.Uint64(b[24:])
		return h
	}
	h.ClusterBits = be.Uint32(b[20:])
	h.VirtualSize = be.Uint64(b[24:])
	h.CryptMethod = be.Uint32(b[32:])
	h.L1Size = be.Uint32(b[36:])
	h.L1Offset = be.Uint64(b[40:])
	h.RefcountTableOffset = be.Uint64(b[48:])
	h.RefcountTableClusters = be.Uint32(b[56:])
	h.Snapshots = be.Uint32(b[60:])
	h.SnapshotsOffset = be.Uint64(b[64:])
	h.RefcountOrder = refcountOrderV2
	h.HeaderLength = headerLengthV2
	if h.Version >= 3 {
		h.decodeV3(b)
	}
	return h
}

func (h *Header) decodeV3(b []byte) {
	be := binary.BigEndian
	h.Incompatible = be.Uint64(b[72:])
	h.Compatible = be.Uint64(b[80:])
	h.Autoclear = be.Uint64(b[88:])
	h.RefcountOrder = be.Uint32(b[96:])
	h.HeaderLength = be.Uint32(b[100:])
	if h.HeaderLength > compressionField {
		h.CompressionType = b[compressionField]
	}
}
