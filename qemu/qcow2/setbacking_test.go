package qcow2

import (
	"bytes"
	"errors"
	"testing"
)

func TestSetBackingWrites(t *testing.T) {
	for _, c := range []struct{ from, name, format, want string }{
		{"v3/65536 qcow2 u384 . 528:a", "b", "qcow2", "write 529+1, sync, write 0+512, sync"},
		{"v3/512 qcow2 . 136:a", "b", "qcow2", "write 0+512, sync"},
		{"v3/65536 qcow2 u384 . 528:a", "a", "qcow2", "write 0+512, sync"},
		{"v3/65536 qcow2 u384 . 528:a", "", "", "write 0+512, sync"},
		{"v3/65536 qcow2 u384 .", "", "", "write 0+512, sync"},
		{"v3/65536 qcow2 u600 . 800:a", "b", "host_device", ""},
		{"v3/65536 qcow2 u384 . 528:a", long(1024), "qcow2", ""},
	} {
		f := newCutFile(sketch(c.from))
		err := SetBacking(f, c.name, c.format)
		if got := f.String(); got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s to %s: got %q, %v, want %q", c.from, c.name, got, err, c.want)
		}
		if c.want == "" && !bytes.Equal(f.cache, sketch(c.from)) {
			t.Errorf("%s: changed although refused", c.from)
		}
	}
}

// eitherParent checks that a disk's header names the old or the new parent, with
// its format, and is otherwise as it was. It reports which.
func eitherParent(t *testing.T, disk []byte, old *Header, b Backing) (isNew bool) {
	t.Helper()
	h, err := parseCluster(disk)
	if err != nil {
		t.Fatal(err)
	}
	sameButParent(t, h, old)
	switch {
	case h.BackingName == old.BackingName && h.BackingFormat == old.BackingFormat && h.BackingOffset == old.BackingOffset:
		return b.saidBy(h)
	case b.saidBy(h):
		return true
	}
	t.Fatalf("names %q %q, neither %q %q nor %q %q", h.BackingName, h.BackingFormat,
		old.BackingName, old.BackingFormat, b.Name, b.Format)
	return false
}

// possibleChanges calls do with each change of the table that has room.
func possibleChanges(t *testing.T, do func(t *testing.T, cluster0 []byte, old *Header, b Backing)) {
	for _, c := range headerChanges {
		if c.slack == noRoom {
			continue
		}
		t.Run(c.from+" to "+c.name+" "+c.format, func(t *testing.T) {
			old, err := parseCluster(sketch(c.from))
			if err != nil {
				t.Fatal(err)
			}
			do(t, sketch(c.from), old, Backing{sketchName(c.name), c.format})
		})
	}
}

func TestSetBackingPowerCut(t *testing.T) {
	possibleChanges(t, func(t *testing.T, cluster0 []byte, old *Header, b Backing) {
		f := newCutFile(cluster0)
		if err := SetBacking(f, b.Name, b.Format); err != nil {
			t.Fatal(err)
		}
		if !eitherParent(t, f.disk, old, b) {
			t.Error("the new parent is not durable")
		}
		f.everyCut(func(disk []byte) {
			eitherParent(t, disk, old, b)
			again := newCutFile(disk)
			if err := SetBacking(again, b.Name, b.Format); err != nil {
				t.Fatal(err)
			}
			if !eitherParent(t, again.disk, old, b) {
				t.Error("a second run did not complete")
			}
		})
	})
}

// Each write and sync fails, with the first n sectors of it done. The second run
// must not be deceived by a cache that has what the disk has not.
func TestSetBackingFaults(t *testing.T) {
	possibleChanges(t, func(t *testing.T, cluster0 []byte, old *Header, b Backing) {
		whole := newCutFile(cluster0)
		if err := SetBacking(whole, b.Name, b.Format); err != nil {
			t.Fatal(err)
		}
		for i, step := range whole.trace {
			for sectors := range 4 {
				f := newCutFile(cluster0)
				f.failAt, f.failSectors = i+1, sectors
				err := SetBacking(f, b.Name, b.Format)
				if !errors.Is(err, errCut) || errors.Is(err, ErrSync) != (step == "sync") || errors.Is(err, ErrNoRoom) {
					t.Fatalf("%s fails: got %v", step, err)
				}
				eitherParent(t, f.cache, old, b)
				eitherParent(t, f.disk, old, b)
				f.everyCut(func(disk []byte) { eitherParent(t, disk, old, b) })
				if err := SetBacking(f, b.Name, b.Format); err != nil {
					t.Fatalf("after %s failed: %v", step, err)
				}
				if !eitherParent(t, f.disk, old, b) {
					t.Errorf("after %s failed, a second run did not complete", step)
				}
			}
		}
	})
}

// An image that cannot be read, or is none, is not written.
func TestSetBackingOfBadHeaders(t *testing.T) {
	for _, c := range headerCases {
		if c.group == nil {
			continue
		}
		f := newCutFile(c.bytes())
		f.size = int64(len(f.cache))
		if err := SetBacking(f, "b", "raw"); !errors.Is(err, c.group) || len(f.trace) != 0 {
			t.Errorf("%s: got %v after %q, want %v", c.name, err, f, c.group)
		}
	}
}
