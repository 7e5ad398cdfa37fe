package qcow2

import (
	"encoding/binary"
	"math"
	"strings"
)

// validate checks the header against the specification and a file of size bytes.
func (h *Header) validate(size int64) error {
	for _, check := range []func(int64) error{
		h.checkLength,
		h.checkVersion,
		h.checkClusters,
		h.checkHeaderLength,
		h.checkBackingName,
		h.checkFeatures,
		h.checkEncryption,
		h.checkTables,
		h.checkVirtualSize,
	} {
		if err := check(size); err != nil {
			return err
		}
	}
	return nil
}

func (h *Header) checkLength(size int64) error {
	if size < headerLengthV2 || h.Version == 3 && size < minHeaderLengthV3 {
		return truncated("the file has %d bytes, less than a header", size)
	}
	return nil
}

func (h *Header) checkVersion(int64) error {
	if h.Version != 2 && h.Version != 3 {
		return unsupported("version %d is unknown", h.Version)
	}
	return nil
}

func (h *Header) checkClusters(int64) error {
	switch {
	case h.ClusterBits < minClusterBits, h.ClusterBits > maxClusterBits:
		return corrupt("cluster_bits is %d", h.ClusterBits)
	case h.Has(ExtendedL2) && h.ClusterBits < minExtL2Bits:
		return corrupt("cluster_bits is %d, too few for extended L2 entries", h.ClusterBits)
	case h.RefcountOrder > maxRefcountOrder:
		return corrupt("the refcount order is %d", h.RefcountOrder)
	}
	return nil
}

func (h *Header) checkHeaderLength(size int64) error {
	n := int64(h.HeaderLength)
	switch {
	case h.Version == 3 && (n < minHeaderLengthV3 || n%8 != 0), n > h.ClusterSize():
		return corrupt("the header length is %d", n)
	case n > size:
		return truncated("the header has %d bytes, the file %d", n, size)
	}
	return nil
}

// checkBackingName: specification, "Header", bytes 8 to 19, and "Header
// extensions": the name lies between the extensions and the end of cluster 0.
func (h *Header) checkBackingName(int64) error {
	if h.BackingOffset == 0 {
		return nil
	}
	cluster := uint64(h.ClusterSize())
	switch {
	case h.BackingSize > maxBackingName:
		return corrupt("the backing name has %d bytes", h.BackingSize)
	case h.BackingOffset < uint64(h.HeaderLength):
		return corrupt("the backing name lies inside the header")
	case h.BackingOffset > cluster || uint64(h.BackingSize) > cluster-h.BackingOffset:
		return corrupt("the backing name lies outside the first cluster")
	case strings.IndexByte(h.BackingName, 0) >= 0:
		return corrupt("the backing name has a NUL byte")
	}
	return nil
}

func (h *Header) checkFeatures(int64) error {
	compressionBit := h.Has(CompressionType)
	switch unknown := h.Incompatible &^ knownIncompat; {
	case unknown != 0:
		return unsupported("incompatible feature bits %#x are unknown", unknown)
	case h.CompressionType > maxCompression:
		return unsupported("compression type %d is unknown", h.CompressionType)
	case compressionBit != (h.CompressionType != 0):
		return corrupt("the compression type and its feature bit contradict each other")
	}
	return nil
}

func (h *Header) checkEncryption(int64) error {
	if h.CryptMethod > maxCryptMethod {
		return unsupported("encryption method %d is unknown", h.CryptMethod)
	}
	return nil
}

// region is a piece of metadata in the file.
type region struct {
	name     string
	off, len uint64
}

// checkTables: every table is aligned, inside the file and apart from all others.
func (h *Header) checkTables(size int64) error {
	if err := h.checkTableSizes(); err != nil {
		return err
	}
	regions, err := h.regions()
	if err != nil {
		return err
	}
	for i, r := range regions {
		if err := h.checkRegion(r, uint64(size)); err != nil {
			return err
		}
		for _, o := range regions[:i] {
			if r.off < o.off+o.len && o.off < r.off+r.len {
				return corrupt("%s overlaps %s", r.name, o.name)
			}
		}
	}
	return nil
}

func (h *Header) checkTableSizes() error {
	switch {
	case uint64(h.L1Size)*8 > maxL1Bytes:
		return corrupt("the L1 table has %d entries", h.L1Size)
	case h.RefcountTableClusters == 0:
		return corrupt("there is no refcount table")
	case uint64(h.RefcountTableClusters)<<h.ClusterBits > maxRefcountBytes:
		return corrupt("the refcount table has %d clusters", h.RefcountTableClusters)
	case h.Snapshots > maxSnapshots:
		return corrupt("there are %d snapshots", h.Snapshots)
	}
	return nil
}

// regions lists the metadata that the header points at, those of no length left
// out. The snapshot table's true length is known only after reading it; its
// least length is used.
func (h *Header) regions() ([]region, error) {
	all := []region{
		{"the refcount table", h.RefcountTableOffset, uint64(h.RefcountTableClusters) << h.ClusterBits},
		{"the L1 table", h.L1Offset, uint64(h.L1Size) * 8},
		{"the snapshot table", h.SnapshotsOffset, uint64(h.Snapshots) * minSnapshotEntry},
	}
	if e := h.extension(ExtEncryption); e != nil {
		if len(e.Data) < 16 {
			return nil, corrupt("the encryption header's pointer has %d bytes", len(e.Data))
		}
		all = append(all, region{"the encryption header", binary.BigEndian.Uint64(e.Data), binary.BigEndian.Uint64(e.Data[8:])})
	}
	// Without its autoclear bit the extension is stale and to be ignored
	// (specification, "Bitmaps extension").
	if e := h.extension(ExtBitmaps); e != nil && h.Autoclear&1 != 0 {
		if len(e.Data) < 24 {
			return nil, corrupt("the bitmaps extension has %d bytes", len(e.Data))
		}
		if n, size := binary.BigEndian.Uint32(e.Data), binary.BigEndian.Uint64(e.Data[8:]); n > maxBitmaps || size > maxBitmapDirectory {
			return nil, corrupt("there are %d bitmaps in a directory of %d bytes", n, size)
		}
		all = append(all, region{"the bitmap directory", binary.BigEndian.Uint64(e.Data[16:]), binary.BigEndian.Uint64(e.Data[8:])})
	}
	regions := []region{{"the header", 0, uint64(h.ClusterSize())}}
	for _, r := range all {
		if r.len > 0 {
			regions = append(regions, r)
		}
	}
	return regions, nil
}

func (h *Header) checkRegion(r region, size uint64) error {
	switch {
	case r.off%uint64(h.ClusterSize()) != 0:
		return corrupt("%s is not aligned to a cluster", r.name)
	case r.off > size, r.len > size-r.off:
		return truncated("%s lies behind the end of the file", r.name)
	}
	return nil
}

// checkVirtualSize: the L1 table covers the disk, as qcow2_do_open demands.
func (h *Header) checkVirtualSize(int64) error {
	if h.VirtualSize > math.MaxInt64 {
		return corrupt("the virtual size is %d bytes", h.VirtualSize)
	}
	entry := uint32(3) // log2 of an L2 entry's size
	if h.Has(ExtendedL2) {
		entry = 4
	}
	covered := 2*h.ClusterBits - entry // log2 of what one L1 entry covers, at most 39
	need := h.VirtualSize >> covered
	if h.VirtualSize&(1<<covered-1) != 0 {
		need++
	}
	if uint64(h.L1Size) < need {
		return corrupt("the L1 table has %d entries, the disk needs %d", h.L1Size, need)
	}
	return nil
}
