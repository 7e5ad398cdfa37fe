package qcow2

import "bytes"

// tiny is an image to be spoilt, of 512-byte clusters: header, refcount table,
// refcount block, L1 table, L2 table, data; a disk of 64 KiB.
type tiny struct{ draft }

func newTiny(backing string) tiny {
	d := tiny{make(draft, 6*512)}
	copy(d.draft, Magic)
	d.u32(4, 3)
	d.u32(20, 9)
	d.u64(24, 64<<10)
	d.u32(36, 2)
	d.u64(40, 3*512)
	d.u64(48, 1*512)
	d.u32(56, 1)
	d.u32(96, 4)
	d.u32(100, 104)
	d.ext(104, ExtBackingFormat, "qcow2")
	if backing != "" {
		d.name(256, backing)
	}
	d.u64(1*512, 2*512)
	for i := range 6 {
		d.count(i, 1)
	}
	d.u64(3*512, 4*512|flagCopied)
	d.u64(4*512, 5*512|flagCopied)
	copy(d.draft[5*512:], bytes.Repeat([]byte{0xa5}, 512))
	return d
}

// count sets a refcount.
func (d tiny) count(cluster, n int) {
	d.draft[2*512+cluster*2], d.draft[2*512+cluster*2+1] = byte(n>>8), byte(n)
}

// hostileImage is an image that somebody made on purpose.
type hostileImage struct {
	name  string
	spoil func(d tiny)
	size  int64 // of the file, apparently; 0 for as long as it is
}

