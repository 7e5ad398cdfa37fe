package chain

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// The labels of a change of names, in order, behind the name of the act that it
// is a part of: "CONDEMN:LINKED".
const (
	labelLinked   = ":LINKED"   // the image durably has both names, or, without hard links, the new one
	labelNamed    = ":NAMED"    // its children durably name the new one
	labelUnlinked = ":UNLINKED" // the old one is gone
	labelSynced   = ":SYNCED"   // durably
)

// nameChange gives one image another name.
type nameChange struct {
	from, to Path
	inode    uint64
}

// relocation gives images other names, and has their children follow:
//
//	link      the image gets its new name beside the old one         sync
//	repoint   each child's header names the new one                  sync
//	          the two for each image, those lower in a chain first
//	survey    the tree, and the children that appeared meanwhile too
//	unlink    the old names                                          sync
//
// At every instant each child's backing name leads to its parent, by the one name
// or the other. Each step finds what an earlier run did, so that it can be run
// again after a crash, and in the other direction to take it back.
//
// Where the file system has no hard links the first step is a rename. Until the
// second is done the children name what is not there; only the journal, and, for
// what is condemned, the hidden name tell where it is. See docs/DESIGN.md.
type relocation struct {
	*Tree
	label   string // what its steps are called
	changes []nameChange

	// before are the children's modification times before it, and mtimes what they
	// become again when this takes back another one. Both may lack some.
	before, mtimes map[Path]int64

	// doomed are unlinked by the same operation before the old names go; they are
	// not changed any more.
	doomed map[Path]bool

	// claimed are chains beside those of the plan: see claimOwn.
	claimed []ImageID
}

// follow links and repoints. After an error of it some images have both names.
func (r *relocation) follow(ctx context.Context) error {
	for _, c := range r.changes {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := r.link(ctx, c); err != nil {
			return err
		}
		if err := r.repointAll(ctx, c); err != nil {
			return err
		}
	}
	return r.untilNoneAppears(ctx)
}

// untilNoneAppears surveys the tree, and repoints what names an old name, until
// there is nothing.
func (r *relocation) untilNoneAppears(ctx context.Context) error {
	for range maxReplans {
		if _, err := r.survey(ctx); err != nil {
			return err
		}
		named := false
		for _, c := range r.changes {
			named = named || len(r.namers(c)) > 0
			if err := r.repointAll(ctx, c); err != nil {
				return err
			}
		}
		if !named {
			r.cfg.Step(r.label + labelNamed)
			return nil
		}
	}
	return fmt.Errorf("%s keeps getting children: %w", r.changes[0].from, ErrChanged)
}

// link gives the image its new name, and the graph with it.
func (r *relocation) link(ctx context.Context, c nameChange) error {
	if err := r.nameRightInBoth(ctx, c); err != nil {
		return err
	}
	done, err := r.isNamed(c.to, c.inode) // by an earlier run
	if err == nil && !done {
		err = r.cfg.Files.Link(c.from, c.to)
	}
	if errors.Is(err, ErrNoLinks) {
		err, done = r.rename(c), true
	}
	if err != nil {
		return fmt.Errorf("name %s %s: %w", c.from, c.to, err)
	}
	if err := r.cfg.Files.SyncDir(c.to.Dir()); err != nil {
		return err
	}
	r.cfg.Step(r.label + labelLinked)
	if err := r.Changed(c.to); err != nil || done {
		return err
	}
	return r.claimOwn(c)
}

// claimOwn claims the chain of which the image is the bottom under its new name. Until
// the old name is gone it is another image there, and so is the chain of the children
// that follow it.
func (r *relocation) claimOwn(c nameChange) error {
	im := r.atPath(c.to)
	if im == nil || im.Chain != im.ID {
		return nil
	}
	own := []ImageID{im.ID}
	if _, holders := r.claims.try(claimant{}, own); holders != nil {
		return fmt.Errorf("%s: %w", c.to, ErrChanged)
	}
	r.claimed = append(r.claimed, own...)
	return nil
}

// release gives back what the plan's claims do not include.
func (r *relocation) release() {
	if len(r.claimed) > 0 {
		r.claims.release(r.claimed)
		r.claimed = nil
	}
}

// rename is link where a file can have one name only.
func (r *relocation) rename(c nameChange) error {
	err := r.cfg.Files.Rename(c.from, c.to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) { // such file systems often cannot do this either
		if _, err := r.cfg.Files.Stat(c.to); !isGone(err) {
			return fs.ErrExist
		}
		err = r.cfg.Files.Rename(c.from, c.to, 0)
	}
	if err != nil {
		return err
	}
	if c.from.Dir() != c.to.Dir() {
		if err := r.cfg.Files.SyncDir(c.from.Dir()); err != nil {
			return err
		}
	}
	if err := r.Changed(c.to); err != nil {
		return err
	}
	r.inherit(c)
	return nil
}

// isNamed reports whether p is a name of that file.
func (t *Tree) isNamed(p Path, inode uint64) (bool, error) {
	e, err := t.cfg.Files.Stat(p)
	if isGone(err) {
		return false, nil
	}
	return err == nil && e.Type == Regular && e.Identity.Inode == inode, err
}

// namers are the images that name the old name, and stay.
func (r *relocation) namers(c nameChange) []*Image {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return slices.DeleteFunc(r.graph.Children(c.from), func(im *Image) bool { return r.doomed[im.Path] })
}

func (r *relocation) repointAll(ctx context.Context, c nameChange) error {
	for _, child := range r.namers(c) {
		job, err := r.repointJob(c, child)
		if err != nil {
			return err
		}
		r.cfg.Log.Debug("repointing", "image", child.Path, "to", c.to)
		if err := r.cfg.Rebaser.Repoint(ctx, job); err != nil {
			return fmt.Errorf("have %s name its parent %s: %w", child.Path, c.to, err)
		}
		if err := r.Changed(child.Path); err != nil {
			return err
		}
	}
	return nil
}

