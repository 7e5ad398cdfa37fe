package qcow2

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

// sketch makes a first cluster of a notation, and say turns it back:
//
//	v3/65536 qcow2 u384 . 528:parent
//
// is version 3, clusters of 64 KiB, an extension for the format qcow2, an
// unknown one with 384 bytes, the END marker, and the name parent at byte 528.
// Without the dot what follows the extensions is not END. After v3 may come
// +N for a header that is N bytes longer. A name may be *N for N bytes.
func sketch(s string) []byte {
	words := strings.Fields(s)
	version, size, _ := strings.Cut(words[0], "/")
	version, longer, _ := strings.Cut(version, "+")
	d := draft(bytes.Repeat([]byte{0x5a}, number(size)))
	copy(d, make([]byte, 112))
	copy(d, Magic)
	off := 72
	d.u32(4, 2)
	if version == "v3" {
		off = 112 + number(longer)
		d.u32(4, 3)
		d.u32(96, 4)
		d.u32(100, uint32(off))
	}
	for 1<<d[23] < len(d) {
		d[23]++
	}
	d.u64(24, 1<<20)
	d.u32(36, 1<<15)
	d.u64(40, 8<<21)
	d.u64(48, 1<<21)
	d.u32(56, 1)
	for _, w := range words[1:] {
		at, name, isName := strings.Cut(w, ":")
		switch {
		case isName:
			d.name(number(at), sketchName(name))
		case w == ".":
			d.ext(off, ExtEnd, "")
			off += 8
		case w[0] == 'u':
			d.ext(off, 0x12345678, strings.Repeat("u", number(w[1:])))
			off += 8 + (number(w[1:])+7)&^7
		default:
			d.ext(off, ExtBackingFormat, w)
			off += 8 + (len(w)+7)&^7
		}
	}
	return d
}

func number(s string) int {
	n, _ := strconv.Atoi(s) // empty is 0
	return n
}

func sketchName(s string) string {
	if s == "" {
		return ""
	}
	if s[0] == '*' {
		return long(number(s[1:]))
	}
	return s
}

func say(t *testing.T, b []byte) string {
	t.Helper()
	h, err := parseCluster(b)
	if err != nil {
		return err.Error()
	}
	words := []string{fmt.Sprintf("v%d/%d", h.Version, len(b))}
	if h.HeaderLength > 112 {
		words[0] = fmt.Sprintf("v3+%d/%d", h.HeaderLength-112, len(b))
	}
	for _, e := range h.Extensions {
		if e.Type == ExtBackingFormat {
			words = append(words, string(e.Data))
		} else {
			words = append(words, fmt.Sprintf("u%d", len(e.Data)))
		}
	}
	if readArea(b, h).closed {
		words = append(words, ".")
	}
	if name := h.BackingName; h.BackingOffset != 0 {
		if len(name) > 26 {
			name = fmt.Sprintf("*%d", len(name))
		}
		words = append(words, fmt.Sprintf("%d:%s", h.BackingOffset, name))
	}
	return strings.Join(words, " ")
}

const noRoom = "no room"

