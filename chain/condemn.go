package chain

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// The labels of condemning that are no change of names, see relocate.go.
const (
	labelCondemned = "CONDEMN"
	LabelCondemn   = "CONDEMN:PREPARED" // the journal has the plan
	LabelLater     = "CONDEMN:FINISHED" // the journal and the index have the outcome
)

// isForLater reports whether a deletion is left to the reclaimer. What cannot be
// measured could not be absorbed later either, and is no deletion to acknowledge.
func (t *Tree) isForLater(ctx context.Context, x *execution, opt DeleteOptions) (bool, error) {
	d := t.cfg.Deferral
	if d == nil || opt.Now || !x.plan.hasImages() || d.Keep <= 0 && (!x.plan.Rebases() || d.InlineLimit < 0) {
		return false, nil
	}
	if err := t.measureOnce(ctx, x); err != nil {
		return false, err
	}
	return d.Keep > 0 || d.InlineLimit == 0 || x.plan.Moves() > d.InlineLimit, nil
}

// measureOnce replaces the bounds of a plan, unless that was done.
func (t *Tree) measureOnce(ctx context.Context, x *execution) error {
	if x.measured {
		return nil
	}
	x.measured = true
	return t.measure(ctx, &x.plan)
}

// condemn deletes for the user what a plan that is ready deletes, and leaves for
// later what images that stay have to absorb:
//
//	journal it
//	give each image its hidden name, and have its children name that
//	unlink the old names, and what nothing stands on: the first is the COMMIT POINT
//	journal it as done, with what changed in the index
//
// The old name that goes first commits all: until then recovery takes the hidden
// names away, after it, it goes on to the end. For one image nothing but the names
// in its directory says which it is, so that a lost store changes nothing.
//
// ErrNotInPlace: the children cannot be changed like this, and nothing was changed.
func (t *Tree) condemn(ctx context.Context, x execution) error {
	var err error
	if x.id, x.plan, err = t.numberPlan(x.plan, t.planCondemn); err != nil {
		return err
	}
	r := t.relocationOf(labelCondemned, &x.plan)
	defer r.release()
	if err := r.isPossible(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	run, err := t.begin(x, cancel)
	if err != nil {
		return err
	}
	defer t.running.remove(run)
	err = r.follow(ctx)
	if err == nil {
		err = r.lastLook()
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return t.takeBack(run, r, err)
	}
	return t.completeCondemn(run, r)
}

// maxNumbers bounds how many numbers are tried.
const maxNumbers = 1000

// numberPlan gives a plan a number with which its new names are free. Numbers begin
// anew with a lost store, and the names of the old one are still there.
func (t *Tree) numberPlan(plan Plan, make func(OpID, Plan) Plan) (OpID, Plan, error) {
	for range maxNumbers {
		id, err := t.newOp()
		if err != nil {
			return 0, plan, err
		}
		numbered := make(id, plan)
		free, err := t.areFree(numbered)
		if free || err != nil {
			return id, numbered, err
		}
	}
	return 0, plan, fmt.Errorf("%s: no hidden name is free for it: %w", plan.Paths[0], ErrChanged)
}

func (t *Tree) areFree(plan Plan) (bool, error) {
	for _, s := range plan.renames() {
		if _, err := t.cfg.Files.Stat(s.To); !isGone(err) {
			return false, err
		}
	}
	return true, nil
}

// planCondemn is the plan with its deletions divided: an image on which others
// stand that stay is renamed, and with Keep every image. Condemned images that
// only rode along are left alone, unless nothing stands on them any more.
func (t *Tree) planCondemn(op OpID, plan Plan) Plan {
	t.mu.RLock()
	defer t.mu.RUnlock()
	d := t.graph.deletion(plan.Paths, DeleteOptions{begun: true})
	for _, s := range plan.unlinks() { // those of --force too
		if im := t.graph.At(s.Path); im != nil {
			d.going[im] = true
		}
	}
	var steps []Step
	for _, s := range plan.unlinks() {
		im := t.graph.At(s.Path)
		stays := im != nil && (t.cfg.Deferral.Keep > 0 || len(d.dependents(im)) > 0)
		switch {
		case !stays:
			steps = append(steps, s)
		case !im.IsCondemned():
			s.Verb, s.To = StepRename, s.Path.Dir().Join(CondemnedName(op, s.Path.Base()))
			steps = append(steps, s)
		}
	}
	plan.Act, plan.Steps = ActCondemn, steps
	return plan
}

// relocationOf has the names changed that a plan renames, of parents before their
// children.
func (t *Tree) relocationOf(label string, plan *Plan) *relocation {
	t.mu.RLock()
	defer t.mu.RUnlock()
	position := func(s Step) int32 {
		for _, p := range []Path{s.Path, s.To} {
			if im := t.graph.At(p); im != nil {
				return im.Position
			}
		}
		return 0
	}
	steps := plan.renames()
	slices.SortStableFunc(steps, func(a, b Step) int { return cmp.Compare(position(a), position(b)) })
	r := &relocation{Tree: t, label: label, before: map[Path]int64{}, doomed: map[Path]bool{}}
	for _, s := range plan.unlinks() {
		r.doomed[s.Path] = true
	}
	for _, s := range steps {
		r.changes = append(r.changes, nameChange{s.Path, s.To, s.Identity.Inode})
		for _, child := range t.graph.Children(s.Path) {
			r.before[child.Path] = child.Identity.MTime
		}
	}
	return r
}

// isPossible asks for each child whether its header can be changed. Nothing is
// changed before all have been asked.
func (r *relocation) isPossible() error {
	for _, c := range r.changes {
		for _, child := range r.namers(c) {
			job, err := r.repointJob(c, child)
			if err != nil {
				return err
			}
			if err := r.cfg.Rebaser.CheckRepoint(job); err != nil {
				return fmt.Errorf("have %s name its parent %s: %w", child.Path, c.to, err)
			}
		}
	}
	return nil
}

// lastLook: what is about to be condemned is what was decided on, and in nobody's use.
func (r *relocation) lastLook() error {
	for _, c := range r.changes {
		// Without hard links the old name is gone by now.
		is, err := r.isNamed(c.to, c.inode)
		if err == nil && !is {
			err = fmt.Errorf("%s: %w", c.from, ErrChanged)
		}
		if err == nil {
			err = r.errIdle(c.to)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// completeCondemn removes the old names. What fails before any is gone is taken
// back; after that the caller is told how far it went.
func (t *Tree) completeCondemn(run *run, r *relocation) error {
	gone := 0
	err := t.unlinkSteps(run, true, &gone)
	for i := 0; err == nil && i < len(r.changes); i++ {
		// COMMIT POINT, when it is the first: see condemn.
		if err = r.unlinkOld(r.changes[i]); err == nil {
			gone++
		}
	}
	if err == nil {
		err = t.unlinkSteps(run, false, &gone)
	}
	switch {
	case err != nil && gone == 0:
		return t.takeBack(run, r, err)
	case err != nil:
		r.changes = slices.DeleteFunc(r.changes, func(c nameChange) bool {
			is, err := r.isNamed(c.from, c.inode)
			return err == nil && !is
		})
		if backErr := r.takeBack(); backErr != nil {
			t.cfg.Log.Error("a deletion could not be taken back; the next start does it", "op", run.op.ID, "err", backErr)
		}
		return t.giveUp(run, gone, err)
	}
	for _, s := range run.op.Plan.renames() {
		t.cfg.Log.Info("condemned", "image", s.Path, "as", s.To)
	}
	t.finish(run, LabelLater)
	t.laterFor(run.op)
	return nil
}

// unlinkSteps carries out the deletions of images, or of other files.
func (t *Tree) unlinkSteps(run *run, images bool, gone *int) error {
	for _, s := range run.op.Plan.unlinks() {
		if (s.Image != 0) != images {
			continue
		}
		deleted, err := t.unlink(context.Background(), run, s)
		if deleted {
			*gone++
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// takeBack ends an operation that deleted nothing: its hidden names go, and the
// children name their parents as before.
func (t *Tree) takeBack(run *run, r *relocation, why error) error {
	run.op.Error = why.Error()
	if interrupted(why) {
		run.op.Error = "interrupted by its caller"
	}
	if err := r.takeBack(); err != nil {
		t.cfg.Log.Error("a deletion could not be taken back; the next start does it", "op", run.op.ID, "err", err)
		// Still prepared. The error tells recovery that its caller was told of one.
		if err := t.cfg.Journal.Record(run.op); err != nil {
			t.cfg.Log.Error("and that could not be recorded", "op", run.op.ID, "err", err)
			t.mu.Lock()
			t.unrecorded[run.op.ID] = run.op
			t.mu.Unlock()
		}
		return why
	}
	run.op.State, run.op.Ended = Undone, time.Now()
	if err := t.end(run.op); err != nil {
		t.cfg.Log.Error("the operation was undone but that could not be recorded; the next start does it", "op", run.op.ID, "err", err)
	}
	t.cfg.Log.Warn("operation undone", "op", run.op.ID, "why", run.op.Error)
	return why
}

// takeBack takes back one change after the other, those higher in a chain first:
// a file that has both names is not changed under one of them.
func (r *relocation) takeBack() error {
	var errs []error
	for _, c := range slices.Backward(r.changes) {
		hidden, err := r.isNamed(c.to, c.inode)
		// Without hard links it may have been taken back by half.
		if err != nil || !hidden && !r.isMissed(c.to) {
			errs = append(errs, err)
			continue // it did not come so far
		}
		errs = append(errs, r.changeBack(context.Background(), nameChange{c.to, c.from, c.inode}, r.before))
	}
	return errors.Join(errs...)
}

// changeBack carries out one change of names that takes another one back.
func (t *Tree) changeBack(ctx context.Context, c nameChange, mtimes map[Path]int64) error {
	r := &relocation{Tree: t, label: labelUndeleted, mtimes: mtimes, changes: []nameChange{c}}
	defer r.release()
	if err := r.follow(ctx); err != nil {
		return err
	}
	return r.finish()
}

// halfway finds condemned images that have their old name, too: nobody was told
// that they are deleted, or they are being brought back. An entry is the change of
// names that makes an end of it.
func (g *Graph) halfway() []nameChange {
	var all []nameChange
	for _, im := range byPosition(g.condemned) {
		if p, is := g.oldName(im); is {
			all = append(all, nameChange{im.Path, p, im.Identity.Inode})
		}
	}
	return all
}

// doubles find condemned images that have two hidden names: their directory was being
// removed. An entry leaves the one that is there for longer.
func (g *Graph) doubles() []nameChange {
	var all []nameChange
	kept := map[Path][]*Image{}
	images := byPosition(g.condemned)
	slices.SortStableFunc(images, func(a, b *Image) int { return cmp.Compare(a.Path.hidden(), b.Path.hidden()) })
	for _, im := range images {
		same := kept[Shown(im.Path)]
		if i := slices.IndexFunc(same, im.isSameFile); i >= 0 {
			all = append(all, nameChange{im.Path, same[i].Path, im.Identity.Inode})
		} else {
			kept[Shown(im.Path)] = append(same, im)
		}
	}
	return all
}

// hidden is how many elements of p belong to chainfs.
func (p Path) hidden() (n int) {
	for _, name := range split(p) {
		if IsHidden(name) {
			n++
		}
	}
	return n
}

// oldName is the name that a condemned image had, when it still has it.
func (g *Graph) oldName(im *Image) (Path, bool) {
	op, _, whole, _ := ParseCondemned(im.Path.Base())
	if o := g.At(Shown(im.Path)); o != nil && o.isSameFile(im) {
		return o.Path, true
	}
	if whole {
		return "", false
	}
	for _, o := range g.inDir[im.Path.Dir()] {
		if o != im && o.isSameFile(im) && CondemnedName(op, o.Path.Base()) == im.Path.Base() {
			return o.Path, true
		}
	}
	return "", false
}

func (im *Image) isSameFile(o *Image) bool {
	return im.Identity.Inode == o.Identity.Inode && im.Nested == o.Nested && im.Identity.SameContent(o.Identity)
}

// byPosition are images, those higher in a chain first.
func byPosition(set map[*Image]bool) []*Image {
	var all []*Image
	for im := range set {
		all = append(all, im)
	}
	byPath(all)
	slices.SortStableFunc(all, func(a, b *Image) int { return cmp.Compare(b.Position, a.Position) })
	return all
}
