package chain_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
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
	"github.com/chainfs/chainfs/fs/source"
	"github.com/chainfs/chainfs/store"
)

// The world below is a real directory with images of a toy format, so that
// thousands of deletions, renames and kills run in seconds:
//
//	TOY
//	backing NAME FORMAT     (an incremental)
//	block N VALUE           (any number)
//
// Like a qcow2 image it reads a block from its parent where it has none itself.

const toyMagic = "TOY\n"

// toy is an image's own content.
type toy struct {
	backing chain.Path
	format  chain.Format
	blocks  map[string]string
}

func (y toy) bytes() []byte {
	var b bytes.Buffer
	b.WriteString(toyMagic)
	if y.backing != "" {
		fmt.Fprintf(&b, "backing %s %s\n", string(y.backing), y.format) // as it is, not as it is shown
	}
	for _, n := range slices.Sorted(maps.Keys(y.blocks)) {
		fmt.Fprintf(&b, "block %s %s\n", n, y.blocks[n])
	}
	return b.Bytes()
}

func parseToy(data []byte) (toy, bool) {
	y := toy{blocks: map[string]string{}}
	rest, is := bytes.CutPrefix(data, []byte(toyMagic))
	if !is {
		return y, false
	}
	for s := bufio.NewScanner(bytes.NewReader(rest)); s.Scan(); {
		f := strings.Fields(s.Text())
		if f[0] == "backing" {
			y.backing, y.format = chain.Path(f[1]), chain.Format(f[2])
		} else {
			y.blocks[f[1]] = f[2]
		}
	}
	return y, true
}

type toyInspector struct{}

func (toyInspector) Inspect(f io.ReaderAt, size int64) (chain.Header, error) {
	data, err := io.ReadAll(io.NewSectionReader(f, 0, size))
	if err != nil {
		return chain.Header{}, err
	}
	y, is := parseToy(data)
	if !is {
		return chain.Header{}, nil
	}
	return chain.Header{Format: chain.QCOW2, VirtualSize: 1 << 20, Backing: y.backing, BackingFormat: y.format}, nil
}

// killed is what a crash test's step panics with in place of a SIGKILL.
type killed struct{ label string }

// files is the tree, on a file system that has hard links or not, and that may fail.
type files struct {
	*source.Tree
	noLinks bool
	faults  *faults
}

func (f files) Link(from, to chain.Path) error {
	if f.noLinks {
		return chain.ErrNoLinks
	}
	return f.faults.around("link", func() error { return f.Tree.Link(from, to) })
}

func (f files) Unlink(p chain.Path) error {
	return f.faults.around("unlink", func() error { return f.Tree.Unlink(p) })
}

func (f files) SyncDir(p chain.Path) error {
	return f.faults.around("sync", func() error { return f.Tree.SyncDir(p) })
}

func (f files) Rename(from, to chain.Path, flags uint) error {
	return f.faults.around("rename", func() error { return f.Tree.Rename(from, to, flags) })
}

func (f files) MkdirLike(p, like chain.Path) error {
	return f.faults.around("mkdir", func() error { return f.Tree.MkdirLike(p, like) })
}

func (f files) Rmdir(p chain.Path) error {
	return f.faults.around("rmdir", func() error { return f.Tree.Rmdir(p) })
}

// faults makes one call of those that change something fail.
type faults struct {
	at    int  // which one, counted from 1; 0 for none
	more  bool // and all that come after it
	after bool // it is done, and an error all the same
	tree  bool // those of the store do not count
	calls int
	what  string // that failed; empty when none did
}

func (f *faults) around(what string, call func() error) error {
	if f.at == 0 {
		return call()
	}
	if f.calls++; f.calls != f.at && !(f.more && f.calls > f.at) {
		return call()
	}
	f.what += what + " "
	if f.after {
		if err := call(); err != nil {
			return err
		}
	}
	return fmt.Errorf("%s: %w", what, unix.EIO)
}

func (f *faults) stored(what string, call func() error) error {
	if f.tree {
		return call()
	}
	return f.around(what, call)
}

// faultyStore is the store on a disk that may fail.
type faultyStore struct {
	*store.Store
	faults *faults
}

func (s faultyStore) Record(op chain.Operation) error {
	return s.faults.stored("record", func() error { return s.Store.Record(op) })
}

func (s faultyStore) Finish(op chain.Operation, put []chain.Image, remove []chain.ImageID) error {
	return s.faults.stored("finish", func() error { return s.Store.Finish(op, put, remove) })
}

func (s faultyStore) Update(put []chain.Image, remove []chain.ImageID) error {
	return s.faults.stored("update", func() error { return s.Store.Update(put, remove) })
}

