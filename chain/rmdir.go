package chain

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// Rmdir removes a directory in which nothing is left for its user. What is
// condemned in it, and still needed, moves to a hidden directory beside it:
//
//	claim the chains, survey
//	unlink what nothing stands on any more
//	make the hidden directory, of the same depth: names that are right in the one
//	  are right in the other, or are made so first
//	change the names of the images, as relocation has it
//	remove the directory                                   sync
//
// The hidden names tell what was where, so that nothing of it needs recovery but
// on file systems without hard links, for which it is journalled.
func (t *Tree) Rmdir(ctx context.Context, p Path) error {
	if t.cfg.ReadOnly {
		return errReadOnly
	}
	if err := t.onlyCondemned(p); err != nil {
		return err
	}
	id, to, err := t.freeHidden(p)
	if err != nil {
		return err
	}
	decide := func() Plan { return t.graph.planRmdir(p, to, t.keeps()) }
	return t.withPlan(ctx, claimant{}, decide, func(plan Plan) error {
		if err := t.onlyCondemned(p); err != nil {
			return err
		}
		if err := t.moveCondemned(ctx, id, plan, p, to); err != nil {
			return err
		}
		return t.removeDirs(p)
	})
}

// freeHidden is a hidden name beside p that is free.
func (t *Tree) freeHidden(p Path) (id OpID, to Path, err error) {
	id, plan, err := t.numberPlan(Plan{Paths: []Path{p}}, func(id OpID, plan Plan) Plan {
		plan.Steps = []Step{{Verb: StepRename, Path: p, To: p.Dir().Join(CondemnedName(id, p.Base()))}}
		return plan
	})
	if err != nil {
		return 0, "", err
	}
	return id, plan.Steps[0].To, nil
}

func (t *Tree) keeps() bool { return t.cfg.Deferral != nil && t.cfg.Deferral.Keep > 0 }

// onlyCondemned is ENOTEMPTY when p holds anything but condemned images and
// directories of such.
func (t *Tree) onlyCondemned(p Path) error {
	entries, err := t.cfg.Files.ReadDir(p)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !IsCondemned(e.Path.Base()) || e.Type != Regular && e.Type != Directory {
			return fmt.Errorf("remove directory %s: %w", p, unix.ENOTEMPTY)
		}
		if e.Type == Directory {
			if err := t.onlyCondemned(e.Path); err != nil {
				return err
			}
		}
	}
	return nil
}

func isNotEmpty(err error) bool {
	return errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST)
}

// planRmdir unlinks the condemned images in p that nobody stands on any more, with
// the condemned ones that do, and moves the others to the same place below to.
func (g *Graph) planRmdir(p, to Path, keep bool) Plan {
	plan := Plan{Act: ActCondemn, Paths: []Path{p}}
	d := g.deletion(nil, DeleteOptions{begun: true})
	for im := range g.condemned {
		if !im.Path.Within(p) {
			continue
		}
		if at, why := g.unread(im.Path); why != "" { // its old name could not go
			plan.Refusals = []Refusal{{p, fmt.Sprintf("%s cannot be removed now, because %s cannot be read (%s) and may depend on what was deleted in it; make it readable or remove it, then run chainfs scan", p, at, why)}}
			return plan
		}
		if !keep && len(d.dependents(im)) == 0 {
			d.going[im] = true
		}
	}
	d.rideAlong()
	for _, im := range byPosition(g.condemned) { // those higher in a chain first
		s := Step{Verb: StepUnlink, Image: im.ID, Path: im.Path, Identity: im.Identity, Bytes: im.Allocated}
		switch {
		case d.going[im] && d.needed(im.Path) == "":
		case im.Path.Within(p):
			s.Verb, s.To = StepRename, im.Path.Moved(p, to)
		default:
			continue
		}
		plan.Steps, plan.Chains = append(plan.Steps, s), append(plan.Chains, im.Chain)
	}
	slices.Sort(plan.Chains)
	plan.Chains = slices.Compact(plan.Chains)
	return plan
}

func (t *Tree) moveCondemned(ctx context.Context, id OpID, plan Plan, p, to Path) error {
	if len(plan.Steps) == 0 {
		return nil
	}
	if err := t.allIdle(Plan{Steps: plan.unlinks()}); err != nil {
		return err
	}
	r := t.relocationOf(labelCondemned, &plan)
	defer r.release()
	if err := r.isPossible(); err != nil {
		return Refuse(p, "%s cannot be removed now, because what was deleted in it is still needed: %v; wait until that is settled (chainfs wait)", p, err)
	}
	if err := t.mkdirsLike(r.changes, p, to); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	run, err := t.begin(execution{id: id, plan: plan}, cancel)
	if err != nil {
		return err
	}
	defer t.running.remove(run)
	if len(r.changes) > 0 {
		if err := r.follow(ctx); err != nil {
			// Children may name the one name or the other, and without hard links one
			// of the two is gone.
			err = t.takeBack(run, r, err)
			for _, c := range r.changes {
				t.removeEmpty(c.to.Dir())
			}
			return err
		}
	}
	gone := 0
	err = t.unlinkSteps(run, true, &gone)
	if err == nil {
		err = r.finish()
	}
	if err != nil {
		// What was moved is condemned in its new place as it was in the old one.
		return t.giveUp(run, 0, err)
	}
	t.finish(run, LabelLater)
	t.laterFor(run.op)
	return nil
}

// mkdirsLike makes the directories that changes lead into.
func (t *Tree) mkdirsLike(changes []nameChange, p, to Path) error {
	var dirs []Path
	for _, c := range changes {
		for dir := c.from.Dir(); dir.Within(p); dir = dir.Dir() {
			dirs = append(dirs, dir)
			if dir == p {
				break
			}
		}
	}
	slices.Sort(dirs)
	for _, dir := range slices.Compact(dirs) { // a directory sorts before what is in it
		if err := t.cfg.Files.MkdirLike(dir.Moved(p, to), dir); err != nil {
			return err
		}
	}
	return nil
}

// removeDirs removes a directory with the empty hidden ones in it.
func (t *Tree) removeDirs(p Path) error {
	entries, err := t.cfg.Files.ReadDir(p)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Type == Directory && IsCondemned(e.Path.Base()) {
			if err := t.removeDirs(e.Path); err != nil {
				return err
			}
		}
	}
	return t.cfg.Files.Rmdir(p)
}
