package chain

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// mergeJob is the rebase step s done the other way: the one image that goes away
// takes over what the child has. nil where the chain does not allow that:
//
//   - exactly one image goes away between the child and its new parent, it has no
//     other child, and nothing else needs it
//   - one backing name of the new parent is right in the directories of both
//
// What the files say is asked by the rebaser.
func (t *Tree) mergeJob(op OpID, plan *Plan, s Step) *MergeJob {
	t.mu.RLock()
	defer t.mu.RUnlock()
	child := t.graph.At(s.Path)
	if child == nil || plan.Act != ActDelete && plan.Act != ActReclaim {
		return nil
	}
	parent := t.graph.Parent(child)
	if parent == nil || !plan.deletes(parent.Path) || len(t.graph.Children(parent.Path)) != 1 || len(t.graph.needers[parent.Path]) > 0 {
		return nil
	}
	below := t.graph.Parent(parent)
	if below == nil || below.Path != s.NewParent {
		return nil
	}
	name, ok := commonName(child.Path.Dir(), parent.Path.Dir(), below.Path)
	if !ok {
		return nil
	}
	return &MergeJob{
		Op: op, Child: child.Path, Before: s.Identity, Parent: parent.Path, Identity: parent.Identity,
		NewName: name, Format: below.Format(), Scratch: scratchOf(op, child.Path),
	}
}

func scratchOf(op OpID, p Path) Path { return p.Dir().Join(ScratchName(op, p.Base())) }

// commonName is a backing name that leads to target from two directories: up to
// what all three have in common, if that is as far from both, and down again.
func commonName(a, b, target Path) (Path, bool) {
	x, y, to := split(a), split(b), split(target)
	if len(x) != len(y) {
		return "", false
	}
	n := 0
	for n < len(x) && n < len(to)-1 && x[n] == y[n] && x[n] == to[n] {
		n++
	}
	name := strings.Repeat("../", len(x)-n) + strings.Join(to[n:], "/")
	if n == len(x) {
		name = "./" + name // a colon in it is no protocol then
	}
	return Path(name), true
}

// merge deletes the image of step s by a merge downwards. It runs again after a
// crash.
func (t *Tree) merge(ctx context.Context, run *run, m, s Step) (gone bool, err error) {
	if e, err := t.cfg.Files.Stat(m.Path); isGone(err) || err == nil && t.isMoot(run.op, m, s, e) {
		return t.mergeNothing(run.op, m, s)
	}
	job, err := t.plannedMerge(run.op, m, s)
	if err != nil {
		return false, err
	}
	if err := t.mayUse(job); err != nil {
		return false, err
	}
	t.cfg.Log.Info("merging downwards", "op", run.op.ID, "image", m.Path, "into", s.Path)
	err = t.cfg.Rebaser.MergeDown(ctx, job, func(done, total int64) { run.step(m.Path, done, total) })
	if err != nil && !errors.Is(err, ErrUnfinished) {
		return false, err
	}
	t.drop(s)
	t.removeEmpty(s.Path.Dir())
	if changed := t.Changed(m.Path); changed != nil && !isGone(changed) {
		t.cfg.Log.Warn("the merged image could not be read", "image", m.Path, "err", changed) // a survey will
	}
	if err == nil {
		run.stepDone(m)
		t.cfg.Log.Info("deleted", "image", s.Path, "frees", s.Bytes)
	}
	return true, err
}

// mergeBegan reports whether e is the image of step s as a merge that was cut off
// left it: with its hidden name, and its header rewritten.
func (t *Tree) mergeBegan(op Operation, s Step, e Entry) bool {
	m := op.Plan.mergeOf(s.Path)
	if m == nil || e.Identity.Inode != s.Identity.Inode {
		return false
	}
	hidden, err := t.cfg.Files.Stat(scratchOf(op.ID, m.Path))
	return err == nil && hidden.Identity.Inode == e.Identity.Inode
}