// world is a tree, its store, and what every image must read as.
type world struct {
	ended bool
	t     *testing.T
	dir   string
	src   *source.Tree
	store *store.Store
	tree  *chain.Tree

	steps    int                              // how many steps were passed since the last call of arm
	onStep   func(label string)               // called before each step
	rebases  int                              // that were done
	killAt   int                              // die at this step, 0 for never
	want     map[chain.Path]map[string]string // what each image reads as
	fixed    map[chain.Path]bool              // images whose headers cannot be changed in place
	damaged  map[chain.Path]bool              // images that cannot absorb
	deferral *chain.Deferral
	noLinks  bool // the file system has no hard links
	faults   *faults
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, dir: memoryDir(t), want: map[chain.Path]map[string]string{}, fixed: map[chain.Path]bool{}, damaged: map[chain.Path]bool{}, faults: &faults{}}
	var err error
	if w.src, err = source.Open(w.dir, source.Options{}); err != nil {
		t.Fatal(err)
	}
	if w.store, err = store.OpenInMemory(store.Options{TreeID: w.src.ID()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.end)
	w.mount()
	return w
}

// memoryDir is a directory in memory, where there is such a file system: thousands
// of syncs cost nothing there, and what is lost with the power is not asked here.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "chainfs-test-")
	if err != nil {
		return t.TempDir()
	}
	return dir
}

// end gives up what the world holds in memory. Tests that make hundreds do not wait
// for their own end: each opening of a store collects garbage, over all of them.
func (w *world) end() {
	if w.ended {
		return
	}
	w.ended = true
	w.store.Close()
	w.src.Close()
	os.RemoveAll(w.dir)
}

// mount opens the tree as a daemon would at its start.
func (w *world) mount() {
	w.t.Helper()
	tree, err := chain.Open(context.Background(), w.config())
	if err != nil {
		w.t.Fatal(err)
	}
	w.tree = tree
}

// loseStore has the next mount find a tree and no store.
func (w *world) loseStore() {
	w.t.Helper()
	var err error
	w.store.Close()
	if w.store, err = store.OpenInMemory(store.Options{TreeID: w.src.ID()}); err != nil {
		w.t.Fatal(err)
	}
}

