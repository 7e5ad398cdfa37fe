package chain_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/fs/source"
)

// These tests are a review: each fails where the code does what its comment
// says it must not.

var bg = context.Background()

func reviewWorld(t *testing.T) (*world, *rand.Rand) {
	return newWorld(t), rand.New(rand.NewPCG(1, 2))
}

// reopen opens the tree again with a changed configuration.
func (w *world) reopen(change func(*chain.Config)) error {
	cfg := w.config()
	change(&cfg)
	tree, err := chain.Open(bg, cfg)
	if err == nil {
		w.tree = tree
	}
	return err
}

// settle waits until what was written is old enough to be trusted, and has it indexed.
func (w *world) settle() {
	w.t.Helper()
	time.Sleep(2200 * time.Millisecond)
	w.scan()
}

func (w *world) scan() {
	w.t.Helper()
	if _, err := w.tree.Scan(bg); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) put(p chain.Path, content string) {
	w.t.Helper()
	if err := os.MkdirAll(filepath.Dir(w.path(p)), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(w.path(p), []byte(content), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) exists(p chain.Path) bool {
	_, err := os.Lstat(w.path(p))
	return err == nil
}

func (w *world) delete(paths ...chain.Path) error {
	return w.tree.Delete(bg, paths, chain.DeleteOptions{}, nil)
}

func do(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// mustKeep fails when p went away although an image needs it.
func (w *world) mustKeep(p chain.Path, err error) {
	w.t.Helper()
	if !w.exists(p) {
		w.t.Errorf("DATA LOSS: %s was deleted although an image stands on it (error: %v)", p, err)
	}
}

// A directory of a chain is moved behind the mount and a symbolic link left in
// its place: the child reads through it as before, and its header did not change.
func TestParentDirectoryBecomesSymlink(t *testing.T) {
	w, rng := reviewWorld(t)
	w.write("T0/r", "", rng)
	w.write("T1/r", "T0/r", rng)
	w.settle()
	do(t, os.Rename(w.path("T0"), w.path("T0x")), os.Symlink("T0x", w.path("T0")))
	w.read("T1/r") // it is a whole image
	w.mustKeep("T0x/r", w.delete("T0x/r"))
}

// The same with the file itself.
func TestParentFileBecomesSymlink(t *testing.T) {
	w, rng := reviewWorld(t)
	w.write("T0/r", "", rng)
	w.write("T1/r", "T0/r", rng)
	w.settle()
	do(t, os.Rename(w.path("T0/r"), w.path("T0/r.moved")), os.Symlink("r.moved", w.path("T0/r")))
	w.mustKeep("T0/r.moved", w.delete("T0/r.moved"))
}

// An image that moved behind the mount and has two hard links there: both get
// the id of the one that is gone, and one of them drops out of the graph.
func TestMovedToTwoHardLinks(t *testing.T) {
	w, rng := reviewWorld(t)
	w.write("T0/r", "", rng)
	w.write("c", "T0/r", rng)
	w.settle()
	do(t, os.Mkdir(w.path("arch"), 0o755), os.Link(w.path("c"), w.path("c1")),
		os.Link(w.path("c"), w.path("arch/c")), os.Remove(w.path("c")))
	w.mustKeep("T0/r", w.delete("T0/r"))
}

// A parent whose header cannot be read at the moment is no image to the graph,
// and what is no image is unlinked even if images name it.
type blindTo struct {
	*source.Tree
	p   chain.Path
	err error
}

func (b blindTo) Open(p chain.Path) (*os.File, error) {
	if p == b.p {
		return nil, &os.PathError{Op: "open", Path: string(p), Err: b.err}
	}
	return b.Tree.Open(p)
}

func TestUnreadableParent(t *testing.T) {
	w, rng := reviewWorld(t)
	w.write("T0/r", "", rng)
	w.write("T1/r", "T0/r", rng)
	do(t, w.reopen(func(c *chain.Config) { c.Files = blindTo{w.src, "T0/r", unix.EACCES} }))
	w.mustKeep("T0/r", w.delete("T0/r"))
}

// The same by a rename over it.
func TestRenameOverUnreadableParent(t *testing.T) {
	w, rng := reviewWorld(t)
	w.write("T0/r", "", rng)
	w.write("T1/r", "T0/r", rng)
	w.put("x", "plain")
	do(t, w.reopen(func(c *chain.Config) { c.Files = blindTo{w.src, "T0/r", unix.EACCES} }))
	if err := w.tree.Rename(bg, "x", "T0/r", 0); err == nil {
		t.Error("DATA LOSS: a full with a child was replaced by a plain file")
	}
}

// A raw base whose only child cannot be read.
func TestRawBaseOfUnreadableChild(t *testing.T) {
	w, _ := reviewWorld(t)
	w.put("base.raw", strings.Repeat("raw", 512))
	w.put("T1/r", "TOY\nbacking ../base.raw raw\n")
	do(t, w.reopen(func(c *chain.Config) { c.Files = blindTo{w.src, "T1/r", unix.EACCES} }))
	w.mustKeep("base.raw", w.delete("base.raw"))
}

// A raw base that got its first child behind the mount.
func TestRawBaseWithUnseenChild(t *testing.T) {
	w, _ := reviewWorld(t)
	w.put("base.raw", strings.Repeat("raw", 512))
	w.scan()
	w.put("T1/r", "TOY\nbacking ../base.raw raw\n")
	w.mustKeep("base.raw", w.delete("base.raw"))
}

// The same by a rename over it.
func TestRenameOverRawBaseWithUnseenChild(t *testing.T) {
	w, _ := reviewWorld(t)
	w.put("base.raw", strings.Repeat("raw", 512))
	w.put("x", "plain")
	w.scan()
	w.put("T1/r", "TOY\nbacking ../base.raw raw\n")
	if err := w.tree.Rename(bg, "x", "base.raw", 0); err == nil {
		t.Error("DATA LOSS: a raw base was replaced by a plain file")
	}
}

// Opening for writing and truncating never look at the tree: a child that was
// pushed to the NAS since the last survey does not count, however long ago.
func TestWriteToParentWithUnseenChild(t *testing.T) {
	w, rng := reviewWorld(t)
	w.write("T0/r", "", rng)
	w.scan()
	w.write("T1/r", "T0/r", rng)
	e, err := w.src.Stat("T0/r")
	do(t, err)
	if err := w.tree.CheckWrite(context.Background(), "T0/r", e.Identity.Inode, 1, false); err == nil {
		t.Error("DATA LOSS: a full with a child may be opened for writing and truncated")
	}
}

// An absolute backing name is resolved with the mountpoint of the time it was
// indexed, and that is trusted after a mount somewhere else.
func TestMountpointChanges(t *testing.T) {
	w, _ := reviewWorld(t)
	w.put("base", "TOY\nblock 1 1\n")
	w.put("T1/r", "TOY\nbacking /mnt/a/base qcow2\n")
	w.settle()
	do(t, w.src.Close())
	src, err := source.Open(w.dir, source.Options{Mountpoint: "/mnt/a"})
	do(t, err)
	w.src = src
	w.mount()
	w.mustKeep("base", w.delete("base"))
}

// A child that the daemon itself has indexed does not stop the unlink of its
// parent once the plan is made.
func TestKnownChildDuringDelete(t *testing.T) {
	w, rng := reviewWorld(t)
	w.write("T0/r", "", rng)
	w.write("T1/r", "T0/r", rng)
	do(t, w.reopen(func(c *chain.Config) {
		c.Step = func(label string) {
			if label == chain.LabelPrepared {
				w.write("T2/r", "T1/r", rng)
				do(t, w.tree.Changed("T2/r"))
			}
		}
	}))
	w.mustKeep("T1/r", w.delete("T1/r"))
}

// A directory below the tree is a mount of its own and goes away: that its
// images cannot be met is taken for their deletion.
func TestNestedMountGoesAway(t *testing.T) {
	w, rng := reviewWorld(t)
	do(t, os.Mkdir(w.path("T1"), 0o755))
	if err := unix.Mount("tmpfs", w.path("T1"), "tmpfs", 0, "size=1m"); err != nil {
		t.Skip(err)
	}
	mounted := true
	defer func() {
		if mounted {
			unix.Unmount(w.path("T1"), unix.MNT_DETACH)
		}
	}()
	w.write("T0/r", "", rng)
	w.write("T1/r", "T0/r", rng)
	w.scan()
	do(t, w.reopen(func(*chain.Config) {})) // it holds across a restart
	do(t, unix.Unmount(w.path("T1"), 0))
	mounted = false
	w.mustKeep("T0/r", w.delete("T0/r"))
}

// busyFor says that an image is in use.
type busyFor struct {
	p     chain.Path
	after atomic.Int32 // calls for p that are answered no
}

func (b *busyFor) InUse(p chain.Path) (chain.Use, error) {
	if p != b.p || b.after.Add(-1) >= 0 {
		return chain.Use{}, nil
	}
	return chain.Use{Locked: true, By: "qemu"}, nil
}

// rm -r of a set of which an image is in use: the image is refused, and then
// its sidecars go, because a walk was made a moment ago.
func TestSidecarOfSetInUse(t *testing.T) {
	w, rng := reviewWorld(t)
	w.write("T0/r", "", rng)
	w.write("T1/r", "T0/r", rng)
	w.put("T1/vm.xml", "<domain/>")
	do(t, w.reopen(func(c *chain.Config) { c.Watchers = []chain.Watcher{&busyFor{p: "T1/r"}} }))
	if err := w.delete("T1/r"); !refused(err) {
		t.Fatalf("the image itself: %v", err)
	}
	err := w.delete("T1/vm.xml")
	if !refused(err) || !w.exists("T1/vm.xml") {
		t.Errorf("the set was stripped of its sidecar: %v", err)
	}
}

// A deletion of several images that stops half way says that it was refused.
func TestHalfDoneIsCalledRefused(t *testing.T) {
	w, rng := reviewWorld(t)
	w.write("T0/r", "", rng)
	w.write("T1/r", "T0/r", rng)
	busy := &busyFor{p: "T0/r"}
	busy.after.Store(1)
	do(t, w.reopen(func(c *chain.Config) { c.Watchers = []chain.Watcher{busy} }))
	err := w.tree.Delete(bg, []chain.Path{"T0/r"}, chain.DeleteOptions{Force: true}, nil)
	if refused(err) && !w.exists("T1/r") {
		t.Errorf("T1/r is gone and the error says that nothing was changed: %v", err)
	}
}

// Recovery unlinks what lies at the path of a plain file, whatever it is now.
func TestRecoveryDeletesNewFile(t *testing.T) {
	w, rng := reviewWorld(t)
	w.write("T0/r", "", rng)
	w.write("T1/r", "T0/r", rng)
	w.put("T1/vm.xml", "<domain/>")
	_, dead := w.run(1, func() error { return w.delete("T1/r", "T1/vm.xml") })
	if !dead {
		t.Fatal("not killed")
	}
	// While chainfs is down somebody puts a new backup there.
	do(t, os.Remove(w.path("T1/vm.xml")))
	w.put("T1/vm.xml", "TOY\nblock 1 1\n")
	w.mount()
	if !w.exists("T1/vm.xml") {
		t.Error("DATA LOSS: a new image was deleted by recovery")
	}
}

// Recovery of a deletion with several plain files stops at the first that is gone.
func TestRecoveryStopsHalfWay(t *testing.T) {
	for n := 1; n < 20; n++ {
		w, rng := reviewWorld(t)
		w.write("T0/r", "", rng)
		w.write("T1/r", "T0/r", rng)
		w.put("T1/a.xml", "<domain/>")
		w.put("T1/b.xml", "<domain/>")
		paths := []chain.Path{"T1/r", "T1/a.xml", "T1/b.xml"}
		_, dead := w.run(n, func() error { return w.delete(paths...) })
		if !dead {
			return
		}
		w.mount()
		left := 0
		for _, p := range paths {
			if w.exists(p) {
				left++
			}
		}
		ops, err := w.tree.Operations()
		do(t, err)
		if left != 0 && left != len(paths) {
			t.Errorf("killed at step %d: recovery left %d of %d files; the operation is %s (%s)", n, left, len(paths), ops[0].State, ops[0].Error)
		} else if left == 0 && ops[0].State != chain.Done {
			t.Errorf("killed at step %d: all is deleted and the operation is %s (%s)", n, ops[0].State, ops[0].Error)
		}
	}
}

// failingJournal stores an operation and then says that it could not.
type failingJournal struct {
	chain.Journal
	fail atomic.Bool
}

func (j *failingJournal) Record(op chain.Operation) error {
	if err := j.Journal.Record(op); err != nil {
		return err
	}
	if j.fail.Load() {
		return fmt.Errorf("sync: %w", unix.EIO)
	}
	return nil
}

// A write of the journal whose fsync fails may be there after the restart: the
// file that rm said it could not delete is then deleted at the next mount.
func TestFailedRecordIsCarriedOutLater(t *testing.T) {
	w, rng := reviewWorld(t)
	w.write("T0/r", "", rng)
	w.write("T1/r", "T0/r", rng)
	j := &failingJournal{Journal: w.store}
	do(t, w.reopen(func(c *chain.Config) { c.Journal = j }))
	j.fail.Store(true)
	if err := w.delete("T1/r"); err == nil {
		t.Fatal("no error")
	}
	if !w.exists("T1/r") {
		t.Fatal("it is gone at once")
	}
	w.mount()
	if !w.exists("T1/r") {
		t.Error("rm answered an error and kept the file; the next mount deleted it")
	}
}

// A scratch file's directory was replaced by a file while chainfs was down:
// chainfs does not start any more.
func TestRecoverySweepStuck(t *testing.T) {
	w, rng := reviewWorld(t)
	w.write("T0/r", "", rng)
	w.write("T1/r", "T0/r", rng)
	w.write("T2/r", "T1/r", rng)
	if _, dead := w.run(2, func() error { return w.delete("T1/r") }); !dead {
		t.Fatal("not killed")
	}
	do(t, os.Rename(w.path("T2"), w.path("T2x")))
	w.put("T2", "a file")
	if err := w.reopen(func(*chain.Config) {}); err != nil {
		t.Errorf("the tree cannot be opened: %v", err)
	}
}

// keepsUnlink refuses to unlink one file, as a tenant's directory on NFS does
// for a squashed root.
type keepsUnlink struct{ *source.Tree }

func (k keepsUnlink) Unlink(p chain.Path) error {
	if chain.IsScratch(p.Base()) {
		return &os.PathError{Op: "unlink", Path: string(p), Err: unix.EACCES}
	}
	return k.Tree.Unlink(p)
}

func TestLeftoverCannotBeRemoved(t *testing.T) {
	w, _ := reviewWorld(t)
	w.put("tenant/.chainfs-scratch-1-x", "mine")
	if err := w.reopen(func(c *chain.Config) { c.Files = keepsUnlink{w.src} }); err != nil {
		t.Errorf("one file that cannot be removed keeps the tree from being opened: %v", err)
	}
}

// Renames of plain files through the mount keep a deletion from ever getting a
// survey.
func TestSurveyStarvedByRenames(t *testing.T) {
	w, rng := reviewWorld(t)
	for i := range 200 {
		w.write(chain.Path(fmt.Sprintf("vm%d/r", i)), "", rng)
	}
	w.settle()
	w.put("q/x", "plain")
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		names := [2]chain.Path{"q/x", "q/y"}
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
			w.tree.Rename(bg, names[i%2], names[(i+1)%2], 0)
		}
	}()
	err := w.delete("vm7/r")
	close(stop)
	<-stopped
	if err != nil {
		t.Errorf("a tail cannot be deleted while somebody renames plain files elsewhere: %v", err)
	}
}

// A tree in which others keep creating files cannot even be opened.
func TestBusyTreeCannotBeOpened(t *testing.T) {
	w, rng := reviewWorld(t)
	for i := range 200 {
		w.write(chain.Path(fmt.Sprintf("vm%d/r", i)), "", rng)
	}
	do(t, os.Mkdir(w.path("q"), 0o755))
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
			os.WriteFile(w.path(chain.Path(fmt.Sprintf("q/%d", i))), nil, 0o644)
		}
	}()
	err := w.reopen(func(*chain.Config) {})
	close(stop)
	<-stopped
	if err != nil {
		t.Errorf("new files in one directory keep the tree from being opened: %v", err)
	}
}

