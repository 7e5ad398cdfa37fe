package qcow2

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// grown is a child over a parent with data, both in a directory of their own.
func grown(t *testing.T, options string) (child File, parent *Image, name string) {
	t.Helper()
	if _, err := exec.LookPath("qemu-io"); err != nil {
		t.Skip("needs real images: ", err)
	}
	dir := t.TempDir()
	for _, args := range [][]string{
		{"qemu-img", "create", "-q", "-f", "qcow2", "-o", options, "a", "64M"},
		{"qemu-io", "-f", "qcow2", "-c", "write -P 1 0 4M", "-c", "write -c -P 2 8M 64k", "-c", "write -P 3 40M 300k", "a"},
		{"qemu-img", "create", "-q", "-f", "qcow2", "-o", options, "-b", "a", "-F", "qcow2", "b"},
	} {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
	}
	open := func(name string) OSFile {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return OSFile{f}
	}
	parent, err := Open(open("a"))
	if err != nil {
		t.Fatal(err)
	}
	return open("b"), parent, filepath.Join(dir, "b")
}

func sizeOf(t *testing.T, f File) int64 {
	t.Helper()
	n, err := f.Size()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// The file never grows behind the length that readers were asked for at, and what
// was not needed of it is cut off.
func TestAbsorbExtendsFirst(t *testing.T) {
	for _, o := range []string{"cluster_size=64k", "cluster_size=512", "cluster_size=512,refcount_bits=64", "cluster_size=4k,refcount_bits=1", "cluster_size=64k,extended_l2=on"} {
		t.Run(o, func(t *testing.T) {
			child, parent, _ := grown(t, o)
			var length int64
			_, err := Absorb(t.Context(), Job{
				Child: child, Away: []*Image{parent},
				Moving: Moving{
					Extended: func() error {
						length = sizeOf(t, child)
						return nil
					},
					Step: func(l string) {
						if n := sizeOf(t, child); l != "ABSORB:DONE" && n != length || n > length {
							t.Errorf("at %s the file has %d bytes, had %d", l, n, length)
						}
					},
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			f, err := Check(t.Context(), child)
			if err != nil || f.CorruptionCount > 0 || f.LeakedClusters > 0 {
				t.Errorf("got %+v, %v", f, err)
			}
			if end := sizeOf(t, child); end >= length {
				t.Errorf("the file has %d bytes, had %d", end, length)
			}
		})
	}
}

// Somebody opened the shorter file: nothing is changed.
func TestAbsorbWithEarlyReader(t *testing.T) {
	child, parent, name := grown(t, "cluster_size=64k")
	before, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	inUse := errors.New("in use")
	_, err = Absorb(t.Context(), Job{
		Child: child, Away: []*Image{parent},
		Moving: Moving{
			Extended: func() error { return inUse },
			Step:     func(l string) { t.Errorf("it went on to %s", l) },
		},
	})
	if !errors.Is(err, inUse) {
		t.Errorf("got error %v", err)
	}
	// Its last cluster is whole now.
	after, err := os.ReadFile(name)
	if err != nil || !bytes.HasPrefix(after, before) || len(after)-len(before) >= 64<<10 || len(bytes.Trim(after[len(before):], "\x00")) > 0 {
		t.Errorf("the file was changed (%v)", err)
	}
}
