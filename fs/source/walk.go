package source

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
)

// maxWalks is how often a tree is walked in the hope that it holds still.
const maxWalks = 5

// A walk is not one look at the tree, but thousands, and others write to the
// tree meanwhile. An image that is renamed from a directory not yet listed into
// one already listed is seen in neither; so is one that is moved together with
// its directory. The graph would then have an image less, the one it stands on
// would look childless, and a deletion would destroy a backup that was never
// touched. So a walk counts only when every directory is at its end what it was
// before it was listed: then there was an instant, between the last listing and
// the first check, at which all listings were true together.

// errMoved ends one walk: the tree changed while it was walked.
var errMoved = errors.New("changed while it was walked")

// Walk visits every entry below the root. See chain.Files. One descriptor is
// open at a time, however deep the tree is.
func (t *Tree) Walk(ctx context.Context, w chain.Walker) error {
	var moved chain.Path
	for try := range maxWalks {
		if try > 0 {
			if err := pause(ctx, try); err != nil {
				return err
			}
			if w.Restart != nil {
				w.Restart()
			}
		}
		run := &walk{tree: t, to: w}
		err := run.all(ctx)
		if err == nil {
			return t.Present()
		}
		if !errors.Is(err, errMoved) {
			return err
		}
		if err := t.Present(); err != nil {
			return err
		}
		moved = run.moved
	}
	return fmt.Errorf("walk tree %s: its directories keep changing, %s among them (%d tries)", t.dir, moved, maxWalks)
}

// pause waits for a burst of changes to pass: 20 ms, then 40, 80, 160.
func pause(ctx context.Context, try int) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(10 * time.Millisecond << try):
		return nil
	}
}

// walk is one try.
type walk struct {
	tree    *Tree
	to      chain.Walker
	pending []chain.Path // directories still to be listed
	seen    []stamp
	moved   chain.Path // where a change was noticed
	list    listing
}

func (w *walk) all(ctx context.Context) error {
	w.pending = append(w.pending, "")
	for len(w.pending) > 0 {
		dir := w.pending[len(w.pending)-1]
		w.pending = w.pending[:len(w.pending)-1]
		if err := w.directory(ctx, dir); err != nil {
			return err
		}
	}
	return w.unchanged(ctx)
}

// directory lists one directory and visits its entries.
func (w *walk) directory(ctx context.Context, dir chain.Path) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	fd, err := w.tree.OpenPath(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return w.unreadable(dir, err)
	}
	defer unix.Close(fd)
	s, err := stampOf(dir, fd)
	if err != nil {
		return w.unreadable(dir, err)
	}
	stop := &stopped{}
	err = w.list.each(fd, func(name []byte) error {
		s.names.add(name)
		if stop.err = w.entry(ctx, fd, dir, string(name)); stop.err != nil {
			return stop
		}
		return nil
	})
	if err == stop {
		return stop.err
	}
	w.seen = append(w.seen, s)
	if err != nil {
		return w.unreadable(dir, err)
	}
	return nil
}

// stopped tells an error of a visit from one of listing.
type stopped struct{ err error }

func (s *stopped) Error() string { return "walk stopped" }

func (w *walk) entry(ctx context.Context, fd int, dir chain.Path, name string) error {
	if dir == "" && name == chain.ControlName {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	p := dir.Join(name)
	var st unix.Stat_t
	if err := fstatat(fd, name, &st); err != nil {
		return w.unreadable(p, err)
	}
	e := entryOf(p, &st)
	if e.Type == chain.Directory {
		w.pending = append(w.pending, p)
	}
	return w.to.Visit(e)
}

// unreadable passes on that p cannot be listed or looked at, unless that means
// that the tree is gone or that p was moved just now.
func (w *walk) unreadable(p chain.Path, err error) error {
	switch {
	case p == "":
		return fmt.Errorf("walk tree %s: %w: %w", w.tree.dir, chain.ErrTreeGone, err)
	case isMove(err):
		w.moved = p
		return errMoved
	case w.to.Unreadable == nil:
		return pathError("walk", p, err)
	}
	w.to.Unreadable(p, pathError("walk", p, err))
	return nil
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
