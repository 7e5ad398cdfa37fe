package qcow2

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// Any header that ReadHeader accepts, any parent: either nothing is written, or
// the file names old or new after every power cut, and in the end the new.
func FuzzChangeHeader(f *testing.F) {
	for _, c := range headerChanges {
		b := sketch(c.from)
		f.Add(b[:min(len(b), 2048)], sketchName(c.name), c.format)
	}
	f.Fuzz(func(t *testing.T, b []byte, name, format string) {
		h, err := ReadHeader(padded(b), 1<<40)
		if err != nil || h.ClusterSize() > 1<<16 {
			t.Skip("not accepted, or slow")
		}
		cluster0 := make([]byte, h.ClusterSize())
		copy(cluster0, b)
		file := newCutFile(cluster0)
		if err := SetBacking(file, name, format); err != nil {
			// The header was read and nothing fails: a broken proof is a bug.
			if bad := (HeaderChange{Backing: &Backing{name, format}}).check(); bad == nil && !errors.Is(err, ErrNoRoom) {
				t.Errorf("got %v", err)
			}
			if len(file.trace) != 0 || !bytes.Equal(file.cache, cluster0) {
				t.Errorf("written in spite of %v", err)
			}
			return
		}
		parent := Backing{name, format}
		if !eitherParent(t, file.disk, h, parent) {
			t.Error("the new parent is not durable")
		}
		file.everyCut(func(disk []byte) { eitherParent(t, disk, h, parent) })
		if err := SetBacking(file, name, format); err != nil || file.trace[len(file.trace)-1] != "sync" {
			t.Errorf("a second run: %v", err)
		}
	})
}

// The corpus holds every sound header of the table, to be changed.
func TestChangeCorpusHoldsEveryCase(t *testing.T) {
	const dir = "testdata/fuzz/FuzzChangeHeader"
	for _, c := range headerCases {
		if c.group != nil {
			continue
		}
		b := c.bytes()
		want := fmt.Sprintf("go test fuzz v1\n[]byte(%q)\nstring(%q)\nstring(%q)\n", b[:fuzzSize], "../"+parent, "raw")
		name := filepath.Join(dir, c.name)
		if *update {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != want {
			t.Errorf("%s differs; run with -update", name)
		}
	}
}
