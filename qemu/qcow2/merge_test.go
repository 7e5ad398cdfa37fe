package qcow2

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

var mergeCuts = flag.Int("merge-cuts", 500, "power cuts that are simulated for merges downwards")

// dice are the random numbers of a test, by a seed that is logged.
func dice(t *testing.T) *rand.Rand { return rngOf(testSeed(t)) }

// mergeable are the scenes whose child can be merged into its parent.
func mergeable(t *testing.T, rng *rand.Rand) []*scene {
	t.Helper()
	var fit []*scene
	all := scenes(t, rng)
	for i := range all {
		s := &all[i]
		parent, err := Open(&disk{data: s.layers[0]})
		if err != nil {
			t.Fatal(err)
		}
		child, err := Open(&disk{data: s.child})
		if err != nil {
			t.Fatal(err)
		}
		switch _, err := MeasureDown(context.Background(), parent, child); {
		case err == nil:
			fit = append(fit, s)
		case !errors.Is(err, ErrFallback):
			t.Fatalf("%s: %v", s.name, err)
		}
	}
	if len(fit) < 5 {
		t.Fatalf("only %d scenes can be merged downwards", len(fit))
	}
	return fit
}

// down merges the child into a parent on a disk.
func (s *scene) down(t *testing.T, d *disk) error {
	t.Helper()
	child, err := Open(&disk{data: s.child})
	if err != nil {
		t.Fatal(err)
	}
	_, err = MergeDown(context.Background(), MergeJob{Parent: d, Child: child, Moving: Moving{Verify: true}})
	return err
}

// childReads: the child reads as before through its parent as that is now.
func (s *scene) childReads(t *testing.T, parent []byte) {
	t.Helper()
	s.readsThrough(t, &disk{data: s.child}, &disk{data: parent})
}

// merged: the parent reads as the child by itself, and is sound.
func (s *scene) merged(t *testing.T, parent []byte) {
	t.Helper()
	s.readsThrough(t, &disk{data: parent})
	s.sound(t, parent, false)
}

func (s *scene) readsThrough(t *testing.T, top ...Source) {
	t.Helper()
	var layers []*Image
	for _, src := range top {
		im, err := Open(src)
		if err != nil {
			t.Fatalf("%s: %v (%s)", s.name, err, s.about)
		}
		layers = append(layers, im)
	}
	got := make([]byte, len(s.want))
	if _, err := NewChain(append(layers, s.below(t, 1)...)...).ReadAt(got, 0); err != nil {
		t.Fatalf("%s: %v (%s)", s.name, err, s.about)
	}
	if !bytes.Equal(got, s.want) {
		t.Fatalf("%s: through %d images the guest reads something else (%s)", s.name, len(top), s.about)
	}
}

// TestMergeDown merges random children into their parents, and has QEMU look at
// what becomes of it.
func TestMergeDown(t *testing.T) {
	for _, s := range mergeable(t, dice(t)) {
		d := &disk{data: append([]byte{}, s.layers[0]...)}
		for range 2 { // again: a merge may be cut off behind its last step
			if err := s.down(t, d); err != nil {
				t.Fatalf("%s: %v", s.name, err)
			}
			s.childReads(t, d.data)
			s.merged(t, d.data)
		}
		s.qemuReadsMerged(t, d.data)
	}
}

func (s *scene) qemuReadsMerged(t *testing.T, parent []byte) {
	t.Helper()
	dir := quickDir(t)
	for name, b := range map[string][]byte{"l2": parent, "l1": s.layers[1], "l0": s.layers[2], "raw": s.want} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	runIn(t, dir, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", "raw", "l2")
	runIn(t, dir, "qemu-img", "check", "-f", "qcow2", "l2")
}

// TestMergeDownPowerCuts: the child reads as before after any cut, and the merge
// can be completed.
func TestMergeDownPowerCuts(t *testing.T) {
	rng := dice(t)
	all := mergeable(t, rng)
	for _, s := range all {
		start := s.layers[0]
		d := &disk{data: append([]byte{}, start...)}
		if err := s.down(t, d); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		for n := range *mergeCuts / len(all) {
			keep := []float64{0, 1, 0.5, 0.05, 0.95}[n%5]
			data := cut(start, d.log, rng.IntN(len(d.log)+1), keep, rng)
			s.childReads(t, data)
			s.sound(t, data, true)
			s.complete(t, data)
		}
	}
}

func (s *scene) complete(t *testing.T, parent []byte) {
	t.Helper()
	d := &disk{data: parent}
	if err := Reclaim(context.Background(), d, 0); err != nil {
		t.Fatalf("%s: reclaim: %v", s.name, err)
	}
	s.childReads(t, d.data)
	if err := s.down(t, d); err != nil {
		t.Fatalf("%s: again: %v", s.name, err)
	}
	s.merged(t, d.data)
}

// TestMergeDownFaults fails calls of a merge, a sample of them.
func TestMergeDownFaults(t *testing.T) {
	rng := dice(t)
	for _, s := range mergeable(t, rng) {
		count := map[string]int{}
		d := &disk{data: append([]byte{}, s.layers[0]...), fail: func(call string) error { count[call]++; return nil }}
		if err := s.down(t, d); err != nil {
			t.Fatal(err)
		}
		for _, f := range breaches {
			if count[f.call] == 0 {
				continue
			}
			for range 4 {
				s.mergeFails(t, f, rng.IntN(count[f.call]))
			}
		}
	}
}

func (s *scene) mergeFails(t *testing.T, f breach, n int) {
	t.Helper()
	s.about = f.at(n)
	d := &disk{data: append([]byte{}, s.layers[0]...)}
	f.inject(d, n)
	err := s.down(t, d)
	if f.absorbed != (err == nil) {
		t.Fatalf("%s: %s: got error %v", s.name, s.about, err)
	}
	d.fail = nil
	s.childReads(t, d.data)
	s.sound(t, d.data, true)
	s.complete(t, d.data)
}

// TestMergeDownRefuses: pairs that cannot be merged are left alone.
func TestMergeDownRefuses(t *testing.T) {
	needQemuImg(t)
	for name, c := range map[string]struct{ parent, child, size, also string }{
		"sizes":     {"cluster_size=4k", "cluster_size=4k", "2M", ""},
		"clusters":  {"cluster_size=4k", "cluster_size=8k", "1M", ""},
		"extended":  {"cluster_size=64k", "cluster_size=64k,extended_l2=on", "1M", ""},
		"version":   {"compat=0.10", "compat=1.1", "1M", ""},
		"bitmaps":   {"cluster_size=4k", "cluster_size=4k", "1M", "bitmap --add l1 b"},
		"snapshots": {"cluster_size=4k", "cluster_size=4k", "1M", "snapshot -c s l1"},
	} {
		dir := quickDir(t)
		runIn(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-o", c.parent, "l0", "1M")
		runIn(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-o", c.child, "-b", "l0", "-F", "qcow2", "l1", c.size)
		if c.also != "" {
			runIn(t, dir, "sh", "-c", "qemu-img "+c.also)
		}
		before := readFile(t, filepath.Join(dir, "l0"))
		d := &disk{data: append([]byte{}, before...)}
		child, err := Open(&disk{data: readFile(t, filepath.Join(dir, "l1"))})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := MergeDown(context.Background(), MergeJob{Parent: d, Child: child}); !errors.Is(err, ErrFallback) {
			t.Errorf("%s: got error %v", name, err)
		}
		if !bytes.Equal(d.data, before) {
			t.Errorf("%s: the parent was changed", name)
		}
	}
}