// headerChanges: from and to are sketches; slack is the first write.
var headerChanges = []struct {
	from, name, format string
	slack, to          string
}{
	// What QEMU 7.2 writes: with the features' names the area ends at 528.
	{"v3/65536 qcow2 u384 . 528:a", "b", "qcow2", "529+1", "v3/65536 qcow2 u384 . 529:b"},
	{"v3/65536 qcow2 u384 . 529:b", "a", "qcow2", "528+1", "v3/65536 qcow2 u384 . 528:a"},
	{"v3/65536 qcow2 u384 . 528:a", "*1023", "raw", "529+1023", "v3/65536 raw u384 . 529:*1023"},
	{"v3/65536 qcow2 u384 . 528:*1023", "b", "raw", "1551+1", "v3/65536 raw u384 . 1551:b"},
	{"v3/65536 qcow2 u384 . 528:a", "a", "raw", "", "v3/65536 raw u384 . 528:a"},
	{"v3/65536 qcow2 u384 . 528:a", "", "", "", "v3/65536 u384 ."},
	{"v3/65536 u384 .", "a", "qcow2", "512+17", "v3/65536 qcow2 u384 . 528:a"},
	{"v3/65536 qcow2 u384 .", "a", "qcow2", "528+1", "v3/65536 qcow2 u384 . 528:a"},
	{"v3/2097152 qcow2 u384 . 528:a", "*1000", "qcow2", "529+1000", "v3/2097152 qcow2 u384 . 529:*1000"},
	// The name after the sector, or in it.
	{"v3/512 qcow2 . 136:a", "*376", "raw", "", "v3/512 raw . 136:*376"},
	{"v3/512 qcow2 . 136:a", "*377", "raw", noRoom, ""},
	{"v2/512 . 80:a", "*400", "raw", "", "v2/512 raw . 96:*400"},
	{"v2/1024 qcow2 . 96:*416", "*417", "qcow2", "512+417", "v2/1024 qcow2 . 512:*417"},
	{"v2/1024 qcow2 . 512:*417", "*416", "qcow2", "", "v2/1024 qcow2 . 96:*416"},
	{"v3/1024 qcow2 . 136:*600", "*376", "qcow2", "", "v3/1024 qcow2 . 136:*376"}, // over the old name's first part
	{"v3/1024 qcow2 . 136:*600", "*377", "qcow2", noRoom, ""},
	{"v3/1024 qcow2 u384 . 528:*300", "*196", "qcow2", "828+196", "v3/1024 qcow2 u384 . 828:*196"},
	{"v3/1024 qcow2 u384 . 528:*300", "*197", "qcow2", noRoom, ""},
	{"v3/1024 qcow2 u384 . 724:*300", "*196", "qcow2", "528+196", "v3/1024 qcow2 u384 . 528:*196"},
	{"v2/65536 . 80:*1000", "b", "raw", "", "v2/65536 raw . 96:b"},
	// A name that stays where it is, across the sector's end too.
	{"v3/65536 qcow2 . 500:*100", "*100", "raw", "", "v3/65536 raw . 500:*100"},
	{"v3/65536 . 130:a", "a", "raw", "", "v3/65536 raw . 136:a"},
	{"v3/65536 u384 . 528:a", "a", "raw", "512+16", "v3/65536 raw u384 . 528:a"},
	// No END marker: version 2 of old has the name right after the header.
	{"v2/65536 72:a", "b", "raw", "", "v2/65536 raw . 96:b"},
	{"v2/65536 72:*1000", "*1000", "raw", "1072+1000", "v2/65536 raw . 1072:*1000"},
	{"v3/65536 qcow2 u384 520:a", "b", "qcow2", noRoom, ""}, // END would lie on the old name
	{"v3/65536 qcow2 u376 512:a", "b", "qcow2", noRoom, ""},
	{"v3/65536 qcow2 u368 504:a", "b", "qcow2", "512+1", "v3/65536 qcow2 u368 . 512:b"},
	{"v3/512 u392", "", "", "", "v3/512 u392"},
	// Extensions behind the sector keep their place, or there is no room.
	{"v3/65536 qcow2 u600 . 800:a", "b", "qcow2", "744+1", "v3/65536 qcow2 u600 . 744:b"},
	{"v3/65536 qcow2 u600 . 800:a", "b", "raw", "744+1", "v3/65536 raw u600 . 744:b"},
	{"v3/65536 qcow2 u600 . 800:a", "b", "host_device", noRoom, ""},
	{"v3/65536 qcow2 u600 . 800:a", "", "", "", "v3/65536 qcow2 u600 ."},
	{"v3/65536 u600 . 800:a", "b", "raw", noRoom, ""},
	{"v3/65536 u600 .", "b", "raw", noRoom, ""},
	{"v3/65536 u600 qcow2 . 800:a", "b", "qcow2", "744+1", "v3/65536 u600 qcow2 . 744:b"},
	{"v3/65536 u600 qcow2 . 800:a", "b", "raw", noRoom, ""},
	{"v3/65536 u8 host_device u16 . 200:a", "b", "raw", "", "v3/65536 u8 raw u16 . 176:b"},
	{"v3/65536 u8 raw u16 . 176:a", "b", "host_device", "", "v3/65536 u8 host_device u16 . 184:b"},
	{"v3/65536 host_device u368 . 520:a", "b", "raw", "521+1", "v3/65536 raw u368 . 521:b"},
	{"v3/65536 host_device u368 . 600:a", "*600", "raw", "601+600", "v3/65536 raw u368 . 601:*600"},
	{"v3/65536 host_device u368 . 1200:a", "*600", "raw", "520+600", "v3/65536 raw u368 . 520:*600"},
	{"v3/65536 u384 . 528:a", "b", "raw", noRoom, ""}, // the old name lies between the area's new end and the new name
	{"v3/65536 u384 . 600:a", "b", "raw", "512+17", "v3/65536 raw u384 . 528:b"},
	// Longer headers, one that fills the sector and one beyond it.
	{"v3+64/65536 qcow2 . 200:a", "b", "raw", "", "v3+64/65536 raw . 200:b"},
	{"v3+392/65536 qcow2 . 600:a", "b", "qcow2", "528+1", "v3+392/65536 qcow2 . 528:b"},
	{"v3+392/65536 qcow2 . 600:a", "b", "raw", noRoom, ""},
	{"v3+800/65536 qcow2 . 1000:a", "b", "qcow2", "936+1", "v3+800/65536 qcow2 . 936:b"},
	{"v3+800/65536 qcow2 . 1000:a", "", "", "", "v3+800/65536 qcow2 ."},
	// A place for a name, but none in it.
	{"v3/65536 qcow2 u384 . 528:", "b", "qcow2", "528+1", "v3/65536 qcow2 u384 . 528:b"},
}

