package chain_test

import (
	"maps"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
)

// oneWriter is a watcher that knows of a writer of one file.
type oneWriter struct {
	path chain.Path
	is   atomic.Bool
}

func (o *oneWriter) InUse(p chain.Path) (chain.Use, error) {
	return chain.Use{Writer: p == o.path && o.is.Load()}, nil
}

// recording calls f when an operation is recorded for the first time.
type recording struct {
	chain.Journal
	f func(chain.Operation)
}

func (r recording) Record(op chain.Operation) error {
	if op.State == chain.Prepared {
		r.f(op)
	}
	return r.Journal.Record(op)
}

// A writer through the mount that comes when the reclaimer has its chain, and has
// asked who writes, and does not run yet, is met by one of the two.
func TestWriterWhileReclaimerBegins(t *testing.T) {
	w, _ := deferred(t, 3)
	slow := newSlow(w)
	writer := &oneWriter{path: "vm/T2/r"}
	j := recording{w.store, func(op chain.Operation) {
		if op.Act == chain.ActReclaim && !writer.is.Load() {
			writer.is.Store(true) // it registers before it asks
			if err := w.tree.CheckWrite(bg, "vm/T2/r", 1, 1, false); err != nil {
				writer.is.Store(false)
			}
		}
	}}
	do(t, w.reopen(func(c *chain.Config) {
		c.Rebaser, c.Step, c.Journal, c.Watchers = slow, nil, j, []chain.Watcher{writer}
	}))
	w.gone("vm/T1/r")
	err := w.tree.ReclaimNow(bg)
	if writer.is.Load() && slow.done > 0 {
		t.Errorf("it absorbed into an image that is being written to")
	}
	if !refused(err) {
		t.Errorf("got %v, want a refusal", err)
	}
}

// Nothing is deleted for good on which something stands that was brought back, be
// it raw or an image whose own parent is missing.
func TestUndeleteWhatCannotAbsorb(t *testing.T) {
	w, _ := reviewWorld(t)
	w.deferral = &chain.Deferral{Keep: time.Hour}
	w.put("vm/raw", string(make([]byte, 4096)))
	do(t, os.WriteFile(w.path("vm/a"), toy{backing: "raw", format: chain.Raw, blocks: map[string]string{"1": "a"}}.bytes(), 0o644))
	do(t, os.WriteFile(w.path("vm/b"), toy{backing: "a", format: chain.QCOW2, blocks: map[string]string{"2": "b"}}.bytes(), 0o644))
	do(t, os.WriteFile(w.path("vm/x"), toy{backing: "no", format: chain.QCOW2}.bytes(), 0o644))
	do(t, os.WriteFile(w.path("vm/y"), toy{backing: "x", format: chain.QCOW2}.bytes(), 0o644))
	w.mount()
	for _, p := range []chain.Path{"vm/b", "vm/a", "vm/raw", "vm/y", "vm/x"} {
		do(t, w.delete(p))
	}
	for _, p := range []chain.Path{"vm/b", "vm/y"} {
		_, err := w.tree.Undelete(bg, p, "")
		do(t, err)
	}
	w.deferral = later()
	w.mount()
	if err := w.tree.ReclaimNow(bg); err != nil {
		t.Errorf("what is left cannot be worked on: %v", err)
	}
	if left := w.leftovers(); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
	for _, p := range []chain.Path{"vm/b", "vm/raw", "vm/y", "vm/x"} {
		if !w.exists(p) {
			t.Errorf("%s is gone", p)
		}
	}
}

// While the full at the bottom of a chain is condemned it is another image for a
// moment: its chain stays claimed all the same, and what is brought back meanwhile
// does not stand on a full that is deleted.
func TestUndeleteWhileItsFullIsCondemned(t *testing.T) {
	for _, label := range []string{"CONDEMN:LINKED", "CONDEMN:NAMED", "CONDEMN:UNLINKED"} {
		w, _ := deferred(t, 3)
		w.deferral.Keep = time.Hour
		w.mount()
		want := w.there(w.want)
		w.gone("vm/T2/r")
		w.gone("vm/T1/r")
		done := make(chan error, 1)
		var early atomic.Bool
		once := false
		w.onStep = func(l string) {
			if l != label || once {
				return
			}
			once = true
			go func() {
				_, err := w.tree.Undelete(bg, "vm/T1/r", "")
				done <- err
			}()
			select {
			case err := <-done:
				early.Store(true)
				done <- err
			case <-time.After(200 * time.Millisecond):
			}
		}
		do(t, w.delete("vm/T0/r"))
		delete(w.want, "vm/T0/r")
		err := <-done
		w.onStep = nil
		do(t, err)
		if early.Load() {
			t.Errorf("at %s the chain was not claimed", label)
		}
		w.want["vm/T0/r"], w.want["vm/T1/r"] = want["vm/T0/r"], want["vm/T1/r"]
		w.checkClean()
		w.deferral = later()
		w.mount()
		w.reclaimed()
	}
}

