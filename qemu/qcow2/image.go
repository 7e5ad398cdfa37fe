package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Image is one layer of a chain: a qcow2 image or a raw file, open for reading.
// Several goroutines may use it.
type Image struct {
	src      Source
	header   *Header // nil for a raw file
	geometry         // of no meaning for a raw file
	fileSize int64   // when it was opened
	virtual  int64   // bytes a guest sees
	meta     *metaCache
}

// maxFileSize is far more than entries of tables can reach, and leaves room for
// sums of offsets.
const maxFileSize = 1 << 61

// Open opens a qcow2 image. Its header is validated and little more is read:
// tables are validated entry by entry where they are used. What cannot be read
// as its guest would is an error of the groups in errors.go: encryption and an
// external data file are ErrUnsupported, an image marked corrupt is ErrCorrupt.
func Open(src Source) (*Image, error) {
	size, err := src.Size()
	if err != nil {
		return nil, err
	}
	h, err := ReadHeader(src, size)
	if err != nil {
		return nil, err
	}
	switch {
	case size > maxFileSize:
		return nil, unsupported("the file has %d bytes", size)
	case h.Has(Corrupt):
		return nil, corrupt("the image is marked corrupt; see qemu-img check")
	case h.CryptMethod != 0:
		return nil, unsupported("the image is encrypted")
	case h.Has(ExternalData):
		return nil, unsupported("the image has an external data file")
	}
	return &Image{
		src: src, header: h, geometry: h.geometry(), fileSize: size,
		// QEMU counts sectors and leaves the rest out (qcow2_do_open).
		virtual: int64(h.VirtualSize) / sectorSize * sectorSize,
		meta:    newMetaCache(src, size),
	}, nil
}

// OpenRaw opens a raw file: its bytes are the guest's. Holes are known where
// src is a Holer.
func OpenRaw(src Source) (*Image, error) {
	size, err := src.Size()
	if err != nil {
		return nil, err
	}
	return &Image{src: src, fileSize: size, virtual: size}, nil
}

// Header is the image's header, nil for a raw file. It must not be changed.
func (im *Image) Header() *Header { return im.header }

// VirtualSize is what the guest sees, in bytes.
func (im *Image) VirtualSize() int64 { return im.virtual }

// Holer is a source that knows where it has holes.
type Holer interface {
	// NextData is the next range at or behind off that is no hole; at the end
	// of the file, where there is none, both are the file's size.
	NextData(off int64) (start, end int64, err error)
}

// checkL1 is the offset of the L2 table that an L1 entry names, 0 for none.
func (im *Image) checkL1(entry uint64) (table int64, err error) {
	table = int64(entry & offsetMask)
	switch {
	case entry&l1Reserved != 0:
		return 0, corrupt("an L1 entry has reserved bits: %#x", entry)
	case table%im.cluster() != 0:
		return 0, corrupt("an L2 table's offset %#x is not aligned", table)
	case table >= im.fileSize && table != 0:
		return 0, truncated("an L2 table lies behind the end of the file, at %#x", table)
	}
	return table, nil
}

// entryOf decodes the entry that starts b.
func (g geometry) entryOf(b []byte) l2Entry {
	e := l2Entry{desc: binary.BigEndian.Uint64(b)}
	if g.extended {
		e.bitmap = binary.BigEndian.Uint64(b[8:])
	}
	return e
}

func (g geometry) putEntry(b []byte, e l2Entry) {
	binary.BigEndian.PutUint64(b, e.desc)
	if g.extended {
		binary.BigEndian.PutUint64(b[8:], e.bitmap)
	}
}

// readData reads bytes of the layer's file. In a file's last cluster, behind its
// end, there are zeros: QEMU does not always write clusters in full.
func (im *Image) readData(p []byte, off int64) error {
	have := max(min(im.fileSize-off, int64(len(p))), 0)
	clear(p[have:])
	n, err := im.src.ReadAt(p[:have], off)
	if int64(n) == have {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = fmt.Errorf("the file shrank: %w", io.ErrUnexpectedEOF)
	}
	return fmt.Errorf("read %d bytes at %d: %w", have, off, err)
}
