package qcow2

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// The tests' own disk is compared with a slice of bytes.
func TestCrashDisk(t *testing.T) {
	rng := rngOf(testSeed(t))
	start := bytes.Repeat([]byte("abc"), 5000)
	source := bytes.Repeat([]byte("parent"), 5000)
	d, want := newCrashDisk(contentOf(start)), bytes.Clone(start)
	grow := func(size int) {
		if size > len(want) {
			want = append(want, make([]byte, size-len(want))...)
		}
	}
	kinds := map[string]int{}
	for range 2000 {
		off, n := rng.IntN(60000), 1+rng.IntN(9000)
		switch k := rng.IntN(10); {
		case k < 5:
			kinds["write"]++
			p := bytes.Repeat([]byte{byte(rng.IntN(3))}, n)
			if _, err := d.WriteAt(p, int64(off)); err != nil {
				t.Fatal(err)
			}
			grow(off + n)
			copy(want[off:], p)
		case k < 7:
			kinds["copy"]++
			at := rng.IntN(len(source) + 100)
			m, err := d.CopyRange(int64(off), contentOf(source), int64(at), int64(n))
			if err != nil || m != int64(max(min(n, len(source)-at), 0)) {
				t.Fatalf("copied %d of %d at %d: %v", m, n, at, err)
			}
			if m > 0 {
				grow(off + int(m))
				copy(want[off:], source[at:at+int(m)])
			}
		case k < 8:
			kinds["truncate"]++
			if err := d.Truncate(int64(off)); err != nil {
				t.Fatal(err)
			}
			grow(off)
			want = want[:off:off]
		default:
			kinds["sync"]++
			if err := d.Sync(); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(d.durable.bytes(), want) {
				t.Fatal("what was synced is not durable")
			}
		}
		if err := firstDifference(d.now.bytes(), want); err != nil {
			t.Fatal(err)
		}
	}
	if err := firstDifference(d.start.bytes(), start); err != nil {
		t.Error("the start changed: ", err)
	}
	t.Log(kinds)
}

// A cut keeps all that was synced, nothing that was not begun, and of the rest each
// sector or not.
func TestCuts(t *testing.T) {
	rng := rngOf(testSeed(t))
	sector := func(c byte) []byte { return bytes.Repeat([]byte{c}, tornSector) }
	d := newCrashDisk(contentOf(bytes.Repeat(sector('0'), 4)))
	write := func(c byte, first, n int) {
		if _, err := d.WriteAt(bytes.Repeat(sector(c), n), int64(first*tornSector)); err != nil {
			t.Fatal(err)
		}
	}
	write('1', 0, 2)
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
	write('2', 1, 2)
	write('3', 4, 1)
	write('4', 2, 1)
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
	c := cutsOf(d)
	seen := map[string]int{}
	for range 3000 {
		p := powerCut{1, 2 + rng.IntN(4), keepHalf}
		b := c.after(p, rng).bytes()
		s := ""
		for i := 0; i < len(b); i += tornSector {
			if !bytes.Equal(b[i:i+tornSector], sector(b[i])) {
				t.Fatalf("sector %d is torn", i/tornSector)
			}
			s += string(b[i : i+1])
		}
		seen[s]++
	}
	// The first is as synced; no one has what follows from an order of writes only.
	for _, s := range []string{"1100", "1200", "1120", "1220", "1140", "1240", "11003", "12403", "11203", "1100\x00"} {
		if seen[s] == 0 {
			t.Errorf("no cut left %q", s)
		}
		delete(seen, s)
	}
	for s := range seen {
		if len(s) < 4 || s[0] != '1' || s[3] != '0' || len(s) > 5 {
			t.Errorf("a cut left %q", s)
		}
	}
	last := len(c.ends) - 1
	for _, keep := range []keeping{keepNone, keepAll} {
		got := c.after(powerCut{last, c.ends[last], keep}, rng)
		if err := firstDifference(got.bytes(), d.now.bytes()); err != nil {
			t.Errorf("after the last sync, keeping %s: %v", keep, err)
		}
	}
	if got := c.after(powerCut{1, c.ends[1], keepNone}, rng).bytes(); !bytes.Equal(got, c.bases[1].bytes()) {
		t.Error("a cut that keeps nothing left something")
	}
}