// isMoot reports whether another file has the child's name, and nothing is left of
// the image that was to take it: a directory was moved, say, and made anew.
func (t *Tree) isMoot(op Operation, m, s Step, child Entry) bool {
	if child.Identity.Inode == s.Identity.Inode {
		return false
	}
	for _, p := range []Path{s.Path, scratchOf(op.ID, m.Path)} {
		if _, err := t.cfg.Files.Stat(p); !isGone(err) {
			return false
		}
	}
	return true
}

// mergeNothing deletes an image whose child was deleted before it was merged. By its
// hidden name others may stand on it by now, which keep it; once they are gone, the
// next mount removes it.
func (t *Tree) mergeNothing(op Operation, m, s Step) (gone bool, err error) {
	for _, p := range []Path{s.Path, scratchOf(op.ID, m.Path)} {
		if err := t.stillUnneeded(op.Plan, p); err != nil {
			if p != s.Path {
				t.cfg.Log.Warn("what was to be merged downwards is kept", "op", op.ID, "path", p, "why", err)
				break
			}
			return false, err
		}
		if err := t.cfg.Files.Unlink(p); err != nil && !isGone(err) {
			return false, fmt.Errorf("unlink %s: %w", p, err)
		}
		if err := t.cfg.Files.SyncDir(p.Dir()); err != nil && !isGone(err) {
			return true, fmt.Errorf("%s is deleted, but that may not be durable: %w", p, err)
		}
	}
	t.drop(s)
	t.removeEmpty(s.Path.Dir())
	return true, nil
}

// plannedMerge is the job as the journal has it: while it is under way the graph
// shows what is in between.
func (t *Tree) plannedMerge(op Operation, m, s Step) (MergeJob, error) {
	name, ok := commonName(m.Path.Dir(), s.Path.Dir(), m.NewParent)
	if !ok {
		return MergeJob{}, fmt.Errorf("no backing name of %s is right beside both %s and %s", m.NewParent, m.Path, s.Path)
	}
	return MergeJob{
		Op: op.ID, Child: m.Path, Before: m.Identity, Parent: s.Path, Identity: s.Identity,
		NewName: name, Format: m.NewFormat, Scratch: scratchOf(op.ID, m.Path),
		Unneeded: func(ctx context.Context, name Path) error {
			if _, err := t.survey(ctx); err != nil {
				return err
			}
			return t.onlyChild(name, m.Path)
		},
	}, nil
}

// mayUse: the hidden name is free, or this merge's own of an earlier run.
func (t *Tree) mayUse(job MergeJob) error {
	e, err := t.cfg.Files.Stat(job.Scratch)
	if err != nil || e.Identity.Inode == job.Identity.Inode {
		return nil // link says what is wrong, if anything
	}
	return fmt.Errorf("%s is in the way; try again: %w", job.Scratch, ErrChanged)
}

// begunMerges adds to open the images of merges whose hidden name is there: a run
// that was cut off had begun them, and the one that stopped now did not undo them.
func (t *Tree) begunMerges(op Operation, open []Path) []Path {
	for _, m := range op.Plan.Steps {
		if m.Way != MergeDown || slices.Contains(open, m.Merges) {
			continue
		}
		if _, err := t.cfg.Files.Stat(scratchOf(op.ID, m.Path)); !isGone(err) {
			open = append(open, m.Merges)
		}
	}
	return open
}

// onlyChild: nothing needs the file at p but the image at child.
func (t *Tree) onlyChild(p, child Path) error {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, im := range append(t.graph.Children(p), sorted(t.graph.needers[p])...) {
		if im.Path != child {
			return fmt.Errorf("%s appeared, which needs %s: %w", im.Path, p, ErrChanged)
		}
	}
	if blind := t.graph.blindness(p); blind != "" {
		return Refuse(p, "%s", blind)
	}
	return nil
}
