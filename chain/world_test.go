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
		fmt.Fprintf(&b, "backing %s %s\n", y.backing, y.format)
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

// world is a tree, its store, and what every image must read as.
type world struct {
	t     *testing.T
	dir   string
	src   *source.Tree
	store *store.Store
	tree  *chain.Tree

	steps  int                              // how many steps were passed since the last call of arm
	killAt int                              // die at this step, 0 for never
	want   map[chain.Path]map[string]string // what each image reads as
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), want: map[chain.Path]map[string]string{}}
	var err error
	if w.src, err = source.Open(w.dir, source.Options{}); err != nil {
		t.Fatal(err)
	}
	if w.store, err = store.OpenInMemory(store.Options{TreeID: w.src.ID()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.store.Close(); w.src.Close() })
	w.mount()
	return w
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

func (w *world) config() chain.Config {
	return chain.Config{
		Files: w.src, Inspector: toyInspector{}, Rebaser: &toyRebaser{w}, Index: w.store, Journal: w.store,
		Log: slog.New(slog.DiscardHandler), Step: w.step,
	}
}

func (w *world) step(label string) {
	w.steps++
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
	r.w.step("REBASE:RENAME")
	if err := os.Rename(r.w.path(job.Scratch), r.w.path(job.Child)); err != nil {
		return err
	}
	r.w.step("REBASE:RENAMED")
	return nil
}

func (r *toyRebaser) Measure(_ context.Context, job chain.RebaseJob) (chain.Effort, error) {
	return chain.Effort{Bytes: job.Bytes, AtMost: true, Way: chain.ByCopy}, nil
}

func (r *toyRebaser) MergeDown(context.Context, chain.MergeJob, func(done, total int64)) error {
	return errors.ErrUnsupported // never planned: Measure does not choose it
}

func (r *toyRebaser) Recover(context.Context, chain.Path, chain.Identity) error { return nil }

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

// check compares every image with the model and the store with the tree.
func (w *world) check() {
	w.t.Helper()
	for p, want := range w.want {
		if got := w.read(p); !maps.Equal(got, want) {
			w.t.Fatalf("%s reads as %v, want %v", p, got, want)
		}
	}
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
		if w.want[p] == nil && !chain.IsScratch(p.Base()) {
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