// walkHook calls f before a walk.
type walkHook struct {
	*source.Tree
	f func()
}

func (h *walkHook) Walk(ctx context.Context, w chain.Walker) error {
	if f := h.f; f != nil {
		h.f = nil
		f()
	}
	return h.Tree.Walk(ctx, w)
}

// The kernel asked to unlink D/x of one directory; while the tree is walked the
// directory is renamed and another takes its name.
func TestUnlinkDuringRenameOfDirectory(t *testing.T) {
	w, rng := reviewWorld(t)
	w.write("vm/r", "", rng)
	w.put("D/x", "to be deleted")
	w.write("F/x", "", rng)
	h := &walkHook{Tree: w.src}
	do(t, w.reopen(func(c *chain.Config) { c.Files = h }))
	time.Sleep(1100 * time.Millisecond) // the last walk is no longer recent
	// The names change behind the mount: a Rename through it needs a survey itself.
	h.f = func() { do(t, os.Rename(w.path("D"), w.path("E")), os.Rename(w.path("F"), w.path("D"))) }
	seen, err := w.src.Stat("D/x") // as the kernel's look-up did
	do(t, err)
	err = w.tree.Delete(bg, []chain.Path{"D/x"}, chain.DeleteOptions{Inode: seen.Identity.Inode}, nil)
	if !w.exists("D/x") {
		t.Errorf("DATA LOSS: the image that was F/x was deleted for the plain file D/x that the caller named (%v)", err)
	}
}

