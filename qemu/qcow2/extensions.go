package qcow2

import "encoding/binary"

// The types of header extensions (specification, "Header extensions").
const (
	ExtEnd           = 0
	ExtBackingFormat = 0xE2792ACA
	ExtFeatureNames  = 0x6803F857
	ExtBitmaps       = 0x23852875
	ExtEncryption    = 0x0537BE77
	ExtDataFile      = 0x44415441
)

// Extension is one header extension, unknown ones included.
type Extension struct {
	Type uint32
	Data []byte
}

// QEMU writes five extensions of a few hundred bytes. Without a bound, a first
// cluster of 2 MiB that is full of empty ones would take seconds to read and
// megabytes to keep, and there may be 256 of them in a chain.
const (
	maxExtensions     = 256
	maxExtensionBytes = 64 << 10
)

// readExtensions walks the extension area: from the end of the header up to the
// backing name, or to the end of the first cluster when there is none.
func (h *Header) readExtensions(in *input) (format, reading error) {
	start, end, ok := h.extensionArea()
	if !ok {
		return nil, nil // validate says what is wrong
	}
	end = min(end, in.size)
	for off := start; off+8 <= end; {
		if len(h.Extensions) == maxExtensions || off > start+maxExtensionBytes {
			return firstError(format, unsupported("the header extensions are too many or too long")), nil
		}
		if err := in.fill(off + 8); err != nil {
			return nil, err
		}
		if int64(len(in.buf)) < off+8 {
			return truncated("the header extensions are cut off"), nil
		}
		typ := binary.BigEndian.Uint32(in.buf[off:])
		n := int64(binary.BigEndian.Uint32(in.buf[off+4:]))
		off += 8
		if typ == ExtEnd {
			return format, nil
		}
		if n > end-off {
			return firstError(format, corrupt("header extension %#08x is longer than the area it lies in", typ)), nil
		}
		if n > maxExtensionBytes {
			return firstError(format, unsupported("header extension %#08x has %d bytes", typ, n)), nil
		}
		// The rest of the area at once: an area beyond the first read is rare,
		// and one read per extension would let a file ask for thousands.
		if off+n > int64(len(in.buf)) {
			if err := in.fill(min(end, start+2*maxExtensionBytes)); err != nil {
				return nil, err
			}
			if int64(len(in.buf)) < off+n {
				return truncated("the header extensions are cut off"), nil
			}
		}
		format = firstError(format, h.addExtension(Extension{typ, in.buf[off : off+n : off+n]}))
		off += (n + 7) &^ 7
	}
	return format, nil
}

func (h *Header) extensionArea() (start, end int64, ok bool) {
	if h.Version != 2 && h.Version != 3 || h.ClusterBits < minClusterBits || h.ClusterBits > maxClusterBits {
		return 0, 0, false
	}
	start, end = int64(h.HeaderLength), h.ClusterSize()
	if h.BackingOffset != 0 && h.BackingOffset < uint64(end) {
		end = int64(h.BackingOffset)
	}
	return start, end, start >= headerLengthV2
}

func (h *Header) addExtension(e Extension) error {
	again := h.extension(e.Type) != nil
	h.Extensions = append(h.Extensions, e)
	switch e.Type {
	case ExtBackingFormat:
		h.BackingFormat = string(e.Data)
		if len(e.Data) > maxBackingFormat {
			return corrupt("the backing format's name has %d bytes", len(e.Data))
		}
	case ExtDataFile:
		h.DataFile = string(e.Data)
	case ExtBitmaps:
		h.HasBitmaps = true
	case ExtFeatureNames, ExtEncryption:
	default:
		return nil // an unknown type may come as often as it likes
	}
	if again {
		return corrupt("header extension %#08x is there twice", e.Type)
	}
	return nil
}

// extension is the first extension of a type, nil when there is none.
func (h *Header) extension(typ uint32) *Extension {
	for i := range h.Extensions {
		if h.Extensions[i].Type == typ {
			return &h.Extensions[i]
		}
	}
	return nil
}