func TestPlanHeader(t *testing.T) {
	for _, c := range headerChanges {
		t.Run(c.from+" to "+c.name+" "+c.format, func(t *testing.T) {
			b := sketch(c.from)
			h, err := parseCluster(b)
			if err != nil {
				t.Fatal(err)
			}
			r, err := planHeader(b, h, HeaderChange{Backing: &Backing{sketchName(c.name), c.format}})
			slack, to := "", ""
			switch {
			case errors.Is(err, ErrNoRoom):
				slack = noRoom
			case err != nil:
				t.Fatal(err)
			case len(r.slack) > 0:
				slack = fmt.Sprintf("%d+%d", r.slackOff, len(r.slack))
			}
			if err == nil {
				copy(b[r.slackOff:], r.slack)
				copy(b, r.sector)
				to = say(t, b)
			}
			if slack != c.slack || to != c.to {
				t.Errorf("got %q, %q\nwant %q, %q", slack, to, c.slack, c.to)
			}
		})
	}
}

func TestPlanHeaderChangesFields(t *testing.T) {
	b := draft(sketch("v3+64/65536 qcow2 u384 . 592:a"))
	b.u64(72, Dirty|Corrupt|ExtendedL2)
	b.u64(80, 1<<63)
	b.u64(88, 1<<63|2|1)
	h, err := parseCluster(b)
	if err != nil {
		t.Fatal(err)
	}
	size := uint64(3 << 20)
	r, err := planHeader(b, h, HeaderChange{RefcountTable: &TableAt{4 << 21, 3}, VirtualSize: &size, ClearIncompatible: Dirty})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.slack) != 0 {
		t.Errorf("a slack write of %d bytes for nothing", len(r.slack))
	}
	want := bytes.Clone(b)
	w := draft(want)
	w.u64(24, size)
	w.u64(48, 4<<21)
	w.u32(56, 3)
	w.u64(72, Corrupt|ExtendedL2)
	w.u64(88, 1)
	copy(b, r.sector)
	if !bytes.Equal(b, want) {
		t.Errorf("got %x\nwant %x", b[:112], want[:112])
	}
}

