package chain

import (
	"context"
	"slices"
	"time"
)

// recoverNames ends an operation that was changing names when it was cut off:
//
//   - a deletion of which no old name is gone was not acknowledged. Its hidden
//     names are taken away by endHalfway.
//   - one of which an old name is gone goes on to its end, as does what was being
//     brought back.
//   - a deletion whose caller got an error, and that could not be taken back then, is
//     taken back now.
//
// Errors are logged and journalled; they must not keep the mount from starting. At
// every instant in between each chain is whole, but on file systems without hard
// links: there an operation that cannot be ended stays in the journal, because nothing
// else tells what the children name.
func (t *Tree) recoverNames(ctx context.Context, run *run) error {
	op := &run.op
	r := t.relocationOf(op.Act.label(), &op.Plan)
	defer r.release()
	begun, err := t.namesChanged(*op)
	switch {
	case err != nil:
	case op.Error != "" && op.Act == ActCondemn:
		op.State, err = Undone, r.takeBack()
	case !begun:
		op.State, op.Error = Undone, "chainfs was stopped while it ran"
		if r.strands() {
			err = r.takeBack()
		}
	default:
		op.State, err = Done, t.changeNames(ctx, run, r)
	}
	if err != nil {
		t.cfg.Log.Error("an operation that was interrupted could not be completed", "op", op.ID, "err", err)
		if op.State == Prepared || r.strands() {
			return nil // the next start tries again
		}
		op.State, op.Error = Failed, err.Error()
	}
	op.Ended = time.Now()
	return t.end(*op)
}

// label is what the steps of a change of names are called.
func (a Act) label() string {
	if a == ActUndelete {
		return labelUndeleted
	}
	return labelCondemned
}

// strands reports whether an image names one that has another name by now.
func (r *relocation) strands() bool {
	return slices.ContainsFunc(r.changes, func(c nameChange) bool { return r.isMissed(c.from) || r.isMissed(c.to) })
}

// isMissed reports whether an image names p, at which there is none.
func (t *Tree) isMissed(p Path) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.graph.missing(p)) > 0
}

// namesChanged reports whether an operation came so far that it is completed.
func (t *Tree) namesChanged(op Operation) (bool, error) {
	for _, s := range op.Plan.renames() {
		old, err := t.isNamed(s.Path, s.Identity.Inode)
		if err != nil {
			return false, err
		}
		now, err := t.isNamed(s.To, s.Identity.Inode)
		if err != nil {
			return false, err
		}
		if now && (!old || op.Act == ActUndelete) {
			return true, nil
		}
	}
	for _, s := range op.Plan.unlinks() {
		if is, err := t.isNamed(s.Path, s.Identity.Inode); err != nil || !is && s.Image != 0 {
			return err == nil, err
		}
	}
	return false, nil
}

// changeNames runs an operation's changes of names again, from where they are, and
// its deletions.
func (t *Tree) changeNames(ctx context.Context, run *run, r *relocation) error {
	if len(r.changes) > 0 {
		if err := r.follow(ctx); err != nil {
			return err
		}
	}
	gone := 0
	if err := t.unlinkSteps(run, true, &gone); err != nil {
		return err
	}
	if err := r.finish(); err != nil {
		return err
	}
	return t.unlinkSteps(run, false, &gone)
}

// endHalfway takes the hidden names of images away that have their old ones, too:
// a deletion was cut off before it was acknowledged, or the end of an undelete. The
// names tell that without the journal. So does the second hidden name of an image
// whose directory was being removed.
func (t *Tree) endHalfway(ctx context.Context) error {
	var changes []nameChange
	t.View(func(g *Graph) { changes = append(g.halfway(), g.doubles()...) })
	for _, c := range changes {
		t.cfg.Log.Warn("a deletion was cut off and is taken back", "image", c.to, "hidden", c.from)
		if err := t.changeBack(ctx, c, nil); err != nil {
			// Every chain is whole as it is; check finds it, and the next start tries again.
			t.cfg.Log.Error("a deletion that was cut off could not be taken back", "image", c.to, "err", err)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.save()
}
