package chain

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// Config is what a Tree is made of. All fields but ImageChecker, Watchers and
// Step must be set.
type Config struct {
	Files     Files
	Inspector Inspector
	Rebaser   Rebaser
	Index     Index
	Journal   Journal
	Watchers  []Watcher
	Log       *slog.Logger

	// ImageChecker is needed by CheckImages alone.
	ImageChecker ImageChecker

	// ReadOnly: nothing in the tree is ever changed, and no operation recovered.
	ReadOnly bool

	// Deferral says what is left to the reclaimer; nil leaves nothing to it.
	Deferral *Deferral

	// Step is called before each step of an operation with the step's label.
	// Tests end the process there.
	Step func(label string)
}

// Tree is a tree of backups, kept: its graph, its index and the operations on it.
// Its methods may be called from many goroutines.
type Tree struct {
	cfg Config

	// Lock order: claims, surveys, mu. A claim may be held for as long as a
	// merge takes; mu never across anything slower than a write to the store.
	claims  claims
	surveys gate // held while the tree is walked and what was found is applied

	mu    sync.RWMutex
	graph *Graph // guarded by mu
	// unsaved is what the graph has and the index does not have yet.
	unsaved unsaved // guarded by mu
	// unrecorded are operations of which the journal does not know how they ended.
	unrecorded map[OpID]Operation // guarded by mu

	// The next group is written with mu held, or by the one survey that holds
	// surveys and reads mu.
	round uint32
	plain map[Mark]uint32 // files known to be no images, and the round they were last met in

	rootDevice uint64 // of the tree's root

	lastWalk walkTime
	opening  Report // of the survey by Open

	running runningOps
	records records
	reclaim *reclaimer // nil when nothing is left for later
}

// walkTime is when a walk ended and how long it took.
type walkTime struct {
	mu    sync.Mutex
	ended time.Time
	took  time.Duration
}

// unsaved is what has to go to the index with the next write.
type unsaved struct {
	put    map[ImageID]bool
	remove map[ImageID]bool
}

