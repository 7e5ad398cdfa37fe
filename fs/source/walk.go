package source

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
)

// A walk is not one look at the tree, but thousands, and others write to the
// tree meanwhile. An image that is renamed from a directory not yet listed into
// one already listed is seen in neither; so is one that is moved together with
// its directory. The graph would then have an image less, the one it stands on
// would look childless, and a deletion would destroy a backup that was never
// touched. So after the last listing every directory is compared with what it
// was before it was listed, and those that changed are listed again, in rounds.
// When none has changed, then there was an instant, between the last listing
// and the first comparison, at which all listings were true together.

// maxRounds is how often directories are listed again before a walk ends with
// no such instant. A tree that others write to all the time would otherwise
// never be walked, and nothing in it could be deleted.
//
// What can be missed then? Take an entry that was there all the time, and the
// moment at which a round starts to compare. If it was not visited until then,
// the directory that holds it was listed before it came, or was not listed
// itself because, going up, it or one above it came into a listed directory
// after that one's listing. Either way a listed directory has changed that the
// entry is below: this round finds it changed, lists it again, and follows
// what is new in it all the way down. The entry is missed again only if within
// the round it, or a directory above it, is renamed from a place that the round
// has not yet come to into one that it is done with: one that it has compared
// and found unchanged, or listed again. The first pass misses it only by such a
// rename too. So a missed entry was renamed at least five times, once in the
// first pass and once in each of four rounds, always across the front of the
// walk in the wrong direction. Backup software renames a file once, when it is
// complete.
const maxRounds = 4

// walkers is how many directories are listed at a time. Two keep two processors
// busy where the tree is in memory; more cost nothing there, and wait together
// where each call asks a server. Visits come one at a time.
const walkers = 4

// Walk visits every entry below the root. See chain.Files. A descriptor or two
// are open for each walker, however deep the tree is.
func (t *Tree) Walk(ctx context.Context, to chain.Walker) error {
	return newWalk(t, to, walkers).all(ctx)
}

type walk struct {
	tree    *Tree
	to      chain.Walker
	workers int
	young   time.Duration
	root    *dir
	rounds  int // of listing again
	list    listing

	mu     sync.Mutex // held during calls of to; while listing also guards what a dir holds
	failed error      // guarded by mu; of a visit: the last
}

// dir is a directory that was met at path.
type dir struct {
	path   chain.Path
	parent *dir // nil for the root
	listed bool
	stamp  stamp  // while listed
	subs   []*dir // while listed
	// missing are the names in it where nothing was found, as happens when
	// they are moved after the listing.
	missing []missing
	again   bool // guarded by verification.mu
}

type missing struct {
	path chain.Path
	err  error
}

// holder is the directory in which d is found, for the root itself.
func (d *dir) holder() *dir {
	if d.parent == nil {
		return d
	}
	return d.parent
}

func newWalk(t *Tree, to chain.Walker, workers int) *walk {
	return &walk{tree: t, to: to, workers: workers, young: young, root: &dir{}}
}

func (w *walk) all(ctx context.Context) error {
	if err := w.passes(ctx); err != nil {
		return err
	}
	return w.tree.Present()
}

// passes lists everything once, and then what changed until nothing does.
func (w *walk) passes(ctx context.Context) error {
	todo := []*dir{w.root}
	for {
		if err := w.listAll(ctx, todo); err != nil {
			return err
		}
		if w.rounds == maxRounds {
			return w.unexplained(w.root)
		}
		var err error
		if todo, err = w.verify(ctx); err != nil {
			return err
		}
		if len(todo) == 0 {
			return w.unexplained(w.root)
		}
		w.rounds++
	}
}

// listAll lists directories and all that are new below them.
func (w *walk) listAll(ctx context.Context, dirs []*dir) error {
	q := &queue[*dir]{items: dirs}
	return q.drain(w.workers, func(list *listing, d *dir) error {
		l := &lister{walk: w, ctx: ctx, queue: q, list: list, dir: d}
		return l.run()
	})
}

// lister lists one directory and visits its entries.
type lister struct {
	*walk
	ctx   context.Context
	queue *queue[*dir]
	list  *listing
	dir   *dir
	fd    int

	before map[chain.Path]*dir // what was in dir when it was listed before
	now    dir                 // what dir becomes
}

func (l *lister) run() (err error) {
	if err := l.ctx.Err(); err != nil {
		return err
	}
	if l.fd, err = l.tree.OpenPath(l.dir.path, unix.O_RDONLY|unix.O_DIRECTORY, 0); err != nil {
		return l.unlisted(err)
	}
	defer unix.Close(l.fd)
	e, err := look(l.dir.path, l.fd, "")
	if err != nil {
		return l.unlisted(err)
	}
	l.remember()
	l.now = dir{listed: true, stamp: stampOf(e, l.young)}
	if l.dir.parent != nil {
		if err := l.visit(l.ctx, e); err != nil {
			return err
		}
	}
	return l.entries()
}

