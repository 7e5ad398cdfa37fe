package chain

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"
)

// The labels of an undelete that are no change of names, see relocate.go.
const (
	labelUndeleted = "UNDELETE"
	LabelUndelete  = "UNDELETE:PREPARED" // the journal has the plan
)

// Condemned is an image that was deleted and can be brought back.
type Condemned struct {
	Op        OpID      `json:"op"` // that deleted it; numbers begin anew with a lost store
	Image     ImageID   `json:"image"`
	Path      Path      `json:"path"`   // what it was called
	Hidden    Path      `json:"hidden"` // what it is called now
	Allocated int64     `json:"allocated"`
	Children  []Path    `json:"children"` // what still reads through it
	Deleted   time.Time `json:"deleted"`
	KeptUntil time.Time `json:"kept_until,omitzero"` // nothing is absorbed before

	shortened bool // Path has not all of the name
}

// Trash surveys the tree and lists the condemned images that were at or below p,
// the newest deletion first.
func (t *Tree) Trash(ctx context.Context, p Path) ([]Condemned, error) {
	if _, err := t.survey(ctx); err != nil {
		return nil, err
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	all := []Condemned{}
	for im := range t.graph.condemned {
		c := t.condemned(im)
		if _, both := t.graph.oldName(im); !both && (c.Path.Within(p) || c.Hidden.Within(p)) {
			all = append(all, c)
		}
	}
	slices.SortFunc(all, func(a, b Condemned) int {
		return cmp.Or(b.Deleted.Compare(a.Deleted), cmp.Compare(a.Path, b.Path))
	})
	return all, nil
}

// EmptyTrash has --keep not hold back any more what was at or below p: it is absorbed
// as soon as its chain is quiet. It returns what that is.
func (t *Tree) EmptyTrash(ctx context.Context, p Path) ([]Condemned, error) {
	if t.cfg.ReadOnly {
		return nil, errReadOnly
	}
	all, err := t.Trash(ctx, p)
	if err != nil {
		return nil, err
	}
	t.mu.RLock()
	all = slices.DeleteFunc(all, func(c Condemned) bool {
		im := t.graph.At(c.Hidden)
		kept := im != nil && t.isKept(im)
		if kept {
			t.records.giveUp(im)
		}
		return !kept
	})
	for i := range all {
		all[i].KeptUntil = time.Time{}
	}
	t.mu.RUnlock()
	if t.reclaim != nil {
		t.reclaim.wake()
	}
	return all, nil
}

// condemned describes a condemned image. The caller holds mu.
func (t *Tree) condemned(im *Image) Condemned {
	op, _, _, _ := ParseCondemned(im.Path.Base())
	rec := t.records.of(im)
	c := Condemned{
		Op: op, Image: im.ID, Path: Shown(im.Path), Hidden: im.Path, Allocated: im.Allocated, Children: []Path{},
		Deleted: rec.at, shortened: rec.name == "",
	}
	if rec.name != "" {
		c.Path = c.Path.Dir().Join(rec.name)
	}
	if !t.records.isGivenUp(im) {
		c.KeptUntil = t.keptUntil(rec)
	}
	for _, child := range t.graph.Children(im.Path) {
		c.Children = append(c.Children, Shown(child.Path))
	}
	return c
}

// Undelete brings back what was deleted at p: an image, or all images of a
// directory, and the full that they stand on. With as set, one image gets that name.
// It returns what was brought back, also with an error.
func (t *Tree) Undelete(ctx context.Context, p, as Path) (back []Path, err error) {
	if t.cfg.ReadOnly {
		return nil, errReadOnly
	}
	for range maxReplans {
		some, err := t.bringBackAll(ctx, p, as)
		back = append(back, some...)
		if !errors.Is(err, errMoreBelow) {
			return back, inPart(back, err)
		}
	}
	return back, fmt.Errorf("%s: what it stands on keeps being deleted: %w", p, ErrChanged)
}

// inPart is err when some images were brought back before it: no refusal any more,
// because something was changed.
func inPart(back []Path, err error) error {
	if refused := (*RefusedError)(nil); len(back) == 0 || !errors.As(err, &refused) {
		return err
	}
	return fmt.Errorf("only a part was brought back, up to %s: %s", back[len(back)-1], err.Error())
}

// errMoreBelow: what an image stands on was deleted while it was being brought back.
var errMoreBelow = errors.New("what it stands on is deleted, too")

func (t *Tree) bringBackAll(ctx context.Context, p, as Path) ([]Path, error) {
	found, err := t.toBringBack(ctx, p)
	if err != nil {
		return nil, err
	}
	one := slices.IndexFunc(found, func(c Condemned) bool { return c.Path == p || c.Hidden == p })
	if as != "" && (one < 0 || InHidden(as)) {
		return nil, Refuse(p, "%s cannot be the name of what was deleted at %s; name one image, and a new name that is not hidden", as, p)
	}
	var back []Path
	for i, c := range found {
		name := Path("")
		if i == one {
			name = as
		}
		to, err := t.bringBack(ctx, c, name)
		if err != nil {
			return back, err
		}
		back = append(back, to)
	}
	return back, nil
}

// toBringBack finds the condemned images that p means, parents before children. Of
// several with one name it is the one that was deleted last.
func (t *Tree) toBringBack(ctx context.Context, p Path) ([]Condemned, error) {
	all, err := t.Trash(ctx, p)
	if err != nil {
		return nil, err
	}
	met := map[Path]bool{}
	found := slices.DeleteFunc(all, func(c Condemned) bool {
		again := met[c.Path] && c.Hidden != p
		met[c.Path] = true
		return again
	})
	if len(found) == 0 {
		return nil, fmt.Errorf("%s: nothing that was deleted there can be brought back (chainfs trash lists what can): %w", p, fs.ErrNotExist)
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	found = append(found, t.neededBelow(found)...)
	position := func(c Condemned) int32 {
		if im := t.graph.At(c.Hidden); im != nil {
			return im.Position
		}
		return 0
	}
	slices.SortStableFunc(found, func(a, b Condemned) int { return cmp.Compare(position(a), position(b)) })
	return found, nil
}

// neededBelow are the condemned images on which those stand that are to be brought
// back, and of which no end could be made then: no full is deleted on which something
// stands, nor what could not be absorbed. The caller holds mu.
func (t *Tree) neededBelow(found []Condemned) (needed []Condemned) {
	met := map[Path]bool{}
	for _, c := range found {
		met[c.Hidden] = true
	}
	for _, c := range found {
		im := t.graph.At(c.Hidden)
		if im == nil {
			continue
		}
		line, _ := t.graph.Below(im)
		cannotAbsorb := t.graph.cannotRebase(im) != ""
		for _, below := range line {
			_, both := t.graph.oldName(below) // it is not deleted, or not yet
			if !below.IsCondemned() || both || !cannotAbsorb && below.Kind == Incremental {
				continue
			}
			cannotAbsorb = t.graph.cannotRebase(below) != ""
			if !met[below.Path] {
				met[below.Path] = true
				needed = append(needed, t.condemned(below))
			}
		}
	}
	return needed
}

// nothingBelow: what c stands on stays.
func (t *Tree) nothingBelow(c Condemned) error {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if more := t.neededBelow([]Condemned{c}); len(more) > 0 {
		return fmt.Errorf("%s: %w", more[0].Path, errMoreBelow)
	}
	return nil
}

// bringBack gives a condemned image its name back:
//
//	claim its chain; the reclaimer stops
//	journal it
//	make the directories that were removed
//	change the name, as relocation has it: condemning the other way round
//	journal it as done
//	remove hidden directories that are empty now
func (t *Tree) bringBack(ctx context.Context, c Condemned, as Path) (Path, error) {
	to := c.Path
	if as != "" {
		to = as
	}
	if c.shortened && as == "" {
		return "", Refuse(c.Path, "only the end of the name of %s is known, because the store was lost; name it (chainfs undelete --as NAME)", c.Path)
	}
	decide := func() Plan { return t.graph.planUndelete(c, to) }
	return to, t.withPlan(ctx, claimant{}, decide, func(plan Plan) error {
		if err := t.nothingBelow(c); err != nil {
			return err
		}
		if err := t.freeName(to); err != nil {
			return err
		}
		if err := t.errIdle(c.Hidden); err != nil {
			return err
		}
		return t.undelete(ctx, plan)
	})
}

func (g *Graph) planUndelete(c Condemned, to Path) Plan {
	p := Plan{Act: ActUndelete, Paths: []Path{c.Path}}
	im := g.At(c.Hidden)
	if im == nil || im.ID != c.Image {
		p.Refusals = []Refusal{{c.Path, fmt.Sprintf("%s cannot be brought back any more: its children have absorbed it, or its directory was moved", c.Path)}}
		return p
	}
	if at, why := g.unread(im.Path); why != "" {
		p.Refusals = []Refusal{{c.Path, fmt.Sprintf("%s cannot be brought back because %s cannot be read (%s) and may depend on it; make it readable or remove it, then run chainfs scan", c.Path, at, why)}}
		return p
	}
	p.Chains = []ImageID{im.Chain}
	p.Steps = []Step{{Verb: StepRename, Image: im.ID, Path: im.Path, To: to, Identity: im.Identity, Bytes: im.Allocated}}
	return p
}

func (t *Tree) freeName(p Path) error {
	switch _, err := t.cfg.Files.Stat(p); {
	case isGone(err):
		return nil
	case err != nil:
		return err
	}
	return Refuse(p, "%s is there; move it away, or bring the deleted one back under another name (chainfs undelete --as NAME)", p)
}

func (t *Tree) undelete(ctx context.Context, plan Plan) error {
	s := plan.Steps[0]
	r := t.relocationOf(labelUndeleted, &plan)
	defer r.release()
	if err := r.isPossible(); errors.Is(err, ErrNotInPlace) {
		return Refuse(s.To, "%s cannot be brought back now, because what stands on it would have to name it: %v", s.To, err)
	} else if err != nil {
		return err
	}
	if s.To.Dir() == Shown(s.Path.Dir()) {
		if err := t.makeDirs(s.Path.Dir()); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	run, err := t.begin(execution{plan: plan}, cancel)
	if err != nil {
		return err
	}
	defer t.running.remove(run)
	if err = r.follow(ctx); err != nil {
		return t.takeBack(run, r, err)
	}
	if err := r.finish(); err != nil {
		return t.giveUp(run, 0, err) // it has its name, and the next start takes the hidden one away
	}
	t.finish(run, LabelFinished)
	t.cfg.Log.Info("brought back", "image", s.To)
	t.touchAll(plan.Chains)
	t.removeEmpty(s.Path.Dir())
	return nil
}

// makeDirs makes the directories again that hidden ones in the way to dir were.
func (t *Tree) makeDirs(dir Path) error {
	if Shown(dir) == dir {
		return nil
	}
	if err := t.makeDirs(dir.Dir()); err != nil {
		return err
	}
	e, err := t.cfg.Files.Stat(Shown(dir))
	switch {
	case err == nil && e.Type == Directory:
		return nil
	case err == nil:
		return Refuse(Shown(dir), "%s is no directory any more; move it away first", Shown(dir))
	case !isGone(err):
		return err
	}
	err = t.cfg.Files.MkdirLike(Shown(dir), dir)
	if errors.Is(err, fs.ErrExist) {
		return t.makeDirs(dir) // somebody made it just now
	}
	return err
}

// removeEmpty removes hidden directories that are empty, from dir upwards.
func (t *Tree) removeEmpty(dir Path) {
	for ; IsCondemned(dir.Base()); dir = dir.Dir() {
		if err := t.cfg.Files.Rmdir(dir); err != nil && !isGone(err) {
			if !isNotEmpty(err) {
				t.cfg.Log.Warn("a hidden directory could not be removed", "path", dir, "err", err) // the next start tries again
			}
			return
		}
	}
}

func (t *Tree) touchAll(chains []ImageID) {
	for _, id := range chains {
		t.touch(id)
	}
}
