package qcow2

import (
	"encoding/binary"
)

// draft is a header to be spoilt by a test: a sound one of version 3 with a
// backing file, four clusters of 64 KiB long, a disk of 1 GiB.
type draft []byte

func newDraft(name string) draft {
	d := make(draft, 4<<16)
	copy(d, Magic)
	d.u32(4, 3)
	d.u32(20, 16)
	d.u64(24, 1<<30)
	d.u32(36, 2)
	d.u64(40, 3<<16)
	d.u64(48, 1<<16)
	d.u32(56, 1)
	d.u32(96, 4)
	d.u32(100, 112)
	d.ext(112, ExtBackingFormat, "qcow2")
	d.name(512, name)
	return d
}

func (d draft) u32(off int, v uint32) { binary.BigEndian.PutUint32(d[off:], v) }
func (d draft) u64(off int, v uint64) { binary.BigEndian.PutUint64(d[off:], v) }

func (d draft) name(off int, name string) {
	d.u64(8, uint64(off))
	d.u32(16, uint32(len(name)))
	if off < len(d) {
		copy(d[off:], name)
	}
}

func (d draft) ext(off int, typ uint32, data string) {
	d.u32(off, typ)
	d.u32(off+4, uint32(len(data)))
	copy(d[off+8:], data)
}

// headerCase is a spoilt header, what ReadHeader says of it and the backing
// name it must find all the same.
type headerCase struct {
	name  string
	spoil func(d draft) draft
	group error
	back  string
}

const parent = "full.qcow2"

