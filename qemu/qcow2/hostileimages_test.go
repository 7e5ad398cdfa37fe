package qcow2

import (
	"bytes"
	"context"
	"errors"
	"testing"
)

// Without this the fuzzers could be content with absorbs that never succeed.
func TestSetsAreAbsorbed(t *testing.T) {
	for _, set := range allSets(t)[:len(madeSets)] {
		for flags := range byte(8) {
			if flags&flagSmall != 0 {
				continue
			}
			layers := set.chain(set.files)
			c := absorbCase{t: t, layers: layers, flags: flags}
			c.run()
			if h, err := ReadHeader(c.file, int64(len(c.file.b))); err != nil || h.BackingName != c.job.Name {
				t.Errorf("%s, flags %b: got %v, %v", set.name, flags, h, err)
			}
		}
	}
}

// corruptToAbsorb would be destroyed by writing to them, although some have
// refcounts that agree with what they contain.
var corruptToAbsorb = []string{
	"l2-is-l1", "l2-is-l1-shared", "l2-is-refcount-block", "l2-is-refcount-table", "l2-twice",
	"data-is-refcount-block", "data-is-l1", "data-is-l2", "data-twice",
	"packed-is-header", "packed-is-refcount-block", "packed-behind-end",
	"l2-behind-end", "data-behind-end", "data-behind-4-eib",
	"refcount-block-behind-end", "refcount-block-negative", "refcount-block-twice",
	"zero-in-version-2", "bitmap-directory-is-l1", "bitmap-table-negative", "bitmap-table-is-refcount-table",
	"snapshot-wraps", "reserved-bits",
}

func TestAbsorbRefusesCorruptChildren(t *testing.T) {
	images := map[string]hostileImage{}
	for _, h := range hostileImages {
		images[h.name] = h
	}
	for _, name := range corruptToAbsorb {
		b := images[name].bytes()
		f := newMemFile(b)
		parent, err := Open(newMemFile(hostileImages[0].bytes()))
		if err != nil {
			t.Fatal(err)
		}
		found, err := Check(context.Background(), f)
		if err == nil && found.CorruptionCount == 0 {
			t.Errorf("%s: Check finds %+v", name, found)
		}
		_, err = Absorb(context.Background(), Job{Child: f, Away: []*Image{parent}})
		if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrTruncated) && !errors.Is(err, ErrFallback) {
			t.Errorf("%s: got %v", name, err)
		}
		if !bytes.Equal(f.b, b) {
			t.Errorf("%s: the file was changed", name)
		}
	}
}

// Of two entries with one place and different lengths only one can be read,
// whichever is read first.
func TestCompressedLengthMatters(t *testing.T) {
	for _, h := range hostileImages {
		if h.name != "packed-in-two-lengths" {
			continue
		}
		im, err := Open(sparseSource{sparse{h.bytes(), h.size}})
		if err != nil {
			t.Fatal(err)
		}
		c, p := NewChain(im), make([]byte, 512)
		for range 2 {
			if _, err := c.ReadAt(p, 0); !errors.Is(err, ErrCorrupt) {
				t.Errorf("the short one: got %v", err)
			}
			if _, err := c.ReadAt(p, 512); err != nil {
				t.Errorf("the long one: got %v", err)
			}
		}
	}
}

func TestMapOfNonsense(t *testing.T) {
	im, err := Open(newMemFile(hostileImages[0].bytes()))
	if err != nil {
		t.Fatal(err)
	}
	c, p := NewChain(im), make([]byte, 512)
	if _, err := c.ReadAt(p, -512); err == nil {
		t.Error("read before the start")
	}
	if _, err := c.Extent(-1, 512); err == nil {
		t.Error("mapped before the start")
	}
	end := int64(0)
	if err := c.Map(0, 1<<63-1, func(e Extent) error { end = e.End(); return nil }); err != nil || end != 1<<63-1 {
		t.Errorf("got a map up to %d, %v", end, err)
	}
}

// A child whose file is longer than entries of tables can tell is not written to.
func TestAbsorbRefusesEndlessFile(t *testing.T) {
	for _, size := range []int64{1 << 56, 1 << 60, 1<<63 - 1} {
		f := &endlessFile{memFile: newMemFile(hostileImages[0].bytes()), size: size}
		parent, err := Open(newMemFile(func() []byte {
			d := newTiny("")
			d.u64(4*512+8, 5*512)
			return d.draft
		}()))
		if err != nil {
			t.Fatal(err)
		}
		_, err = Absorb(context.Background(), Job{Child: f, Away: []*Image{parent}})
		if !errors.Is(err, ErrFallback) && !errors.Is(err, ErrUnsupported) {
			t.Errorf("%d bytes: got %v", size, err)
		}
	}
}

// endlessFile has zeros up to size behind what it has.
type endlessFile struct {
	*memFile
	size int64
}

func (f *endlessFile) Size() (int64, error) { return f.size, nil }

func (f *endlessFile) ReadAt(p []byte, off int64) (int, error) {
	return sparse{f.b, f.size}.ReadAt(p, off)
}

// An absorb that was ended tells so, and Check and Measure can be as well.
func TestHostileWorkIsCancellable(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	src := newMemFile(hostileImages[0].bytes())
	im, err := Open(src)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Check(ctx, src); !errors.Is(err, context.Canceled) {
		t.Errorf("Check: got %v", err)
	}
	if _, err := Measure(ctx, im, []*Image{im}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Measure: got %v", err)
	}
	if err := Reclaim(ctx, src, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("Reclaim: got %v", err)
	}
}
