package chain

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// recover ends the operations that were running when the journal was last
// written, after a survey of the tree. Those that change names are in
// recovernames.go; of the others:
//
//   - prepared: nothing was deleted and nothing acknowledged. It is undone: its
//     scratch files go, and what a child had taken in and not made use of is given
//     back. Children that had absorbed stay on their new parents.
//   - committed: every child is durable on its new parent. What is left is
//     unlinked, after the same checks as the first time.
//
// Scratch files without an operation are what a lost store leaves; they go too.
func (t *Tree) recover(ctx context.Context) error {
	ops, err := t.cfg.Journal.Operations(true)
	if err != nil {
		return fmt.Errorf("read the journal: %w", err)
	}
	for _, op := range ops {
		if err := t.recoverOne(ctx, op); err != nil {
			return fmt.Errorf("recover operation %s: %w", op.ID, err)
		}
	}
	if err := t.endHalfway(ctx); err != nil {
		return err
	}
	return t.sweepLeftovers()
}

func (t *Tree) recoverOne(ctx context.Context, op Operation) error {
	run := t.running.add(op, nil, nil)
	defer t.running.remove(run)
	t.cfg.Log.Warn("an operation was interrupted", "op", op.ID, "act", op.Act, "state", op.State)
	if op.Act == ActCondemn || op.Act == ActUndelete {
		return t.recoverNames(ctx, run)
	}
	if op.State == Prepared {
		if err := t.sweep(op); err != nil {
			t.cfg.Log.Error("a scratch file could not be removed", "op", op.ID, "err", err) // check finds it
		}
		t.giveBack(ctx, op)
		run.op.State, run.op.Ended, run.op.Error = Undone, time.Now(), "chainfs was stopped while it ran"
		if t.rebased(op) {
			run.op.State, run.op.Error = Done, ""
		}
		return t.end(run.op)
	}
	// Errors of what follows are logged and journalled; they must not keep the
	// mount from starting.
	_ = t.goOn(ctx, run)
	return nil
}

// goOn completes a committed operation.
func (t *Tree) goOn(ctx context.Context, run *run) error {
	left, err := t.recheck(ctx, run.op)
	gone := len(run.op.Plan.unlinks()) - len(left)
	if err != nil {
		return t.stopShort(run, gone, nil, err)
	}
	return t.complete(ctx, run, left, gone)
}

// giveBack frees space that interrupted rebases took. What is not given back is
// found by check --images.
func (t *Tree) giveBack(ctx context.Context, op Operation) {
	for _, s := range op.Plan.Steps {
		if s.Verb != StepRebase {
			continue
		}
		err := t.cfg.Rebaser.Recover(ctx, s.Path, s.Identity)
		if err == nil {
			err = t.Changed(s.Path)
		}
		if err != nil && !isGone(err) {
			t.cfg.Log.Warn("space that an interrupted rebase took could not be given back", "image", s.Path, "err", err)
		}
	}
}

// rebased reports whether a rebase had replaced its image before it was interrupted.
func (t *Tree) rebased(op Operation) bool {
	if op.Act != ActRebase {
		return false
	}
	s := op.Plan.Steps[0]
	plan := t.decide(func() Plan { return t.graph.PlanRebase(s.Path, s.NewParent) })
	return len(plan.Refusals)+len(plan.Steps) == 0
}

// recheck finds what a committed operation has left to unlink and decides again
// whether that may be: a child may have appeared while chainfs was not running.
// A file that is no image and not the one that was there is left alone.
func (t *Tree) recheck(ctx context.Context, op Operation) (left []Step, err error) {
	if _, err := t.survey(ctx); err != nil {
		return nil, err
	}
	var paths []Path
	for _, s := range op.Plan.unlinks() {
		e, err := t.cfg.Files.Stat(s.Path)
		switch {
		case isGone(err) && op.Plan.mergeOf(s.Path) != nil:
			left = append(left, s) // deleted, and perhaps not merged in full
		case isGone(err) || err == nil && s.Image == 0 && !e.Identity.SameContent(s.Identity):
		case err != nil:
			return left, err
		default:
			left, paths = append(left, s), append(paths, s.Path)
		}
	}
	opt := DeleteOptions{}
	if op.Act == ActReclaim {
		opt.begun, opt.only = true, true
	}
	plan := t.decide(func() Plan { return t.graph.PlanDelete(paths, opt) })
	if err := plan.Err(); err != nil {
		return left, err
	}
	if !op.Plan.merges(plan) {
		return left, fmt.Errorf("%s got a child while chainfs was not running: %w", plan.Paths[0], ErrChanged)
	}
	return left, nil
}

// merges reports whether the rebases of a newer plan are all merges of this one.
func (p *Plan) merges(newer Plan) bool {
	for _, s := range newer.Steps {
		if s.Verb != StepRebase {
			continue
		}
		if !slices.ContainsFunc(p.Steps, func(m Step) bool { return m.Way == MergeDown && m.Path == s.Path }) {
			return false
		}
	}
	return true
}

// sweepLeftovers removes what belongs to no operation: stale scratch files, and
// hidden directories in which nothing is left.
func (t *Tree) sweepLeftovers() error {
	slices.Sort(t.opening.hidden)
	for _, dir := range slices.Backward(t.opening.hidden) { // what is in one sorts behind it
		t.removeEmpty(dir)
	}
	for _, p := range t.opening.Leftovers {
		var named bool
		t.View(func(g *Graph) { named = len(g.Children(p)) > 0 })
		if named {
			continue // not ours to judge: check names it
		}
		t.cfg.Log.Warn("removing a stale scratch file", "path", p)
		if err := t.cfg.Files.Unlink(p); err != nil && !isGone(err) {
			t.cfg.Log.Error("a stale scratch file could not be removed", "path", p, "err", err) // check finds it
		}
	}
	return nil
}