// logger writes to the test's log when TRACE is set.
func (w *world) logger() *slog.Logger {
	if os.Getenv("TRACE") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func (w *world) config() chain.Config {
	return chain.Config{
		Files: files{w.src, w.noLinks, w.faults}, Inspector: toyInspector{}, Rebaser: &toyRebaser{w},
		Index: faultyStore{w.store, w.faults}, Journal: faultyStore{w.store, w.faults},
		Log: w.logger(), Step: w.step, Deferral: w.deferral,
	}
}

func (w *world) step(label string) {
	w.steps++
	if w.onStep != nil {
		w.onStep(label)
	}
	if w.killAt > 0 && w.steps == w.killAt {
		panic(killed{label})
	}
}

// run calls f and reports whether it was killed at its n-th step.
func (w *world) run(n int, f func() error) (err error, dead bool) {
	w.steps, w.killAt = 0, n
	defer func() {
		w.killAt = 0
		if r := recover(); r != nil {
			if _, is := r.(killed); !is {
				panic(r)
			}
			dead = true
		}
	}()
	return f(), false
}

// toyRebaser is a chain.Rebaser with the steps of the real one.
type toyRebaser struct{ w *world }

func (r *toyRebaser) Rebase(ctx context.Context, job chain.RebaseJob, _ func(done, total int64)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	full := r.w.read(job.Child)
	r.w.step("REBASE:SCRATCH")
	y := toy{backing: job.NewName, format: job.NewFormat, blocks: map[string]string{}}
	below := map[string]string{}
	if job.NewParent != "" {
		below = r.w.read(job.NewParent)
	}
	own, _ := parseToy(r.w.file(job.Child))
	for n, v := range full {
		if own.blocks[n] == v || below[n] != v {
			y.blocks[n] = v
		}
	}
	if err := os.WriteFile(r.w.path(job.Scratch), y.bytes(), 0o600); err != nil {
		return err
	}
	if err := r.w.faults.around("rebase", func() error { return nil }); err != nil {
		return err
	}
	r.w.step("REBASE:RENAME")
	if err := os.Rename(r.w.path(job.Scratch), r.w.path(job.Child)); err != nil {
		return err
	}
	r.w.rebases++
	r.w.step("REBASE:RENAMED")
	return nil
}

func (r *toyRebaser) Measure(_ context.Context, job chain.RebaseJob) (chain.Effort, error) {
	if r.w.damaged[job.Child] {
		return chain.Effort{}, chain.Refuse(job.Child, "%s is damaged", job.Child)
	}
	return chain.Effort{Bytes: job.Bytes, Moves: job.Bytes, AtMost: true, Way: chain.ByCopy}, nil
}

func (r *toyRebaser) MergeDown(context.Context, chain.MergeJob, func(done, total int64)) error {
	return errors.ErrUnsupported // never planned: Measure does not choose it
}

func (r *toyRebaser) Recover(context.Context, chain.Path, chain.Identity) error { return nil }

func (r *toyRebaser) Restart() {}

func (r *toyRebaser) CheckRepoint(job chain.RepointJob) error {
	var st unix.Stat_t
	if err := unix.Lstat(r.w.path(job.Child), &st); err != nil {
		return err
	}
	switch {
	case st.Ino != job.Inode:
		return chain.ErrChanged
	case int(st.Nlink) > max(job.Names, 1), r.w.fixed[job.Child]:
		return chain.ErrNotInPlace
	}
	return nil
}

func (r *toyRebaser) Repoint(ctx context.Context, job chain.RepointJob) error {
	if err := errors.Join(ctx.Err(), r.CheckRepoint(job)); err != nil {
		return err
	}
	return r.w.faults.around("repoint", func() error { return r.repoint(job) })
}

func (r *toyRebaser) repoint(job chain.RepointJob) error {
	r.w.step("REPOINT:NAME")
	y, _ := parseToy(r.w.file(job.Child))
	leads, err := r.w.src.Resolve(job.Child.Dir(), string(y.backing))
	if err != nil {
		return err
	}
	if y.backing != job.Name && leads.Path != job.From {
		return fmt.Errorf("%s names %s, not %s: %w", job.Child, leads.Path, job.From, chain.ErrChanged)
	}
	y.backing = job.Name
	var st unix.Stat_t
	if err := unix.Lstat(r.w.path(job.Child), &st); err != nil {
		return err
	}
	// In place, as the real one: other names of the file see it, too.
	if err := os.WriteFile(r.w.path(job.Child), y.bytes(), 0); err != nil {
		return err
	}
	mtime := time.Unix(0, st.Mtim.Nano()).Add(2 * time.Second)
	if job.MTime != 0 {
		mtime = time.Unix(0, job.MTime)
	}
	if err := os.Chtimes(r.w.path(job.Child), time.Time{}, mtime); err != nil {
		return err
	}
	r.w.step("REPOINT:NAMED")
	return nil
}

func (w *world) path(p chain.Path) string { return filepath.Join(w.dir, string(p)) }

func (w *world) file(p chain.Path) []byte {
	data, err := os.ReadFile(w.path(p))
	if err != nil {
		w.t.Fatal(err)
	}
	return data
}

// read is what an image reads as, straight from the tree.
func (w *world) read(p chain.Path) map[string]string {
	w.t.Helper()
	got := map[string]string{}
	for file, hops := w.path(p), 0; ; hops++ {
		data, err := os.ReadFile(file)
		if err != nil || hops > 100 {
			w.t.Fatalf("%s cannot be read through its chain: %v", p, err)
		}
		y, _ := parseToy(data)
		for n, v := range y.blocks {
			if _, has := got[n]; !has {
				got[n] = v
			}
		}
		if y.backing == "" {
			return got
		}
		file = filepath.Join(filepath.Dir(file), string(y.backing))
	}
}

// write makes a new image on parent, behind the mount or, as Changed is then
// called, through it.
func (w *world) write(p, parent chain.Path, rng *rand.Rand) {
	w.t.Helper()
	y := toy{blocks: map[string]string{}}
	want := map[string]string{}
	if parent != "" {
		y.backing, y.format = chain.RelativeName(p, parent), chain.QCOW2
		maps.Copy(want, w.want[parent])
	}
	for range 1 + rng.IntN(4) {
		n, v := fmt.Sprint(rng.IntN(8)), fmt.Sprint(rng.Uint32())
		y.blocks[n], want[n] = v, v
	}
	if err := os.MkdirAll(filepath.Dir(w.path(p)), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(w.path(p), y.bytes(), 0o644); err != nil {
		w.t.Fatal(err)
	}
	w.want[p] = want
}

// reads compares every image that must be there with the model.
func (w *world) reads() {
	w.t.Helper()
	for p, want := range w.want {
		if got := w.read(p); !maps.Equal(got, want) {
			w.t.Fatalf("%s reads as %v, want %v", p, got, want)
		}
	}
}

// check compares every image with the model and the store with the tree.
func (w *world) check() {
	w.t.Helper()
	w.reads()
	found := map[chain.Path]bool{}
	err := w.src.Walk(context.Background(), chain.Walker{
		Unreadable: func(p chain.Path, err error) { w.t.Errorf("%s: %v", p, err) },
		Visit: func(e chain.Entry) error {
			if e.Type == chain.Regular {
				found[e.Path] = true
			}
			return nil
		},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	for p := range found {
		if w.want[p] == nil && !chain.IsHidden(p.Base()) {
			w.t.Fatalf("%s is in the tree, and was deleted", p)
		}
	}
}

// checkClean is check after a survey: nothing may be left over.
func (w *world) checkClean() {
	w.t.Helper()
	w.check()
	if _, err := w.tree.Scan(context.Background()); err != nil {
		w.t.Fatal(err)
	}
	findings, err := w.tree.Check(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	if len(findings) > 0 {
		w.t.Fatalf("check finds %v", findings)
	}
}

func refused(err error) bool {
	var r *chain.RefusedError
	return errors.As(err, &r)
}