func (r *relocation) repointJob(c nameChange, child *Image) (RepointJob, error) {
	job := RepointJob{
		Child: child.Path, Inode: child.Identity.Inode, From: c.from, To: c.to,
		Name: nameBeside(child, c), Format: child.Header.BackingFormat, MTime: r.mtimes[child.Path],
		Names: r.namesBeside(child),
	}
	if child.Header.ParentUnknown || child.Header.Backing == "" {
		return job, Refuse(child.Path, "%s names its parent in a way that chainfs does not rewrite", child.Path)
	}
	return job, nil
}

// namesBeside is how many names of the child's file are known in its directory: for
// all of them the new backing name is right, or wrong.
func (t *Tree) namesBeside(im *Image) (n int) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, o := range t.graph.inDir[im.Path.Dir()] {
		if o.Identity.Inode == im.Identity.Inode {
			n++
		}
	}
	return n
}

// nameBeside is the child's backing name with another last element: the way to
// the directory is then the one that it was. Between directories it is relative.
func nameBeside(child *Image, c nameChange) Path {
	if c.from.Dir() != c.to.Dir() || path.Base(string(child.Header.Backing)) != c.from.Base() {
		return RelativeName(child.Path, c.to)
	}
	dir, _ := path.Split(string(child.Header.Backing))
	if dir == "" {
		return RelativeName(child.Path, c.to)
	}
	return Path(dir + c.to.Base())
}

// nameRightInBoth makes the image's own backing name one that is right in the
// directories of both names.
func (r *relocation) nameRightInBoth(ctx context.Context, c nameChange) error {
	im := r.atPath(c.from)
	if im == nil || c.from.Dir() == c.to.Dir() || im.Header.Backing == "" && !im.Header.ParentUnknown || strings.HasPrefix(string(im.Header.Backing), "/") {
		return nil
	}
	if im.External || im.Header.ParentUnknown {
		return Refuse(c.from, "%s names a file outside the tree, or in a way that chainfs does not rewrite, and cannot be moved to another directory", im.called())
	}
	to, inside := NewPath(path.Join(string(c.to.Dir()), string(im.Header.Backing)))
	if inside && to == im.Target && len(im.Needs) == 0 { // through a symbolic link ".." leads elsewhere
		return nil
	}
	if r.atPath(im.Target) == nil {
		return nil // it has no parent that it could lose
	}
	name, ok := commonName(c.from.Dir(), c.to.Dir(), im.Target)
	if !ok {
		return Refuse(c.from, "%s cannot be moved to %s, because no name of its parent is right in both directories", im.called(), c.to.Dir())
	}
	job := RepointJob{
		Child: c.from, Inode: im.Identity.Inode, From: im.Target, To: im.Target,
		Name: name, Format: im.Header.BackingFormat,
	}
	if err := r.cfg.Rebaser.Repoint(ctx, job); err != nil {
		return fmt.Errorf("have %s name its parent from both directories: %w", im.Path, err)
	}
	return r.Changed(c.from)
}

func (t *Tree) atPath(p Path) *Image {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.graph.At(p)
}

// finish unlinks the old names, which nobody names any more.
func (r *relocation) finish() error {
	for _, c := range r.changes {
		if err := r.unlinkOld(c); err != nil {
			return err
		}
	}
	return nil
}

func (r *relocation) unlinkOld(c nameChange) error {
	is, err := r.isNamed(c.from, c.inode)
	if err != nil || !is {
		return err // what has the name now is none of ours
	}
	if both, err := r.isNamed(c.to, c.inode); err != nil || !both {
		return errors.Join(err, fmt.Errorf("%s: %w", c.to, ErrChanged))
	}
	if err := r.unneeded(c.from); err != nil {
		return err
	}
	if err := r.cfg.Files.Unlink(c.from); err != nil {
		return fmt.Errorf("unlink %s: %w", c.from, err)
	}
	r.inherit(c)
	r.cfg.Step(r.label + labelUnlinked)
	if err := r.cfg.Files.SyncDir(c.from.Dir()); err != nil {
		return fmt.Errorf("%s has lost its name, but that may not be durable: %w", c.from, err)
	}
	r.cfg.Step(r.label + labelSynced)
	if err := r.Changed(c.to); err != nil { // its change time moved
		r.cfg.Log.Warn("a renamed image could not be read", "path", c.to, "err", err) // a survey will
	}
	return nil
}

// unneeded: no image names p, and none can that could not be read.
func (t *Tree) unneeded(p Path) error {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if named := append(t.graph.Children(p), t.graph.needers[p]...); len(named) > 0 {
		return fmt.Errorf("%s appeared, which needs %s: %w", named[0].Path, p, ErrChanged)
	}
	if blind := t.graph.blindness(p); blind != "" {
		return Refuse(p, "%s", blind)
	}
	return nil
}

// inherit gives the image under its new name the id that it had.
func (r *relocation) inherit(c nameChange) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old, im := r.graph.At(c.from), r.graph.At(c.to)
	switch {
	case old == nil:
		return
	case im == nil || im.Identity.Inode != c.inode || old.Identity.Inode != c.inode:
		r.forget(old)
		return
	}
	above := append(r.graph.Descendants(c.from), r.graph.Descendants(c.to)...)
	now := *im
	now.ID, now.FirstSeen, now.seen = old.ID, old.FirstSeen, r.round
	r.graph.remove(old)
	r.forget(im)
	r.graph.put(&now)
	r.unsaved.put[now.ID] = true
	delete(r.unsaved.remove, now.ID)
	r.settle(append(above, &now))
}