// What no header can say is refused, and is not taken for a lack of room.
func TestPlanHeaderRefuses(t *testing.T) {
	size := uint64(1 << 63)
	for name, c := range map[string]HeaderChange{
		"long name":         {Backing: &Backing{long(1024), "raw"}},
		"NUL":               {Backing: &Backing{"a\x00", "raw"}},
		"no format":         {Backing: &Backing{"a", ""}},
		"long format":       {Backing: &Backing{"a", long(16)}},
		"format with NUL":   {Backing: &Backing{"a", "ra\x00w"}},
		"layout bit":        {ClearIncompatible: ExtendedL2},
		"huge disk":         {VirtualSize: &size},
		"table in header":   {RefcountTable: &TableAt{0, 1}},
		"table on L1":       {RefcountTable: &TableAt{8 << 21, 1}},
		"table not aligned": {RefcountTable: &TableAt{1<<21 + 512, 1}},
		"table outside":     {RefcountTable: &TableAt{1 << 40, 1}},
		"no table":          {RefcountTable: &TableAt{1 << 21, 0}},
	} {
		f := newCutFile(sketch("v3/65536 qcow2 u384 . 528:a"))
		if err := changeHeader(f, c); err == nil || errors.Is(err, ErrNoRoom) || len(f.trace) != 0 {
			t.Errorf("%s: got error %v after %q", name, err, f)
		}
	}
}

// A header that is not the one that was read must not be laid out by it.
func TestPlanHeaderOfAnother(t *testing.T) {
	h, err := parseCluster(sketch("v3/65536 qcow2 u384 . 528:a"))
	if err != nil {
		t.Fatal(err)
	}
	for _, other := range []string{"v3/65536 qcow2 u384 . 528:b", "v3/65536 qcow2 u60000 .", "v3/512 qcow2 . 136:a"} {
		if _, err := planHeader(sketch(other), h, HeaderChange{Backing: &Backing{"c", "raw"}}); err == nil {
			t.Errorf("%s: laid out", other)
		}
	}
}

// The proof finds what a wrong layout would do.
func TestProveFindsDamage(t *testing.T) {
	b := sketch("v3+64/65536 qcow2 u384 . 592:a")
	h, err := parseCluster(b)
	if err != nil {
		t.Fatal(err)
	}
	c := HeaderChange{Backing: &Backing{"b", "raw"}}
	for name, spoil := range map[string]func(r *rewrite){
		"none":          func(*rewrite) {},
		"name early":    func(r *rewrite) { r.slackOff, r.slack = 592, []byte("b") },
		"extension":     func(r *rewrite) { r.slackOff, r.slack = 580, []byte("x") },
		"unknown field": func(r *rewrite) { r.sector[150]++ },
		"L1":            func(r *rewrite) { r.sector[45] ^= 0x20 },
		"format":        func(r *rewrite) { r.sector[112+64+8] = 'x' },
		"name":          func(r *rewrite) { r.slack = []byte("c") },
	} {
		r, err := planHeader(b, h, c)
		if err != nil {
			t.Fatal(err)
		}
		spoil(&r)
		if err := r.prove(b, h, c); (err == nil) != (name == "none") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// Without the marker QEMU would read garbage as extensions.
func TestProveFindsNoEnd(t *testing.T) {
	b := sketch("v3/512 qcow2 . 136:a")
	h, err := parseCluster(b)
	if err != nil {
		t.Fatal(err)
	}
	c := HeaderChange{Backing: &Backing{"b", "raw"}}
	r, err := planHeader(b, h, c)
	if err != nil {
		t.Fatal(err)
	}
	draft(r.sector).name(128, "b")
	if err := r.prove(b, h, c); err == nil {
		t.Error("proved")
	}
}

func TestSketchSaysItself(t *testing.T) {
	for _, c := range headerChanges {
		if strings.HasSuffix(c.from, ":") {
			continue
		}
		if got := say(t, sketch(c.from)); got != c.from {
			t.Errorf("got %q, want %q", got, c.from)
		}
	}
}

// sameButParent compares all that a change of parent must leave alone.
func sameButParent(t *testing.T, got, want *Header) {
	t.Helper()
	g, w := *got, *want
	for _, h := range []*Header{&g, &w} {
		h.BackingOffset, h.BackingSize, h.BackingName, h.Autoclear = 0, 0, "", h.Autoclear&1
		h.setFormat(nil)
	}
	if !reflect.DeepEqual(g, w) {
		t.Errorf("got %+v\nwant %+v", g, w)
	}
}