// What stands on a deleted image has got a second name in another directory, and cannot be told of another
// name of its parent: that is a refusal, and no mere error.
func TestUndeleteBelowHardLinks(t *testing.T) {
	w, _ := deferred(t, 3)
	w.gone("vm/T1/r")
	do(t, os.MkdirAll(w.path("vm/X"), 0o755), os.Link(w.path("vm/T2/r"), w.path("vm/X/r")))
	w.want["vm/X/r"] = w.want["vm/T2/r"]
	before := w.photo()
	if _, err := w.tree.Undelete(bg, "vm/T1/r", ""); !refused(err) {
		t.Errorf("got %v, want a refusal", err)
	}
	if after := w.photo(); !maps.Equal(after, before) {
		t.Errorf("it left %v, was %v", after, before)
	}
	w.checkClean()
	w.reclaimed()
}

// While something cannot be read nothing is half done: what is refused changes
// nothing, however often it is asked for.
func TestBlindChangesNothing(t *testing.T) {
	w, rng := deferred(t, 4)
	w.write("vm/T1/flat", "vm/T1/r", rng)
	w.write("vm/F/r", "vm/T1/flat", rng)
	was := w.there(w.want)
	w.gone("vm/T1/r", "vm/T1/flat")
	w.gone("vm/T2/r")
	w.put("vm/secret", "x")
	do(t, w.reopen(func(c *chain.Config) { c.Files = blindTo{w.src, "vm/secret", unix.EACCES} }))
	before := w.photo()
	for range 2 {
		if err := w.rmdir("vm/T1"); !refused(err) {
			t.Errorf("rmdir: %v, want a refusal", err)
		}
		if _, err := w.tree.Undelete(bg, "vm/T2/r", ""); !refused(err) {
			t.Errorf("undelete: %v, want a refusal", err)
		}
	}
	after := w.photo()
	for p := range after {
		if before[p] == "" {
			t.Errorf("%s is there now", p)
		}
	}
	for p := range before {
		if after[p] != before[p] {
			t.Errorf("%s was changed", p)
		}
	}
	dirs, _ := filepath.Glob(w.path("vm/.chainfs-*"))
	if len(dirs) > 0 {
		t.Errorf("left over are %v", dirs)
	}
	w.mount()
	do(t, os.Remove(w.path("vm/secret")))
	_, err := w.tree.Undelete(bg, "vm/T2/r", "")
	do(t, err, w.rmdir("vm/T1"))
	w.want["vm/T2/r"] = was["vm/T2/r"]
	w.checkClean()
	w.reclaimed()
}

// unfinished makes the journal have a merge of vm/T1/r down into vm/T2/r of which the
// deletion is done and the rest is not, and returns the file that T2 stands on.
func (w *world) unfinished() chain.Path {
	w.t.Helper()
	id, err := w.store.NewOpID()
	do(w.t, err)
	step := func(p chain.Path) (s chain.Step) {
		w.tree.View(func(g *chain.Graph) {
			im := g.At(p)
			s = chain.Step{Image: im.ID, Path: p, Identity: im.Identity}
		})
		return s
	}
	merge, unlink := step("vm/T2/r"), step("vm/T1/r")
	merge.Verb, merge.Way, merge.Merges, merge.NewParent, merge.NewFormat = chain.StepRebase, chain.MergeDown, "vm/T1/r", "vm/T0/r", chain.QCOW2
	unlink.Verb = chain.StepUnlink
	scratch := chain.Path("vm/T2").Join(chain.ScratchName(id, "r"))
	do(w.t, os.Rename(w.path("vm/T1/r"), w.path(scratch)))
	y, _ := parseToy(w.file("vm/T2/r"))
	y.backing = chain.Path(scratch.Base())
	do(w.t, os.WriteFile(w.path("vm/T2/r"), y.bytes(), 0o644))
	delete(w.want, "vm/T1/r")
	do(w.t, w.store.Record(chain.Operation{
		ID: id, Act: chain.ActDelete, State: chain.Committed, Started: time.Now(),
		Plan: chain.Plan{Act: chain.ActDelete, Paths: []chain.Path{"vm/T1/r"}, Steps: []chain.Step{merge, unlink}},
	}))
	w.mount()
	w.reads()
	if n := len(w.tree.Pending()); n != 1 {
		w.t.Fatalf("%d operations are pending, want the merge", n)
	}
	return scratch
}

// The child of an unfinished merge is deleted, and what stands on it keeps the hidden
// file: nothing is left to be done.
func TestUnfinishedMergeLosesItsChild(t *testing.T) {
	w, _ := deferred(t, 4)
	scratch := w.unfinished()
	w.gone("vm/T2/r")
	for range 3 {
		do(t, w.tree.ReclaimNow(bg))
	}
	w.reads()
	if p := w.tree.Pending(); len(p) > 0 || !w.exists(scratch) {
		t.Errorf("pending are %v", p)
	}
	w.gone("vm/T3/r")
	w.mount()
	w.settled()
}

// The directory of an unfinished merge is moved, and its names are taken anew.
func TestUnfinishedMergeIsMovedAway(t *testing.T) {
	w, rng := deferred(t, 3)
	w.unfinished()
	do(t, w.tree.Rename(bg, "vm", "old", 0))
	for _, p := range []chain.Path{"vm/T0/r", "vm/T2/r"} {
		w.want["old"+p[len("vm"):]] = w.want[p]
		delete(w.want, p)
	}
	w.write("vm/T2/r", "old/T0/r", rng)
	for range 2 {
		do(t, w.tree.ReclaimNow(bg))
	}
	w.reads()
	if p := w.tree.Pending(); len(p) > 0 {
		t.Errorf("pending are %v", p)
	}
}
