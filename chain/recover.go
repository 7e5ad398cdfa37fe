package chain

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"
)

// recover ends the operations that were running when the journal was last
// written, after a survey of the tree:
//
//   - prepared: nothing was deleted and nothing acknowledged. It is undone: its
//     scratch files go. Children that had absorbed stay on their new parents.
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
	return t.sweepLeftovers(ctx)
}

func (t *Tree) recoverOne(ctx context.Context, op Operation) error {
	run := t.running.add(op, nil)
	defer t.running.remove(run)
	t.cfg.Log.Warn("an operation was interrupted", "op", op.ID, "act", op.Act, "state", op.State)
	if op.State == Prepared {
		if err := t.sweep(op); err != nil {
			return err
		}
		run.op.State, run.op.Ended, run.op.Error = Undone, time.Now(), "chainfs was stopped while it ran"
		if t.rebased(op) {
			run.op.State, run.op.Error = Done, ""
		}
		return t.end(run.op)
	}
	if err := t.recheck(ctx, op); err != nil {
		t.giveUp(run, 0, err)
		return nil
	}
	// An error was logged and journalled; it must not keep the mount from starting.
	_ = t.complete(run)
	return nil
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

// recheck decides again whether what a committed operation has left to unlink
// may be unlinked: a child may have appeared while chainfs was not running.
func (t *Tree) recheck(ctx context.Context, op Operation) error {
	if _, err := t.survey(ctx); err != nil {
		return err
	}
	var left []Path
	for _, s := range op.Plan.Steps {
		_, err := t.cfg.Files.Stat(s.Path)
		switch {
		case s.Verb != StepUnlink || errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return err
		default:
			left = append(left, s.Path)
		}
	}
	plan := t.decide(func() Plan { return t.graph.PlanDelete(left, DeleteOptions{}) })
	if err := plan.Err(); err != nil {
		return err
	}
	if plan.Rebases() {
		return fmt.Errorf("%s got a child while chainfs was not running: %w", plan.Paths[0], ErrChanged)
	}
	return nil
}

func (t *Tree) sweepLeftovers(ctx context.Context) error {
	report, err := t.survey(ctx)
	if err != nil {
		return err
	}
	for _, p := range report.Leftovers {
		var named bool
		t.View(func(g *Graph) { named = len(g.Children(p)) > 0 })
		if named {
			continue // not ours to judge: check names it
		}
		t.cfg.Log.Warn("removing a stale scratch file", "path", p)
		if err := t.cfg.Files.Unlink(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the stale scratch file %s: %w", p, err)
		}
	}
	return nil
}
