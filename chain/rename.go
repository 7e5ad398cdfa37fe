package chain

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"golang.org/x/sys/unix"
)

// Rename moves a file or a directory with the flags of renameat2(2). It is
// refused when it would take the place of an image that others stand on, or
// when an image would lose its parent by it. Ids of images survive.
func (t *Tree) Rename(ctx context.Context, from, to Path, flags uint) error {
	if t.cfg.ReadOnly {
		return errReadOnly
	}
	if flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 {
		return unix.EINVAL
	}
	m := move{from, to, flags&unix.RENAME_EXCHANGE != 0}
	if err := t.lookAgain(ctx, m); err != nil {
		return err
	}
	chains := t.chainsOf(m)
	if err := t.claimQuickly(ctx, chains); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return Refuse(from, "%s cannot be renamed while an operation works on its chain; wait until it has ended (chainfs ops)", from)
	}
	defer t.claims.release(chains)
	if err := t.checkRename(m, flags); err != nil {
		return err
	}
	if err := t.cfg.Files.Rename(from, to, flags); err != nil {
		return err
	}
	return t.moved(m)
}

// givingWay is how long the reclaimer may take to stop for somebody who must not
// wait for an operation's end.
const givingWay = 10 * time.Second

// claimQuickly claims chains for a call in which the kernel holds directory locks:
// it waits for the reclaimer to stop, and for nobody else.
func (t *Tree) claimQuickly(ctx context.Context, chains []ImageID) error {
	ctx, cancel := context.WithTimeout(ctx, givingWay)
	defer cancel()
	t.claims.wait(chains, 1)
	defer t.claims.wait(chains, -1)
	for {
		freed, holders := t.claims.try(claimant{}, chains)
		switch {
		case holders == nil:
			return nil
		case !giveWay(holders):
			return errClaimed
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return errClaimed
		}
	}
}

// lookAgain makes the graph right for the decision about m: by a survey, or,
// for a file that is no image and was none lately, by a look at both names.
func (t *Tree) lookAgain(ctx context.Context, m move) error {
	if t.lastWalk.recent() {
		plain := t.isPlain(m.from) && t.isPlain(m.to)
		if plain {
			return nil
		}
	}
	_, err := t.survey(ctx)
	return err
}

// isPlain reports whether the graph is certain to know all about p: there is
// nothing, or a file that is no image and that no image needs.
func (t *Tree) isPlain(p Path) bool {
	e, err := t.cfg.Files.Stat(p)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return true
	case err != nil || e.Type == Directory || couldBeBase(e) || t.Changed(p) != nil:
		return false
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.graph.At(p) == nil && len(t.graph.needers[p]) == 0 && len(t.graph.children[p]) == 0
}

// couldBeBase reports whether the file may be a raw disk, and so the parent of
// an image, whatever is known about it: only a survey can tell. A disk has a
// sector at least.
func couldBeBase(e Entry) bool {
	const sector = 512
	return e.Type == Regular && e.Identity.Size >= sector && !isSidecar(e.Path)
}

func (t *Tree) chainsOf(m move) []ImageID {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var ids []ImageID
	for _, im := range append(t.graph.touched(m), t.at(m.to)...) {
		ids = append(ids, im.Chain)
	}
	return ids
}

func (t *Tree) checkRename(m move, flags uint) error {
	t.mu.RLock()
	err := t.graph.checkMove(m)
	replaced := t.graph.At(m.to)
	if err == nil && flags == 0 && m.from != m.to &&
		(replaced != nil || len(t.graph.needers[m.to]) > 0 || len(t.graph.children[m.to]) > 0 && t.exists(m.to)) {
		err = t.graph.CheckReplace(m.to)
	}
	t.mu.RUnlock()
	if err != nil || replaced == nil || flags != 0 {
		return err
	}
	return t.errIdle(m.to)
}

// exists reports whether something is at p, which a rename would replace. A
// missing parent may be put back under its name.
func (t *Tree) exists(p Path) bool {
	_, err := t.cfg.Files.Stat(p)
	return !errors.Is(err, fs.ErrNotExist)
}

// moved takes a change of names into graph and index.
func (t *Tree) moved(m move) error {
	t.mu.Lock()
	if im := t.graph.At(m.to); im != nil && !m.exchange && m.from != m.to {
		t.forget(im)
	}
	t.rename(t.graph.touched(m), m)
	t.dropBases()
	err := t.save()
	t.mu.Unlock()
	if err != nil {
		// The tree has the new names, and the tree is the truth: the next survey
		// repairs the index.
		t.cfg.Log.Error("a rename could not be recorded", "from", m.from, "to", m.to, "err", err)
	}
	for _, p := range m.ends() {
		if err := t.Changed(p); err != nil {
			t.cfg.Log.Warn("a renamed file could not be read", "path", p, "err", err)
		}
	}
	return nil
}

// rename gives images their new names. The caller holds mu.
func (t *Tree) rename(ims []*Image, m move) {
	for _, im := range ims {
		t.graph.remove(im)
	}
	for _, im := range ims {
		now := *im
		now.seen = t.round // a survey that is under way may miss it at both places
		now.Path = m.of(im.Path)
		if im.Target != "" {
			now.Target = m.of(im.Target)
		}
		t.graph.put(&now)
		t.unsaved.put[im.ID] = true
	}
	for _, im := range ims {
		t.settle(append(t.graph.Descendants(m.of(im.Path)), t.graph.ByID(im.ID)))
	}
}

func (m move) ends() []Path {
	if m.exchange {
		return []Path{m.from, m.to}
	}
	return []Path{m.to}
}