// Two images on two file systems with the same inode number are a loop.
func TestSameInodeOnTwoFileSystems(t *testing.T) {
	w, rng := reviewWorld(t)
	for _, d := range []chain.Path{"A", "B"} {
		do(t, os.Mkdir(w.path(d), 0o755))
		if err := unix.Mount("tmpfs", w.path(d), "tmpfs", 0, "size=1m"); err != nil {
			t.Skip(err)
		}
		defer unix.Unmount(w.path(d), unix.MNT_DETACH)
	}
	w.write("A/r", "", rng)
	w.write("B/r", "A/r", rng)
	w.write("C/r", "B/r", rng)
	w.scan()
	if err := w.delete("B/r"); err != nil {
		t.Errorf("refused for ever: %v", err)
	}
}

// Renaming away the parent of what cannot be read is not stopped.
func TestRenameParentOfUnreadableChild(t *testing.T) {
	w, rng := reviewWorld(t)
	w.write("T0/r", "", rng)
	w.write("T1/r", "T0/r", rng)
	do(t, w.reopen(func(c *chain.Config) { c.Files = blindTo{w.src, "T1/r", unix.EACCES} }))
	if err := w.tree.Rename(bg, "T0/r", "T0/renamed", 0); err == nil {
		t.Error("the parent of an image that cannot be read was renamed: its child is broken on the NAS")
	}
}