var headerCases = []headerCase{
	{"sound", func(d draft) draft { return d }, nil, parent},
	{"empty-file", func(d draft) draft { return nil }, ErrNotQcow2, ""},
	{"half-magic", func(d draft) draft { return d[:3] }, ErrNotQcow2, ""},
	{"magic-only", func(d draft) draft { return d[:4] }, ErrTruncated, ""},
	{"cut-in-header", func(d draft) draft { return d[:60] }, ErrTruncated, ""},
	{"cut-in-v3-fields", func(d draft) draft { return d[:90] }, ErrTruncated, ""},
	{"cut-before-name", func(d draft) draft { return d[:512] }, ErrTruncated, ""},
	{"cut-after-name", func(d draft) draft { return d[:600] }, ErrTruncated, parent},
	{"cut-before-l1", func(d draft) draft { return d[:3<<16] }, ErrTruncated, parent},
	{"version-0", func(d draft) draft { d.u32(4, 0); return d }, ErrUnsupported, parent},
	{"version-1", func(d draft) draft { d.u32(4, 1); return d }, ErrUnsupported, parent},
	{"version-4", func(d draft) draft { d.u32(4, 4); return d }, ErrUnsupported, parent},
	{"version-max", func(d draft) draft { d.u32(4, 1<<32-1); return d }, ErrUnsupported, parent},
	{"cluster-bits-0", func(d draft) draft { d.u32(20, 0); return d }, ErrCorrupt, parent},
	{"cluster-bits-8", func(d draft) draft { d.u32(20, 8); return d }, ErrCorrupt, parent},
	{"cluster-bits-22", func(d draft) draft { d.u32(20, 22); return d }, ErrCorrupt, parent},
	{"cluster-bits-63", func(d draft) draft { d.u32(20, 63); return d }, ErrCorrupt, parent},
	{"cluster-bits-max", func(d draft) draft { d.u32(20, 1<<32-1); return d }, ErrCorrupt, parent},
	{"extended-l2-small-clusters", func(d draft) draft { d.u64(72, ExtendedL2); d.u32(20, 13); return d }, ErrCorrupt, parent},
	{"refcount-order-7", func(d draft) draft { d.u32(96, 7); return d }, ErrCorrupt, parent},
	{"header-length-0", func(d draft) draft { d.u32(100, 0); return d }, ErrCorrupt, parent},
	{"header-length-odd", func(d draft) draft { d.u32(100, 109); return d }, ErrCorrupt, parent},
	{"header-length-huge", func(d draft) draft { d.u32(100, 1<<32-8); return d }, ErrCorrupt, parent},
	{"unknown-feature", func(d draft) draft { d.u64(72, 1<<5); return d }, ErrUnsupported, parent},
	{"unknown-feature-63", func(d draft) draft { d.u64(72, 1<<63); return d }, ErrUnsupported, parent},
	{"dirty", func(d draft) draft { d.u64(72, Dirty); return d }, nil, parent},
	{"corrupt-bit", func(d draft) draft { d.u64(72, Corrupt); return d }, nil, parent},
	{"zstd", func(d draft) draft { d.u64(72, CompressionType); d[104] = 1; return d }, nil, parent},
	{"compression-without-bit", func(d draft) draft { d[104] = 1; return d }, ErrCorrupt, parent},
	{"compression-2", func(d draft) draft { d.u64(72, CompressionType); d[104] = 2; return d }, ErrUnsupported, parent},
	{"luks-method", func(d draft) draft { d.u32(32, 2); return d }, nil, parent},
	{"crypt-method-3", func(d draft) draft { d.u32(32, 3); return d }, ErrUnsupported, parent},
	{"l1-absurd", func(d draft) draft { d.u32(36, 1<<32-1); return d }, ErrCorrupt, parent},
	{"l1-behind-end", func(d draft) draft { d.u64(40, 1<<62); return d }, ErrTruncated, parent},
	{"l1-unaligned", func(d draft) draft { d.u64(40, 3<<16+8); return d }, ErrCorrupt, parent},
	{"l1-in-header", func(d draft) draft { d.u64(40, 0); return d }, ErrCorrupt, parent},
	{"l1-on-refcount-table", func(d draft) draft { d.u64(40, 1<<16); return d }, ErrCorrupt, parent},
	{"l1-too-small", func(d draft) draft { d.u32(36, 1); return d }, ErrCorrupt, parent},
	{"refcount-table-none", func(d draft) draft { d.u32(56, 0); return d }, ErrCorrupt, parent},
	{"refcount-table-absurd", func(d draft) draft { d.u32(56, 1<<32-1); return d }, ErrCorrupt, parent},
	{"refcount-table-wraps", func(d draft) draft { d.u64(48, 1<<64-1<<16); return d }, ErrTruncated, parent},
	{"snapshots", func(d draft) draft { d.u32(60, 2); d.u64(64, 2<<16); return d }, nil, parent},
	{"snapshots-absurd", func(d draft) draft { d.u32(60, 1<<31); return d }, ErrCorrupt, parent},
	{"snapshots-in-l1", func(d draft) draft { d.u32(60, 1); d.u64(64, 3<<16); return d }, ErrCorrupt, parent},
	{"virtual-size-max", func(d draft) draft { d.u64(24, 1<<64-1); return d }, ErrCorrupt, parent},
	{"virtual-size-huge", func(d draft) draft { d.u64(24, 1<<63-1); return d }, ErrCorrupt, parent},
	{"name-at-end-of-file", func(d draft) draft { d.u64(8, 4<<16); return d }, ErrCorrupt, ""},
	{"name-wraps", func(d draft) draft { d.u64(8, 1<<64-4); return d }, ErrCorrupt, ""},
	{"name-in-header", func(d draft) draft { d.name(80, "ab"); return d }, ErrCorrupt, "ab"},
	{"name-in-cluster-1", func(d draft) draft { d.name(1<<16+99, parent); return d }, ErrCorrupt, parent},
	{"name-across-cluster-0", func(d draft) draft { d.name(1<<16-3, parent); return d }, ErrCorrupt, parent},
	{"name-beyond-first-read", func(d draft) draft { d.name(40000, parent); return d }, nil, parent},
	{"name-empty", func(d draft) draft { d.name(512, ""); return d }, nil, ""},
	{"name-1023", func(d draft) draft { d.name(512, long(1023)); return d }, nil, long(1023)},
	{"name-1024", func(d draft) draft { d.name(512, long(1024)); return d }, ErrCorrupt, long(1024)},
	{"name-absurd", func(d draft) draft { d.u32(16, 1<<32-1); return d }, ErrCorrupt, ""},
	{"name-nul", func(d draft) draft { d.name(512, "full\x00.qcow2"); return d }, ErrCorrupt, "full\x00.qcow2"},
	{"name-json", func(d draft) draft { d.name(512, `json:{"file.filename":"a"}`); return d }, nil, `json:{"file.filename":"a"}`},
	{"extension-too-long", func(d draft) draft { d.u32(116, 1<<32-1); return d }, ErrCorrupt, parent},
	{"extension-twice", func(d draft) draft { d.ext(128, ExtBackingFormat, "raw"); return d }, ErrCorrupt, parent},
	{"extension-format-long", func(d draft) draft { d.ext(112, ExtBackingFormat, long(16)); return d }, ErrCorrupt, parent},
	{"extension-unknown", func(d draft) draft { d.ext(128, 0x12345678, "whatever"); return d }, nil, parent},
	{"extension-bitmaps-short", func(d draft) draft { d.u64(88, 1); d.ext(128, ExtBitmaps, "abc"); return d }, ErrCorrupt, parent},
	{"extension-luks-short", func(d draft) draft { d.ext(128, ExtEncryption, "abc"); return d }, ErrCorrupt, parent},
	{"extension-luks-in-header", func(d draft) draft {
		d.ext(128, ExtEncryption, "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00")
		return d
	}, ErrCorrupt, parent},
}

func long(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = 'a' + byte(i%26)
	}
	return string(b)
}

func (c headerCase) bytes() []byte { return c.spoil(newDraft(parent)) }
