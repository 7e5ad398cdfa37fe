package qcow2

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// imageSet is a child, its parent and its grandparent, a few KiB each. A fuzzer
// spoils them; what it needs to know about the format is in here.
type imageSet struct {
	name  string
	files [3][]byte
}

// madeSets are made by qemu-img, and kept in testdata/sets: options of child,
// parent and grandparent, "raw" for a raw file, and a size of the child.
var madeSets = []struct{ name, child, parent, grand, size string }{
	{"plain", "cluster_size=512", "cluster_size=512", "cluster_size=512", "64k"},
	{"v2", "cluster_size=512,compat=0.10", "cluster_size=512,compat=0.10", "raw", "64k"},
	{"counts-of-1-bit", "cluster_size=512,refcount_bits=1", "cluster_size=1k", "raw", "80k"},
	{"counts-of-64-bits", "cluster_size=512,refcount_bits=64", "cluster_size=512", "cluster_size=1k", "48k"},
	{"small-over-large", "cluster_size=512", "cluster_size=2k", "cluster_size=512", "64k"},
	{"large-over-small", "cluster_size=4k", "cluster_size=512", "raw", "65k"},
	{"subclusters", "cluster_size=16k,extended_l2=on", "cluster_size=512", "cluster_size=512", "64k"},
	{"subclusters-below", "cluster_size=512", "cluster_size=16k,extended_l2=on", "raw", "64k"},
	{"zstd", "cluster_size=1k,compression_type=zstd", "cluster_size=1k,compression_type=zstd", "cluster_size=512", "64k"},
}

const setsDir = "testdata/sets"

func makeSet(dir, child, parent, grand, size string) error {
	run := func(args ...string) error {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%q: %w\n%s", args, err, out)
		}
		return nil
	}
	format, create := "qcow2", []string{"qemu-img", "create", "-q", "-f", "qcow2", "-o", grand, "2", "64k"}
	if grand == "raw" {
		format, create = "raw", []string{"qemu-img", "create", "-q", "-f", "raw", "2", "64k"}
	}
	for _, args := range [][]string{
		create,
		{"qemu-io", "-f", format, "-c", "write -P 1 1k 3k", "-c", "write -P 2 33k 2k", "2"},
		{"qemu-img", "create", "-q", "-f", "qcow2", "-o", parent, "-b", "2", "-F", format, "1", "60k"},
		{"qemu-io", "-f", "qcow2", "-c", "write -P 3 3k 2k", "-c", "write -P 4 40k 1k", "-c", "write -P 9 7680 512", "1"},
		{"qemu-io", "-f", "qcow2", "-c", "write -c -P 5 16k 2k", "1"},
		{"qemu-img", "create", "-q", "-f", "qcow2", "-o", child, "-b", "1", "-F", "qcow2", "0", size},
		{"qemu-io", "-f", "qcow2", "-c", "write -P 6 2k 1k", "-c", "write -P 7 20k 512", "0"},
	} {
		if args[0] == "qemu-io" && strings.Contains(args[4], "-c -P") && strings.Contains(parent, "16k") {
			args[4] = "write -c -P 5 16k 16k"
		}
		if err := run(args...); err != nil {
			return err
		}
	}
	if strings.Contains(parent, "compat") {
		return nil
	}
	return run("qemu-io", "-f", "qcow2", "-c", "write -z 34k 2k", "-c", "write -z 3k 512", "1")
}

// packSet keeps the files one behind the other, each with its length.
func packSet(files [3][]byte) ([]byte, error) {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	for _, f := range files {
		if _, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(f))), f...)); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return b.Bytes(), err
}

func unpackSet(name string) (set imageSet, err error) {
	f, err := os.Open(filepath.Join(setsDir, name+".gz"))
	if err != nil {
		return set, err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return set, err
	}
	all, err := io.ReadAll(z)
	if err != nil {
		return set, err
	}
	set.name = name
	for i := range set.files {
		n := binary.BigEndian.Uint32(all)
		set.files[i], all = all[4:4+n], all[4+n:]
	}
	return set, nil
}

func writeSets(t *testing.T) {
	if err := os.MkdirAll(setsDir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, m := range madeSets {
		dir := t.TempDir()
		if err := makeSet(dir, m.child, m.parent, m.grand, m.size); err != nil {
			t.Fatal(err)
		}
		var files [3][]byte
		for i := range files {
			var err error
			if files[i], err = os.ReadFile(filepath.Join(dir, fmt.Sprint(i))); err != nil {
				t.Fatal(err)
			}
		}
		b, err := packSet(files)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(setsDir, m.name+".gz"), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// allSets are those made by qemu-img, and then the hostile ones. New ones come
// last: corpus entries have their numbers.
func allSets(tb testing.TB) []imageSet {
	var all []imageSet
	for _, m := range madeSets {
		set, err := unpackSet(m.name)
		if err != nil {
			tb.Fatal(err, "; run with -update")
		}
		all = append(all, set)
	}
	return append(all, hostileSets(all[0])...)
}

// Sets that are no images any more would leave the fuzzers with nothing.
func TestSetsAreSound(t *testing.T) {
	if *update {
		writeSets(t)
	}
	for _, set := range allSets(t)[:len(madeSets)] {
		c := set.chain([3][]byte(set.files))
		if len(c) != 3 {
			t.Errorf("%s: %d of 3 layers can be opened", set.name, len(c))
			continue
		}
		for _, im := range c {
			if im.header == nil {
				continue
			}
			f, err := Check(context.Background(), im.src)
			if err != nil || f.CorruptionCount > 0 {
				t.Errorf("%s: got %+v, %v", set.name, f, err)
			}
		}
	}
}

// chain opens the files, up to the first that is no image. One without the magic
// is raw, but the first.
func (imageSet) chain(files [3][]byte) (layers []*Image) {
	for i, b := range files {
		im, err := Open(newMemFile(b))
		if i > 0 && (len(b) < 4 || string(b[:4]) != Magic) {
			im, err = OpenRaw(newMemFile(b))
		}
		if err != nil {
			return layers
		}
		layers = append(layers, im)
	}
	return layers
}