// A symbolic link made through the mount repairs a chain; the index does not see
// it, since the child's header has not changed.
func TestSymlinkRepairsChain(t *testing.T) {
	w, rng := reviewWorld(t)
	w.write("T0x/r", "", rng)
	w.put("T1/r", "TOY\nbacking ../T0/r qcow2\n")
	w.settle()
	do(t, os.Symlink("T0x", w.path("T0"))) // as Symlink of the mount does
	w.read("T1/r")
	w.mustKeep("T0x/r", w.delete("T0x/r"))
}

// syncFails fails the sync of a directory after an unlink.
type syncFails struct{ *source.Tree }

func (s syncFails) SyncDir(p chain.Path) error {
	return &os.PathError{Op: "sync", Path: string(p), Err: unix.EIO}
}

// A deletion whose directory cannot be synced did delete: the journal must not
// say that it was undone, nor the graph that the image is there.
func TestSyncDirFails(t *testing.T) {
	w, rng := reviewWorld(t)
	w.write("T0/r", "", rng)
	w.write("T1/r", "T0/r", rng)
	do(t, w.reopen(func(c *chain.Config) { c.Files = syncFails{w.src} }))
	err := w.delete("T1/r")
	ops, _ := w.tree.Operations()
	var in bool
	w.tree.View(func(g *chain.Graph) { in = g.At("T1/r") != nil })
	if !w.exists("T1/r") && (ops[0].State == chain.Undone || in) {
		t.Errorf("the file is gone, the operation is %s, in the graph: %v (%v)", ops[0].State, in, err)
	}
}

type inspectorFunc func(io.ReaderAt, int64) (chain.Header, error)

func (f inspectorFunc) Inspect(r io.ReaderAt, n int64) (chain.Header, error) { return f(r, n) }

// One hostile image whose JSON backing name holds a NUL blinds the whole tree.
func TestHostileNameBlindsTree(t *testing.T) {
	w, rng := reviewWorld(t)
	w.write("T0/r", "", rng)
	w.write("T1/r", "T0/r", rng)
	w.put("evil/x", "evil")
	do(t, w.reopen(func(c *chain.Config) {
		c.Inspector = inspectorFunc(func(r io.ReaderAt, n int64) (chain.Header, error) {
			if b := make([]byte, 4); n == 4 {
				r.ReadAt(b, 0)
				// What qemu.Inspector makes of json:{"filename":"a\u0000b"}
				// (see TestJSONWithNUL in package qemu).
				return chain.Header{Format: chain.QCOW2, ParentUnknown: true, Others: []chain.Path{"a\x00b"}, Trouble: "names its parent in JSON"}, nil
			}
			return toyInspector{}.Inspect(r, n)
		})
	}))
	if err := w.delete("T1/r"); err != nil {
		t.Errorf("a tenant's image stops every deletion in the tree: %v", err)
	}
}