func (l *lister) remember() {
	if len(l.dir.subs) == 0 {
		return // as for all in the first pass
	}
	l.before = make(map[chain.Path]*dir, len(l.dir.subs))
	for _, d := range l.dir.subs {
		l.before[d.path] = d
	}
}

func (l *lister) entries() error {
	stop := &stopped{}
	err := l.list.each(l.fd, func(e dirent) error {
		l.now.stamp.content.add(e)
		if stop.err = l.entry(e); stop.err != nil {
			return stop
		}
		return nil
	})
	switch {
	case err == stop:
		return stop.err
	case err == nil:
		l.done()
		return nil
	case l.dir.parent == nil || isMove(err):
		return l.unlisted(err)
	}
	l.now.stamp.young = false // to list it once more would fail once more
	l.done()
	return l.unreadable(l.dir.path, err)
}

// stopped tells an error of a visit from one of listing.
type stopped struct{ err error }

func (s *stopped) Error() string { return "walk stopped" }

// done makes the directory what was found.
func (l *lister) done() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dir.listed, l.dir.stamp = l.now.listed, l.now.stamp
	l.dir.subs, l.dir.missing = l.now.subs, l.now.missing
}

// unlisted is the end of a directory that could not be listed. The root must
// be; any other may be gone, or moved to where it will be found, or be closed
// to us.
func (l *lister) unlisted(err error) error {
	p := l.dir.path
	l.now = dir{}
	if l.dir.parent == nil {
		return fmt.Errorf("walk tree %s: %w: %w", l.tree.dir, chain.ErrTreeGone, err)
	}
	if isMove(err) {
		l.now.missing = []missing{{p, err}}
		l.done()
		return nil
	}
	l.done()
	if e, err := l.tree.Stat(p); err == nil {
		if err := l.visit(l.ctx, e); err != nil {
			return err
		}
	}
	return l.unreadable(p, err)
}

// entry visits one entry. A directory is visited when it is opened, which saves
// a look at it, unless it is one that is known.
func (l *lister) entry(e dirent) error {
	name := string(e.name)
	if l.dir.parent == nil && name == chain.ControlName {
		return nil
	}
	p := l.dir.path.Join(name)
	known := l.before[p]
	if e.kind == unix.DT_DIR && known == nil {
		l.found(&dir{path: p, parent: l.dir})
		return nil
	}
	var st unix.Stat_t
	if err := fstatat(l.fd, name, &st); err != nil {
		if isMove(err) {
			l.now.missing = append(l.now.missing, missing{p, err})
			return nil
		}
		return l.unreadable(p, err)
	}
	at := entryOf(p, &st)
	switch {
	case at.Type != chain.Directory:
	case known != nil && l.isStill(known, at):
		l.now.subs = append(l.now.subs, known)
	default:
		l.found(&dir{path: p, parent: l.dir})
		return nil
	}
	return l.visit(l.ctx, at)
}

// found notes a directory that is not known yet, or no longer the one that was
// known under its name: it is listed in this round.
func (l *lister) found(d *dir) {
	l.now.subs = append(l.now.subs, d)
	l.queue.push(d)
}

// isStill reports whether d is listed and what is now found in its place. What
// changed in it is for the rounds to find.
func (l *lister) isStill(d *dir, now chain.Entry) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return d.listed && d.stamp.is(now)
}

// visit hands out entries one at a time, and none after an error.
func (w *walk) visit(ctx context.Context, e chain.Entry) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if w.failed != nil {
		return w.failed
	}
	w.failed = w.to.Visit(e)
	return w.failed
}

// unreadable passes on that p cannot be listed or looked at.
func (w *walk) unreadable(p chain.Path, err error) error {
	if w.to.Unreadable == nil {
		return pathError("walk", p, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.to.Unreadable(p, pathError("walk", p, err))
	return nil
}

// unexplained reports what was missing although no change of its directory
// explains that: a name that is listed and leads nowhere, on a file system with
// an error. Whatever is there was not read.
func (w *walk) unexplained(d *dir) error {
	lost := d.missing
	for _, sub := range d.subs {
		if !sub.listed {
			lost = append(lost, sub.missing...)
		} else if err := w.unexplained(sub); err != nil {
			return err
		}
	}
	if len(lost) == 0 || !w.still(d) {
		return nil
	}
	for _, m := range lost {
		if err := w.unreadable(m.path, m.err); err != nil {
			return err
		}
	}
	return nil
}

// still reports whether d is what it was before it was listed.
func (w *walk) still(d *dir) bool {
	fd, err := w.tree.OpenPath(d.path, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return d.check(&w.list, fd, "") == same
}

// isMove reports whether err is what is found where something was listed a
// moment ago and is now gone, or is of another type.
func isMove(err error) bool {
	switch err {
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.ESTALE:
		return true
	}
	return false
}
