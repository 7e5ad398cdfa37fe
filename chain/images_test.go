package chain_test

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chainfs/chainfs/chain"
)

// toyChecker is a chain.ImageChecker: what is wrong with an image it is told.
type toyChecker struct {
	w        *world
	found    map[chain.Path]chain.ImageReport
	fails    map[chain.Path]error
	repaired []chain.Path
	during   func() // called in the midst of a repair
}

func (c *toyChecker) CheckImage(_ context.Context, p chain.Path) (chain.ImageReport, error) {
	e, err := c.w.src.Stat(p)
	if err == nil {
		err = c.fails[p]
	}
	r := c.found[p]
	r.Identity = e.Identity
	return r, err
}

func (c *toyChecker) RepairLeaks(_ context.Context, p chain.Path, identity chain.Identity) (int64, error) {
	if e, err := c.w.src.Stat(p); err != nil || e.Identity != identity {
		return 0, chain.ErrChanged
	}
	if c.during != nil {
		c.during()
	}
	c.repaired = append(c.repaired, p)
	freed := c.found[p].LeakedBytes
	delete(c.found, p)
	return freed, os.Chtimes(c.w.path(p), time.Now(), time.Now().Add(-time.Hour))
}

// newImages is full <- a <- b, a raw base with a child, and a tree that is open.
func newImages(t *testing.T, watchers ...chain.Watcher) (*world, *toyChecker) {
	w := newWorld(t)
	rng := rand.New(rand.NewPCG(1, 2))
	w.write("vm/full", "", rng)
	w.write("vm/a", "vm/full", rng)
	w.write("vm/b", "vm/a", rng)
	w.write("other/c", "", rng)
	c := &toyChecker{w: w, found: map[chain.Path]chain.ImageReport{}, fails: map[chain.Path]error{}}
	cfg := w.config()
	cfg.ImageChecker, cfg.Watchers = c, watchers
	var err error
	if w.tree, err = chain.Open(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	return w, c
}

func lines(done chain.ImagesChecked) string {
	var all []string
	for _, f := range done.Findings {
		all = append(all, f.String())
	}
	return strings.Join(all, "\n")
}

func TestCheckImages(t *testing.T) {
	w, c := newImages(t)
	c.found["vm/full"] = chain.ImageReport{LeakedClusters: 3, LeakedBytes: 3 << 16}
	c.found["vm/a"] = chain.ImageReport{Corruptions: 7, Example: "it is bad", LeakedClusters: 1}
	c.found["vm/b"] = chain.ImageReport{LeakedClusters: 1, LeakedBytes: 512, Unrepairable: "is strange"}
	c.found["other/c"] = chain.ImageReport{Corruptions: 2, StaleFlags: 2}
	const (
		atB = "vm/b: has 1 leaked cluster (512 B), which stay because it is strange"
		atA = "vm/a: is corrupt: it is bad (and 6 more); restore it from another copy, or run qemu-img check -r all on a copy of it\n"
	)
	var progress []int64
	done, err := w.tree.CheckImages(t.Context(), "", false, func(p chain.Progress) { progress = append(progress, p.Done, p.Total) })
	want := "other/c: has 2 missing flags of clusters that are not shared; run chainfs check --images --repair-leaks\n" + atA + atB +
		"\nvm/full: has 3 leaked clusters (192.0 KiB); run chainfs check --images --repair-leaks"
	if got := lines(done); err != nil || got != want || done.Images != 4 || len(progress) != 8 || len(c.repaired) > 0 {
		t.Errorf("got %d images, progress %v, %v:\n%s\nwant\n%s", done.Images, progress, err, got, want)
	}
	done, err = w.tree.CheckImages(t.Context(), "vm", true, nil)
	want = atA + atB + "\nvm/full: had 3 leaked clusters (192.0 KiB); repaired, 192.0 KiB are free again"
	if got := lines(done); err != nil || got != want || done.Freed != 3<<16 || !done.Findings[2].Repaired || done.Findings[0].Repaired {
		t.Errorf("repair: got %+v, %v:\n%s", done, err, got)
	}
	// The index learns what the file is now.
	if found, err := chain.Check(t.Context(), w.config()); err != nil || len(found) > 0 {
		t.Errorf("check finds %v, %v", found, err)
	}
	if _, err := w.tree.CheckImages(t.Context(), "nothing", false, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a path that is not there: %v", err)
	}
}

// One image that cannot be checked or repaired does not keep the others from it.
func TestCheckImagesGoesOn(t *testing.T) {
	users := userOf{"vm/a": {Locked: true, By: "qemu (process 7)"}}
	w, c := newImages(t, users)
	c.fails["vm/full"] = errors.New("it is open for writing")
	c.found["vm/a"] = chain.ImageReport{LeakedClusters: 1, LeakedBytes: 512}
	c.found["vm/b"] = chain.ImageReport{LeakedClusters: 1, LeakedBytes: 512}
	done, err := w.tree.CheckImages(t.Context(), "vm", true, nil)
	want := "vm/a: has 1 leaked cluster (512 B), and that was not repaired: vm/a is in use by qemu (process 7); wait until that has ended\n" +
		"vm/b: had 1 leaked cluster (512 B); repaired, 512 B are free again\n" +
		"vm/full: was not checked: it is open for writing"
	if got := lines(done); err != nil || got != want {
		t.Errorf("got %v:\n%s\nwant\n%s", err, got, want)
	}
}

type userOf map[chain.Path]chain.Use

func (u userOf) InUse(p chain.Path) (chain.Use, error) { return u[p], nil }

// While an image is repaired nobody opens an image of its chain for writing, by any
// name of it, and no operation works on it.
func TestRepairLeaksClaims(t *testing.T) {
	w, c := newImages(t)
	if err := os.Link(w.path("vm/b"), filepath.Join(w.dir, "linked")); err != nil {
		t.Fatal(err)
	}
	c.found["linked"] = chain.ImageReport{LeakedClusters: 1, LeakedBytes: 512}
	ran := false
	c.during = func() {
		ran = true
		if err := w.tree.CheckWrite(t.Context(), "vm/b", 0, 1, true); !refused(err) {
			t.Errorf("it could be written meanwhile: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if err := w.tree.Delete(ctx, []chain.Path{"vm/a"}, chain.DeleteOptions{}, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a deletion did not wait: %v", err)
		}
	}
	done, err := w.tree.CheckImages(t.Context(), "linked", true, nil)
	if err != nil || !ran || len(done.Findings) != 1 || !done.Findings[0].Repaired {
		t.Errorf("got %+v, %v", done, err)
	}
	if err := w.tree.CheckWrite(t.Context(), "vm/b", 0, 1, true); err != nil {
		t.Errorf("afterwards it cannot be written: %v", err)
	}
}

func TestCheckImagesReadOnly(t *testing.T) {
	w, c := newImages(t)
	c.found["vm/a"] = chain.ImageReport{LeakedClusters: 1, LeakedBytes: 512}
	cfg := w.config()
	cfg.ImageChecker, cfg.ReadOnly = c, true
	tree, err := chain.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tree.CheckImages(t.Context(), "", true, nil); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("got %v", err)
	}
	for _, check := range []func() (chain.ImagesChecked, error){
		func() (chain.ImagesChecked, error) { return tree.CheckImages(t.Context(), "", false, nil) },
		func() (chain.ImagesChecked, error) { return chain.CheckImages(t.Context(), cfg, "", nil) },
	} {
		if done, err := check(); err != nil || len(done.Findings) != 1 || done.Images != 4 {
			t.Errorf("got %+v, %v", done, err)
		}
	}
	if len(c.repaired) > 0 {
		t.Errorf("it repaired %v", c.repaired)
	}
}
