package chain_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
)

// later is a deferral that leaves every merge to the reclaimer.
func later() *chain.Deferral { return &chain.Deferral{} }

// deferred is a world with a line T0 <- ... <- T<n-1> in which merges are left for later.
func deferred(t *testing.T, n int) (*world, *rand.Rand) {
	w, rng := reviewWorld(t)
	w.deferral = later()
	w.line(n, rng)
	w.mount()
	return w, rng
}

func (w *world) line(n int, rng *rand.Rand) {
	var parent chain.Path
	for i := range n {
		p := chain.Path(fmt.Sprintf("vm/T%d/r", i))
		w.write(p, parent, rng)
		parent = p
	}
}

// hidden are the condemned files in the tree, by what they were called.
func (w *world) hidden() map[chain.Path]chain.Path {
	w.t.Helper()
	found := map[chain.Path]chain.Path{}
	err := filepath.WalkDir(w.dir, func(p string, d os.DirEntry, err error) error {
		rel, _ := filepath.Rel(w.dir, p)
		if err == nil && !d.IsDir() && chain.IsCondemned(filepath.Base(p)) {
			found[chain.Shown(chain.Path(rel))] = chain.Path(rel)
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return found
}

// gone deletes images and takes them out of what must be there.
func (w *world) gone(paths ...chain.Path) {
	w.t.Helper()
	do(w.t, w.delete(paths...))
	forget(w, paths)
	for _, p := range paths {
		if w.exists(p) {
			w.t.Errorf("%s is there although its deletion was acknowledged", p)
		}
	}
}

// reclaimed does all that was left for later, and wants nothing left over.
func (w *world) reclaimed() {
	w.t.Helper()
	do(w.t, w.tree.ReclaimNow(bg))
	w.settled()
}

func (w *world) settled() {
	w.t.Helper()
	w.checkClean()
	if left := w.leftovers(); len(left) > 0 {
		w.t.Errorf("left over: %v", left)
	}
}

// leftovers are all hidden names in the tree.
func (w *world) leftovers() (left []string) {
	filepath.WalkDir(w.dir, func(p string, d os.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(d.Name(), ".chainfs-") {
			left = append(left, p)
		}
		return nil
	})
	return left
}

func TestCondemn(t *testing.T) {
	for _, noLinks := range []bool{false, true} {
		t.Run(fmt.Sprint("links ", !noLinks), func(t *testing.T) {
			w, _ := deferred(t, 5)
			w.noLinks = noLinks
			w.mount()
			id := w.id("vm/T1/r")
			w.gone("vm/T1/r")
			w.check()
			hidden := w.hidden()["vm/T1/r"]
			if hidden == "" || w.id(hidden) != id {
				t.Errorf("T1 is condemned as %q, with another id", hidden)
			}
			w.gone("vm/T2/r") // beside it
			w.gone("vm/T4/r") // the tail goes at once
			w.checkClean()
			if n := len(w.hidden()); n != 2 {
				t.Errorf("%d images are condemned, want 2: %v", n, w.hidden())
			}
			if s := w.tree.Summary(); s.Images != 2 || s.Condemned != 2 || s.Returning == 0 {
				t.Errorf("the summary is %+v", s)
			}
			before := w.rebases
			w.reclaimed()
			if n := w.rebases - before; n != 1 {
				t.Errorf("%d rebases, want one for both", n)
			}
		})
	}
}

func (w *world) id(p chain.Path) (id chain.ImageID) {
	w.tree.View(func(g *chain.Graph) {
		if im := g.At(p); im != nil {
			id = im.ID
		}
	})
	return id
}

// A new file may take the old name at once, and be deleted and condemned itself.
func TestCondemnTwice(t *testing.T) {
	w, rng := deferred(t, 4)
	for range 3 {
		w.gone("vm/T1/r")
		w.write("vm/T1/r", "vm/T0/r", rng)
		w.write("vm/N/r", "vm/T1/r", rng)
		w.check()
		w.gone("vm/T1/r")
		w.write("vm/T1/r", "vm/N/r", rng)
		w.gone("vm/T1/r", "vm/N/r")
		w.write("vm/T1/r", "vm/T0/r", rng)
		w.write("vm/N/r", "vm/T1/r", rng)
		w.scan()
		w.check()
	}
	w.reclaimed()
}

// What was condemned does not keep a full from being deleted once nothing stands
// on it for its user, and is no reason to refuse its backup set.
func TestCondemnedIsNotInTheWay(t *testing.T) {
	w, rng := deferred(t, 4)
	w.write("vm/T0/d", "", rng)
	w.write("vm/T1/d", "vm/T0/d", rng)
	w.gone("vm/T1/r")
	w.gone("vm/T2/r")
	if err := w.delete("vm/T0/r"); !refused(err) || !strings.Contains(err.Error(), "vm/T3/r depends") {
		t.Errorf("the full: %v, want a refusal that names T3", err)
	}
	if err := w.delete("vm/T0/d"); !refused(err) {
		t.Errorf("the full's set: %v, want a refusal", err)
	}
	w.gone("vm/T3/r")
	w.gone("vm/T1/d")
	w.gone("vm/T0/d")
	w.gone("vm/T0/r")
	w.reclaimed()
	if len(w.want) != 0 {
		t.Errorf("left are %v", w.want)
	}
}

// Where a header cannot be changed in place the work is done at once.
func TestCondemnInsteadInline(t *testing.T) {
	w, _ := deferred(t, 4)
	w.fixed["vm/T2/r"] = true
	w.gone("vm/T1/r")
	w.settled()
	do(t, os.MkdirAll(w.path("vm/X"), 0o755), os.Link(w.path("vm/T3/r"), w.path("vm/X/r")))
	w.want["vm/X/r"] = w.want["vm/T3/r"] // it names the same parent there, but might name another
	w.gone("vm/T2/r")
	w.settled()
}

// A second name in the same directory follows the first.
func TestCondemnWithTwoNames(t *testing.T) {
	w, _ := deferred(t, 4)
	do(t, os.Link(w.path("vm/T2/r"), w.path("vm/T2/s")))
	w.want["vm/T2/s"] = w.want["vm/T2/r"]
	w.gone("vm/T1/r")
	if len(w.hidden()) != 1 {
		t.Errorf("it was not condemned")
	}
	w.checkClean()
	_, err := w.tree.Undelete(bg, "vm/T1/r", "")
	do(t, err)
	w.want["vm/T1/r"] = w.read("vm/T1/r")
	w.gone("vm/T1/r")
	w.reclaimed()
}

func TestInlineLimit(t *testing.T) {
	for _, c := range []struct {
		limit int64
		later bool
	}{{0, true}, {1, true}, {1 << 30, false}, {-1, false}} {
		w, _ := deferred(t, 3)
		w.deferral = &chain.Deferral{InlineLimit: c.limit}
		w.mount()
		w.gone("vm/T1/r")
		if got := len(w.hidden()) > 0; got != c.later {
			t.Errorf("limit %d: left for later is %v, want %v", c.limit, got, c.later)
		}
		w.reclaimed()
	}
}

// What its children could not absorb later is not deleted now.
func TestCondemnOnlyWhatCanBeAbsorbed(t *testing.T) {
	for _, keep := range []time.Duration{0, time.Hour} {
		w, _ := deferred(t, 4)
		w.deferral.Keep = keep
		w.damaged["vm/T2/r"] = true
		if err := w.delete("vm/T1/r"); !refused(err) || !strings.Contains(err.Error(), "T2/r is damaged") {
			t.Errorf("got %v, want a refusal", err)
		}
		w.settled()
		w.gone("vm/T3/r")
		w.gone("vm/T2/r")
	}
}

// A deletion that is refused, interrupted or fails changes nothing, not even times.
func TestCondemnTakenBack(t *testing.T) {
	for _, noLinks := range []bool{false, true} {
		for n := 1; ; n++ {
			w, _ := deferred(t, 4)
			w.noLinks = noLinks
			w.mount()
			before := w.photo()
			ctx, cancel := context.WithCancel(bg)
			step := 0
			w.onStep = func(string) {
				if step++; step == n {
					cancel()
				}
			}
			err := w.tree.Delete(ctx, []chain.Path{"vm/T1/r", "vm/T2/r"}, chain.DeleteOptions{}, nil)
			w.onStep = nil
			cancel()
			if err == nil {
				if n < 4 {
					t.Fatalf("it could be interrupted at %d steps only", n)
				}
				break
			}
			if !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			if after := w.photo(); !maps.Equal(after, before) {
				t.Errorf("interrupted at step %d (links: %v) it left %v, was %v", n, !noLinks, after, before)
			}
			w.settled()
		}
	}
}

// photo is all that can be seen of the tree's files.
func (w *world) photo() map[string]string {
	photo := map[string]string{}
	filepath.WalkDir(w.dir, func(p string, d os.DirEntry, err error) error {
		if err == nil && d.Name() == ".chainfs" {
			return fs.SkipDir
		}
		if err == nil && !d.IsDir() {
			data, _ := os.ReadFile(p)
			st, _ := os.Lstat(p)
			photo[p] = fmt.Sprint(st.ModTime().UnixNano(), string(data))
		}
		return nil
	})
	return photo
}

// Killed at every step, with the journal or without it, the deletion is finished or
// undone at the next mount, and every other image reads as before all the time.
func TestCondemnKilledAtEveryStep(t *testing.T) {
	for _, c := range []struct {
		name   string
		delete []chain.Path
	}{
		{"middle", []chain.Path{"vm/T1/r"}},
		{"branch point", []chain.Path{"vm/T2/r"}},
		{"run and tail", []chain.Path{"vm/T1/r", "vm/T2/r", "vm/B4/r"}},
	} {
		for _, noLinks := range []bool{false, true} {
			for _, lost := range []bool{false, true} {
				if noLinks && lost {
					continue // the window that docs/DESIGN.md names
				}
				t.Run(fmt.Sprintf("%s, links %v, store lost %v", c.name, !noLinks, lost), func(t *testing.T) {
					done := 0
					for n := 1; condemnKilled(t, n, c.delete, noLinks, lost, &done); n++ {
					}
					if done == 0 && !lost {
						t.Errorf("no deletion was finished by recovery")
					}
				})
			}
		}
	}
}

func condemnKilled(t *testing.T, n int, paths []chain.Path, noLinks, lost bool, done *int) bool {
	w, rng := deferred(t, 4)
	defer w.end()
	w.write("vm/B3/r", "vm/T2/r", rng)
	w.write("vm/B4/r", "vm/B3/r", rng)
	w.noLinks = noLinks
	w.mount()
	before := maps.Clone(w.want)
	err, dead := w.run(n, func() error { return w.delete(paths...) })
	if !dead {
		do(t, err)
	}
	forget(w, paths)
	if !noLinks {
		w.reads() // for somebody who has the NAS and no chainfs
	}
	if lost {
		w.loseStore()
	}
	w.mount()
	gone := 0
	for _, p := range paths {
		if w.exists(p) {
			w.want[p] = before[p]
		} else {
			gone++
		}
	}
	if dead && gone == len(paths) {
		*done++
	}
	if gone != 0 && gone != len(paths) && !lost {
		t.Errorf("killed at step %d: %d of %d images were deleted", n, gone, len(paths))
	}
	w.checkClean()
	w.reclaimed()
	return dead
}

// The reclaimer killed at every step.
func TestReclaimKilledAtEveryStep(t *testing.T) {
	for _, lost := range []bool{false, true} {
		for n := 1; ; n++ {
			w, rng := deferred(t, 5)
			w.write("vm/B3/r", "vm/T2/r", rng)
			w.gone("vm/T1/r", "vm/T2/r")
			w.gone("vm/T3/r")
			err, dead := w.run(n, func() error { return w.tree.ReclaimNow(bg) })
			if !dead {
				do(t, err)
				if n < 6 {
					t.Fatalf("only %d steps were seen", n)
				}
				break
			}
			w.reads()
			if lost {
				w.loseStore()
			}
			w.mount()
			w.check()
			w.reclaimed()
			w.end()
		}
	}
}

func TestUndelete(t *testing.T) {
	for _, noLinks := range []bool{false, true} {
		w, rng := deferred(t, 5)
		w.write("vm/B2/r", "vm/T1/r", rng)
		w.noLinks = noLinks
		w.mount()
		before, want, id := w.photo(), maps.Clone(w.want), w.id("vm/T1/r")
		w.gone("vm/T1/r")
		w.gone("vm/T2/r")
		w.gone("vm/T3/r")
		back, err := w.tree.Undelete(bg, "vm/T1/r", "")
		do(t, err)
		if !slices.Equal(back, []chain.Path{"vm/T1/r"}) || w.id("vm/T1/r") != id {
			t.Errorf("brought back are %v", back)
		}
		w.want["vm/T1/r"] = want["vm/T1/r"]
		w.checkClean()
		_, err = w.tree.Undelete(bg, "vm/T2/r", "")
		do(t, err)
		_, err = w.tree.Undelete(bg, "vm/T3/r", "")
		do(t, err)
		w.want = want
		w.settled()
		if after := slices.Sorted(maps.Keys(w.photo())); !slices.Equal(after, slices.Sorted(maps.Keys(before))) {
			t.Errorf("in the tree are %v, were %v", after, before)
		}
		if parent := w.parent("vm/T3/r"); parent != "vm/T2/r" {
			t.Errorf("T3 stands on %s", parent)
		}
		_, err = w.tree.Undelete(bg, "vm/T3/r", "")
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("what is there already: %v", err)
		}
	}
}

func (w *world) parent(p chain.Path) (parent chain.Path) {
	w.tree.View(func(g *chain.Graph) { parent = g.At(p).Target })
	return parent
}

func TestUndeleteTakenName(t *testing.T) {
	w, rng := deferred(t, 4)
	old := w.want["vm/T1/r"]
	w.gone("vm/T1/r")
	w.write("vm/T1/r", "vm/T0/r", rng)
	if _, err := w.tree.Undelete(bg, "vm/T1/r", ""); !refused(err) {
		t.Errorf("a name that is taken: %v", err)
	}
	back, err := w.tree.Undelete(bg, "vm/T1/r", "vm/T1/old")
	do(t, err)
	if len(back) != 1 || back[0] != "vm/T1/old" {
		t.Errorf("brought back are %v", back)
	}
	w.want["vm/T1/old"] = old
	w.settled()
}

func TestUndeleteKilledAtEveryStep(t *testing.T) {
	for _, noLinks := range []bool{false, true} {
		for _, lost := range []bool{false, true} {
			if noLinks && lost {
				continue // the window that docs/DESIGN.md names
			}
			for n := 1; ; n++ {
				w, _ := deferred(t, 4)
				w.noLinks = noLinks
				w.mount()
				want := maps.Clone(w.want)
				w.gone("vm/T1/r", "vm/T2/r")
				do(t, w.rmdir("vm/T1"))
				err, dead := w.run(n, func() error {
					_, err := w.tree.Undelete(bg, "vm/T1", "")
					return err
				})
				if !dead {
					do(t, err)
				}
				if lost {
					w.loseStore()
				}
				w.mount()
				if w.exists("vm/T1/r") {
					w.want["vm/T1/r"] = want["vm/T1/r"]
				} else if !dead {
					t.Errorf("T1 was not brought back")
				}
				w.checkClean()
				w.reclaimed()
				w.end()
				if !dead {
					break
				}
			}
		}
	}
}

// rmdir is what the mount does.
func (w *world) rmdir(p chain.Path) error {
	err := unix.Rmdir(w.path(p))
	if err == unix.ENOTEMPTY {
		err = w.tree.Rmdir(bg, p)
	}
	return err
}

// A directory goes although what was deleted in it is still needed, and comes back
// with it. So does one that has such a directory in it.
func TestRmdir(t *testing.T) {
	for _, noLinks := range []bool{false, true} {
		w, rng := deferred(t, 3)
		w.write("out/r", "vm/T2/r", rng)
		w.noLinks = noLinks
		w.mount()
		do(t, os.Chmod(w.path("vm/T2"), os.ModeSetgid|0o750))
		want := maps.Clone(w.want)
		w.put("vm/T2/notes", "x")
		w.gone("vm/T2/r")
		if err := w.rmdir("vm/T2"); !errors.Is(err, unix.ENOTEMPTY) {
			t.Errorf("a directory with a file in it: %v", err)
		}
		do(t, os.Remove(w.path("vm/T2/notes")), w.rmdir("vm/T2"))
		w.checkClean()
		w.gone("vm/T1/r")
		do(t, w.rmdir("vm/T1"))
		w.checkClean()
		do(t, os.Mkdir(w.path("vm/T1"), 0o755)) // the name is free at once
		w.write("vm/T1/r", "vm/T0/r", rng)
		w.checkClean()
		w.gone("vm/T1/r")
		do(t, w.rmdir("vm/T1"))
		if err := w.rmdir("vm"); !errors.Is(err, unix.ENOTEMPTY) {
			t.Errorf("a directory with the full in it: %v", err)
		}
		back, err := w.tree.Undelete(bg, "vm/T2", "")
		do(t, err)
		if len(back) != 1 || back[0] != "vm/T2/r" {
			t.Errorf("brought back are %v", back)
		}
		w.want["vm/T2/r"] = want["vm/T2/r"]
		if st, err := os.Stat(w.path("vm/T2")); err != nil || st.Mode().Perm() != 0o750 || st.Mode()&os.ModeSetgid == 0 {
			t.Errorf("the directory came back as %v, %v", st, err)
		}
		w.checkClean()
		w.reclaimed()
	}
}

// A whole VM whose images are still needed from outside goes with its directories.
func TestRmdirNested(t *testing.T) {
	for _, noLinks := range []bool{false, true} {
		w, rng := deferred(t, 1)
		w.write("x/vm/T1/r", "vm/T0/r", rng)
		w.write("x/vm/T2/r", "x/vm/T1/r", rng)
		w.write("x/vm/T2/flat", "x/vm/T2/r", rng)
		w.write("out/r", "x/vm/T2/flat", rng)
		w.noLinks = noLinks
		w.mount()
		want := maps.Clone(w.want)
		for _, p := range []chain.Path{"x/vm/T1/r", "x/vm/T2/r", "x/vm/T2/flat"} {
			w.gone(p)
		}
		for _, dir := range []chain.Path{"x/vm/T2", "x/vm/T1", "x/vm", "x"} {
			do(t, w.rmdir(dir))
			w.checkClean()
			if w.exists(dir) {
				t.Errorf("%s is still there", dir)
			}
		}
		if noLinks {
			w.reclaimed()
			return
		}
		back, err := w.tree.Undelete(bg, "x", "")
		do(t, err)
		if len(back) != 3 {
			t.Errorf("brought back are %v", back)
		}
		w.want = want
		w.settled()
	}
}

func TestRmdirKilledAtEveryStep(t *testing.T) {
	for _, noLinks := range []bool{false, true} {
		for _, lost := range []bool{false, true} {
			if noLinks && lost {
				continue // the window that docs/DESIGN.md names
			}
			for n := 1; ; n++ {
				w, rng := deferred(t, 3)
				w.write("vm/T1/flat", "vm/T1/r", rng)
				w.write("vm/T3/r", "vm/T1/flat", rng)
				w.write("vm/T1/sub/r", "vm/T1/flat", rng)
				w.write("vm/T4/r", "vm/T1/sub/r", rng)
				w.noLinks = noLinks
				w.mount()
				w.gone("vm/T1/r", "vm/T1/flat", "vm/T1/sub/r")
				do(t, w.rmdir("vm/T1/sub"))
				err, dead := w.run(n, func() error { return w.rmdir("vm/T1") })
				if !dead {
					do(t, err)
				}
				if !noLinks {
					w.reads()
				}
				if lost {
					w.loseStore()
				}
				w.mount()
				w.checkClean()
				do(t, w.tree.ReclaimNow(bg))
				if w.exists("vm/T1") {
					do(t, w.rmdir("vm/T1"))
				}
				w.settled()
				w.end()
				if !dead {
					break
				}
			}
		}
	}
}

// Names of any length are condemned, and known again as long as the journal is.
func TestCondemnLongName(t *testing.T) {
	w, rng := deferred(t, 1)
	long := chain.Path("vm/" + strings.Repeat("n", 249) + ".qcow2")
	w.write(long, "vm/T0/r", rng)
	w.write("vm/c", long, rng)
	want := w.want[long]
	w.gone(long)
	w.checkClean()
	back, err := w.tree.Undelete(bg, long, "")
	do(t, err)
	if len(back) != 1 || back[0] != long {
		t.Errorf("brought back are %v", back)
	}
	w.gone(append(back[:0:0], back...)...)
	w.loseStore()
	w.mount()
	trash, err := w.tree.Trash(bg, "")
	do(t, err)
	if len(trash) != 1 || !strings.HasSuffix(string(trash[0].Path), "nnn.qcow2") {
		t.Fatalf("the trash has %v", trash)
	}
	if _, err := w.tree.Undelete(bg, trash[0].Hidden, ""); !refused(err) {
		t.Errorf("without its name: %v", err)
	}
	back, err = w.tree.Undelete(bg, trash[0].Hidden, long)
	do(t, err)
	w.want[long] = want
	if len(back) != 1 || back[0] != long {
		t.Errorf("brought back are %v", back)
	}
	w.settled()
}

// With a time to keep them, all that is deleted can be brought back that long.
func TestKeep(t *testing.T) {
	w, rng := deferred(t, 4)
	w.deferral = &chain.Deferral{Keep: time.Hour}
	w.mount()
	want := maps.Clone(w.want)
	for _, p := range []chain.Path{"vm/T3/r", "vm/T1/r", "vm/T2/r", "vm/T0/r"} {
		w.gone(p)
		do(t, w.rmdir(p.Dir()))
	}
	do(t, w.rmdir("vm"))
	do(t, w.tree.ReclaimNow(bg))
	if n := len(w.hidden()); n != 4 {
		t.Errorf("%d images are kept, want 4", n)
	}
	w.mount()
	if _, err := w.tree.Undelete(bg, "vm", ""); err != nil {
		t.Fatal(err)
	}
	w.want = maps.Clone(want)
	w.settled()

	w.gone("vm/T2/r")
	emptied, err := w.tree.EmptyTrash(bg, "vm/T2")
	do(t, err)
	if len(emptied) != 1 || emptied[0].Path != "vm/T2/r" || !emptied[0].KeptUntil.IsZero() {
		t.Errorf("the trash is emptied of %v", emptied)
	}
	w.reclaimed()

	w.gone("vm/T1/r")
	w.write("vm/N/r", "vm/T3/r", rng)
	w.gone("vm/T3/r")
	w.deferral = &chain.Deferral{Keep: time.Millisecond}
	w.mount()
	w.reclaimed()
}

// Numbers of operations begin anew with a lost store, and the hidden names of the
// old one are still there.
func TestCondemnWithTakenNumbers(t *testing.T) {
	w, rng := deferred(t, 3)
	for range 4 {
		w.gone("vm/T1/r")
		do(t, w.rmdir("vm/T1"))
		w.write("vm/T1/r", "vm/T0/r", rng)
		w.write(w.next(), "vm/T1/r", rng)
		w.loseStore()
		w.mount()
	}
	w.checkClean()
	if n := len(w.leftovers()); n != 8 {
		t.Errorf("%d hidden names, want 4 directories with an image each", n)
	}
	w.reclaimed()
}

// next is a name that was not used before.
func (w *world) next() chain.Path { return chain.Path(fmt.Sprintf("vm/N%d/r", len(w.want))) }