// A sync that failed leaves a cache that says otherwise than the disk, until it is
// evicted.
func TestLostSync(t *testing.T) {
	seed := testSeed(t)
	d := newCrashDisk(contentOf(make([]byte, 64<<10)))
	f := faultyFile{d, newFaults(fault{kind: callSync, n: 1, err: unix.EIO}, rngOf(seed))}
	data := bytes.Repeat([]byte("x"), 64<<10)
	if _, err := f.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); !errors.Is(err, unix.EIO) {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal("the next sync knows nothing of it: ", err)
	}
	if !bytes.Equal(d.now.bytes(), data) || bytes.Equal(d.durable.bytes(), data) {
		t.Error("the cache must have the data, the disk not all of it")
	}
	d.Evict(0, 64<<10)
	if !bytes.Equal(d.now.bytes(), d.durable.bytes()) {
		t.Error("the cache was evicted and has something else than the disk")
	}
}

func TestFaultyFile(t *testing.T) {
	for _, c := range []struct {
		fault   fault
		want    string // what two writes, two copies and a truncate return
		content string // of the first byte of each sector
	}{
		{fault{}, "1024 <nil>, 1024 <nil>, 1024 <nil>, 1024 <nil>, <nil>", "wwwwppp"},
		{fault{kind: callWrite, n: 2, err: unix.ENOSPC}, "1024 <nil>, 0 no space left on device, 1024 <nil>, 1024 <nil>, <nil>", "ww\x00\x00ppp"},
		{fault{kind: callWrite, n: 2, err: unix.EIO, short: true}, "1024 <nil>, 512 input/output error, 1024 <nil>, 1024 <nil>, <nil>", "www\x00ppp"},
		{fault{kind: callWrite, n: 2, err: unix.EIO, dead: true}, "1024 <nil>, 0 input/output error, 0 input/output error, 0 input/output error, input/output error", "ww"},
		{fault{kind: callCopy, n: 1, short: true}, "1024 <nil>, 1024 <nil>, 512 <nil>, 1024 <nil>, <nil>", "wwwwp\x00p"},
		{fault{kind: callCopy, n: 2}, "1024 <nil>, 1024 <nil>, 1024 <nil>, 0 <nil>, <nil>", "wwwwpp\x00"},
		{fault{kind: callTruncate, n: 1, err: unix.EINTR}, "1024 <nil>, 1024 <nil>, 1024 <nil>, 1024 <nil>, interrupted system call", "wwwwpppp"},
		{fault{kind: callAny, n: 3, err: unix.EXDEV}, "1024 <nil>, 1024 <nil>, 0 invalid cross-device link, 1024 <nil>, <nil>", "wwww\x00\x00p"},
	} {
		t.Run(c.fault.String(), func(t *testing.T) {
			d := newCrashDisk(contentOf(nil))
			f := faultyFile{d, newFaults(c.fault, rngOf(1))}
			parent := contentOf(bytes.Repeat([]byte("p"), 4096))
			var got string
			for i := range 2 {
				n, err := f.WriteAt(bytes.Repeat([]byte("w"), 1024), int64(i)*1024)
				got += fmt.Sprintf("%d %v, ", n, err)
			}
			for i := range 2 {
				n, err := f.CopyRange(int64(2+i)*1024, parent, 0, 1024)
				got += fmt.Sprintf("%d %v, ", n, err)
			}
			got += fmt.Sprint(f.Truncate(7 * 512))
			var content string
			for i := 0; i < len(d.now.bytes()); i += 512 {
				content += string(d.now.bytes()[i : i+1])
			}
			if got != c.want || content != c.content {
				t.Errorf("got  %s, %q\nwant %s, %q", got, content, c.want, c.content)
			}
		})
	}
}