var hostileImages = []hostileImage{
	{"sound", func(d tiny) {}, 0},
	{"l1-of-32-mib", func(d tiny) { d.u32(36, 4<<20); d.u64(40, 1<<20) }, 1 << 30},
	{"l1-longer-than-the-file", func(d tiny) { d.u32(36, 4<<20) }, 0},
	{"refcount-table-of-8-mib", func(d tiny) { d.u64(48, 1<<20); d.u32(56, 8<<20/512) }, 1 << 30},
	{"names-itself", func(d tiny) { d.name(256, "0") }, 0},
	{"names-who-names-it", func(d tiny) { d.name(256, "1") }, 0},
	{"json", func(d tiny) { d.name(256, `json:{"driver":"raw","file":{"filename":"/etc/shadow"}}`) }, 0},
	{"protocol", func(d tiny) { d.name(256, "nbd://127.0.0.1:10809/x") }, 0},
	{"etc-shadow", func(d tiny) { d.name(256, "/etc/shadow") }, 0},
	{"name-of-length-0", func(d tiny) { d.name(256, "") }, 0},
	{"cluster-bits-63", func(d tiny) { d.u32(20, 63) }, 0},
	{"l2-is-l1", func(d tiny) { d.u64(3*512, 3*512|flagCopied); d.count(3, 2) }, 0},
	{"l2-is-l1-shared", func(d tiny) { d.u64(3*512, 3*512); d.count(3, 2) }, 0},
	{"l2-is-refcount-block", func(d tiny) { d.u64(3*512, 2*512|flagCopied); d.count(2, 2) }, 0},
	{"l2-is-refcount-table", func(d tiny) { d.u64(3*512, 1*512); d.count(1, 2) }, 0},
	{"l2-twice", func(d tiny) { d.u64(3*512+8, 4*512|flagCopied); d.count(4, 2) }, 0},
	{"data-is-refcount-block", func(d tiny) { d.u64(4*512, 2*512); d.count(2, 2); d.count(5, 0) }, 0},
	{"data-is-l1", func(d tiny) { d.u64(4*512+8, 3*512); d.count(3, 2) }, 0},
	{"data-is-l2", func(d tiny) { d.u64(4*512+8, 4*512); d.count(4, 2) }, 0},
	{"data-twice", func(d tiny) { d.u64(4*512+8, 5*512|flagCopied); d.count(5, 2) }, 0},
	{"data-twice-shared", func(d tiny) { d.u64(4*512, 5*512); d.u64(4*512+8, 5*512); d.count(5, 2) }, 0},
	{"packed-is-header", func(d tiny) { d.u64(4*512+8, flagCompressed); d.count(0, 2) }, 0},
	{"packed-is-refcount-block", func(d tiny) { d.u64(4*512+8, flagCompressed|2*512+100); d.count(2, 2) }, 0},
	{"packed-behind-end", func(d tiny) { d.u64(4*512+8, flagCompressed|1<<60) }, 0},
	{"packed-in-two-lengths", func(d tiny) {
		d.u64(4*512, flagCompressed|5*512+505)
		d.u64(4*512+8, flagCompressed|1<<61|5*512+505)
		copy(d.draft[5*512+505:], "\x01\x00\x02\xff\xfd") // a stored block of 512 bytes
	}, 4096},
	{"l2-behind-end", func(d tiny) { d.u64(3*512, 1<<55|flagCopied) }, 0},
	{"data-behind-end", func(d tiny) { d.u64(4*512, 1<<55|flagCopied) }, 0},
	{"data-behind-4-eib", func(d tiny) { d.u64(4*512, 1<<55|flagCopied) }, 1 << 61},
	{"file-of-8-eib", func(d tiny) {}, 1<<63 - 1},
	{"refcount-block-behind-end", func(d tiny) { d.u64(1*512+8, 1<<62) }, 0},
	{"refcount-block-negative", func(d tiny) { d.u64(1*512+8, 1<<64-512) }, 0},
	{"refcount-block-twice", func(d tiny) { d.u64(1*512+8, 2*512); d.count(2, 2) }, 0},
	{"zero-in-version-2", func(d tiny) { d.u32(4, 2); d.u32(100, 0); d.u64(4*512+8, flagZero) }, 0},
	{"snapshot-wraps", func(d tiny) {
		d.u32(60, 1)
		d.u64(64, 5*512)
		clear(d.draft[5*512:])
		d.u64(5*512, 1<<63-512)
		d.u32(5*512+8, 64)
	}, 0},
	{"snapshot-is-active", func(d tiny) {
		d.u32(60, 1)
		d.u64(64, 5*512)
		clear(d.draft[4*512:])
		d.u64(5*512, 3*512)
		d.u32(5*512+8, 2)
	}, 0},
	{"bitmap-directory-of-8-eib", func(d tiny) { d.bitmaps(1, 1<<62, 0) }, 1 << 62},
	{"bitmap-directory-wraps", func(d tiny) { d.bitmaps(1<<16-1, 0, 1<<63-512) }, 0},
	{"bitmap-directory-is-l1", func(d tiny) { d.bitmaps(1, 24, 3*512) }, 0},
	{"bitmap-table-negative", func(d tiny) {
		d.bitmaps(1, 24, 5*512)
		clear(d.draft[5*512:])
		d.u64(5*512, 1<<64-512)
		d.u32(5*512+8, 1<<27)
	}, 0},
	{"bitmap-table-is-refcount-table", func(d tiny) {
		d.bitmaps(1, 24, 5*512)
		clear(d.draft[4*512:])
		d.u64(5*512, 1*512)
		d.u32(5*512+8, 64)
	}, 0},
	{"extensions-of-no-length", func(d tiny) {
		for off := 104; off < 512; off += 8 {
			d.u32(off, 0x11111111)
		}
	}, 0},
	{"reserved-bits", func(d tiny) { d.u64(3*512+8, 1<<60); d.u64(4*512, 5*512|flagCopied|1<<58) }, 0},
	{"l1-flag-without-table", func(d tiny) { d.u64(3*512+8, flagCopied) }, 0},
}

// bitmaps adds the extension with its autoclear bit.
func (d tiny) bitmaps(n uint32, size, off uint64) {
	d.u64(88, 1)
	d.u32(120, ExtBitmaps)
	d.u32(124, 24)
	d.u32(128, n)
	d.u64(136, size)
	d.u64(144, off)
}

func (h hostileImage) bytes() []byte {
	d := newTiny("1")
	h.spoil(d)
	return d.draft
}

// hostileSets has each hostile image as child, and as parent, of sound ones.
func hostileSets(sound imageSet) []imageSet {
	var all []imageSet
	for _, h := range hostileImages {
		all = append(all,
			imageSet{h.name, [3][]byte{h.bytes(), sound.files[1], sound.files[2]}},
			imageSet{h.name + "-below", [3][]byte{sound.files[0], h.bytes(), sound.files[2]}})
	}
	return all
}