// Open loads the index, ends the operations that were running when it was last
// closed, and surveys the tree.
func Open(ctx context.Context, cfg Config) (*Tree, error) {
	t, err := load(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if t.opening, err = t.Scan(ctx); err != nil {
		return nil, err
	}
	if !cfg.ReadOnly {
		if err := t.recover(ctx); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// load makes a Tree that knows what the index knows.
func load(ctx context.Context, cfg Config) (*Tree, error) {
	if cfg.Step == nil {
		cfg.Step = func(string) {}
	}
	t := &Tree{
		cfg:     cfg,
		surveys: newGate(),
		graph:   NewGraph(),
		unsaved: unsaved{map[ImageID]bool{}, map[ImageID]bool{}},
		plain:   map[Mark]uint32{},

		unrecorded: map[OpID]Operation{},
	}
	root, err := cfg.Files.Stat("")
	if err != nil {
		return nil, fmt.Errorf("look at the tree's root: %w", err)
	}
	t.rootDevice = root.Device
	err = cfg.Index.Images(ctx, func(im Image) error {
		if strings.HasPrefix(string(im.Header.Backing), "/") {
			im.Indexed = time.Time{} // the tree may be mounted elsewhere now
		}
		t.graph.put(&im)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("load the index: %w", err)
	}
	marks, err := cfg.Index.Plain()
	if err != nil {
		return nil, fmt.Errorf("load the index: %w", err)
	}
	for m := range marks {
		t.plain[m] = 0
	}
	if cfg.Deferral != nil && !cfg.ReadOnly {
		t.reclaim = newReclaimer(t)
	}
	return t, t.records.recall(cfg.Journal)
}

// Opening is what the survey at the opening found: all that had changed since
// the index was last written.
func (t *Tree) Opening() Report { return t.opening }

// Watch adds a watcher. It must be called before anything else is.
func (t *Tree) Watch(w Watcher) { t.cfg.Watchers = append(t.cfg.Watchers, w) }

// View calls f with the graph. f must not keep it, nor call the Tree.
func (t *Tree) View(f func(*Graph)) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	f(t.graph)
}

// CheckWrite refuses to let the file at p be opened for writing or truncated
// when images stand on it, by this or by another of its names, or an operation
// is working on it. links is how many names its inode has. Unless the file is
// fresh, made so lately that nobody can stand on it yet, the tree is surveyed
// first: children may have appeared behind the mount.
func (t *Tree) CheckWrite(ctx context.Context, p Path, inode uint64, links uint32, fresh bool) error {
	if !fresh && !t.cfg.ReadOnly && t.couldHaveChildren(p) {
		if _, err := t.survey(ctx); err != nil {
			return err
		}
	}
	names := []Path{p}
	if links > 1 {
		t.View(func(g *Graph) { names = append(names, g.namesOf(inode)...) })
	}
	for _, name := range names {
		if err := t.checkWrite(ctx, p, name); err != nil {
			return err
		}
	}
	return nil
}

// checkWrite is CheckWrite for one name of the file. The reclaimer stops working
// on it; what it does to images below is nothing to who writes to a tail.
func (t *Tree) checkWrite(ctx context.Context, p, name Path) error {
	var chain ImageID
	var err error
	t.View(func(g *Graph) {
		err = g.CheckWrite(name)
		if im := g.At(name); im != nil {
			chain = im.Chain
		}
	})
	if err != nil || chain == 0 {
		return err
	}
	held, byUser := t.claims.isHeld(chain)
	if held && !byUser && t.running.touches(name) {
		byUser = t.claimQuickly(ctx, []ImageID{chain}) != nil
		if !byUser {
			t.claims.release([]ImageID{chain}) // from here on it finds the writer
		}
	}
	if byUser {
		return Refuse(p, "%s cannot be written while an operation works on its chain; wait until it has ended (chainfs ops)", p)
	}
	t.touch(chain)
	return nil
}

func (t *Tree) couldHaveChildren(p Path) bool {
	e, err := t.cfg.Files.Stat(p)
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.graph.At(p) != nil || err == nil && couldBeBase(e)
}

// Look describes the file at p from the graph, after a look at this one file.
func (t *Tree) Look(ctx context.Context, p Path) (Info, error) {
	if err := t.Changed(p); err != nil && !t.cfg.ReadOnly {
		t.cfg.Log.Debug("look", "path", p, "err", err) // the graph says that it is unreadable
	}
	t.mu.RLock()
	info := t.graph.Describe(p)
	t.mu.RUnlock()
	return t.withUse(info), ctx.Err()
}

// save writes what the graph has and the index has not. The caller holds mu.
func (t *Tree) save() error {
	put, remove := t.takeUnsaved()
	if len(put)+len(remove) == 0 {
		return nil
	}
	if err := t.cfg.Index.Update(put, remove); err != nil {
		return fmt.Errorf("update the index: %w", err)
	}
	t.saved()
	return nil
}

// takeUnsaved lists what save has to write. The caller holds mu.
func (t *Tree) takeUnsaved() (put []Image, remove []ImageID) {
	for id := range t.unsaved.put {
		if im := t.graph.ByID(id); im != nil {
			put = append(put, *im)
		}
	}
	for id := range t.unsaved.remove {
		if t.graph.ByID(id) == nil {
			remove = append(remove, id)
		}
	}
	return put, remove
}

func (t *Tree) saved() {
	clear(t.unsaved.put)
	clear(t.unsaved.remove)
}

// forget takes an image out of the graph. The caller holds mu.
func (t *Tree) forget(im *Image) {
	above := t.graph.Descendants(im.Path)
	t.graph.remove(im)
	delete(t.unsaved.put, im.ID)
	t.unsaved.remove[im.ID] = true
	t.settle(above)
}

// settle brings placements up to date. The caller holds mu.
func (t *Tree) settle(ims []*Image) {
	for _, im := range t.graph.settle(ims) {
		t.unsaved.put[im.ID] = true
	}
}

// inUse asks all watchers.
func (t *Tree) inUse(p Path) (Use, error) {
	var sum Use
	for _, w := range t.cfg.Watchers {
		use, err := w.InUse(p)
		if err != nil {
			return sum, fmt.Errorf("ask who uses %s: %w", p, err)
		}
		if sum.By == "" {
			sum.By = use.By
		}
		sum.Writer = sum.Writer || use.Writer
		sum.Reader = sum.Reader || use.Reader
		sum.Locked = sum.Locked || use.Locked
	}
	return sum, nil
}

// errIdle refuses p while it is being used.
func (t *Tree) errIdle(p Path) error {
	use, err := t.inUse(p)
	switch {
	case err != nil:
		return err
	case use.Writer:
		return Refuse(p, "%s is open for writing%s; close it first", Shown(p), by(use))
	case use.Locked:
		return Refuse(p, "%s is in use%s; wait until that has ended", Shown(p), by(use))
	}
	return nil
}

// closing is how long the kernel may take to tell that a file was closed.
const closing = 500 * time.Millisecond

// errUnread refuses to change or reclaim p while somebody reads it through the mount.
func (t *Tree) errUnread(p Path) error {
	for end := time.Now().Add(closing); ; time.Sleep(5 * time.Millisecond) {
		use, err := t.inUse(p)
		if err != nil || !use.Reader {
			return err
		}
		if time.Now().After(end) {
			return Refuse(p, "%s is being read%s; wait until that has ended", Shown(p), by(use))
		}
	}
}

func by(u Use) string {
	if u.By == "" {
		return ""
	}
	return " by " + u.By
}

// interrupted reports whether err is the caller's own wish.
func interrupted(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}
