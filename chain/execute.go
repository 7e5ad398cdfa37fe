package chain

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"
)

// The labels of an operation's steps, in order. The rebaser has more between
// DELETE:PREPARED and DELETE:ABSORBED.
const (
	LabelPrepared  = "DELETE:PREPARED"  // the journal has the plan
	LabelAbsorbed  = "DELETE:ABSORBED"  // every child is durable
	LabelCommitted = "DELETE:COMMITTED" // the journal says so
	LabelUnlinked  = "DELETE:UNLINKED"  // a file is gone
	LabelSynced    = "DELETE:SYNCED"    // its directory is durable
	LabelFinished  = "DELETE:FINISHED"  // the journal and the index say so
)

// Labels are the labels above, for tests that stop at each.
var Labels = []string{LabelPrepared, LabelAbsorbed, LabelCommitted, LabelUnlinked, LabelSynced, LabelFinished}

// maxReplans bounds how often a deletion looks again because children or chains
// appeared while it ran.
const maxReplans = 8

// Delete deletes files and keeps every image that stands on them whole. It
// returns nil once that is durable. When it returns an error nothing was
// deleted, except that of several paths some may have been: those are gone for
// good, and the operation in the journal names them.
//
// Cancelling ctx stops it as long as nothing was deleted.
func (t *Tree) Delete(ctx context.Context, paths []Path, opt DeleteOptions, report func(Progress)) error {
	if t.cfg.ReadOnly {
		return errReadOnly
	}
	plain, err := t.deletePlain(ctx, paths, opt)
	if plain || err != nil {
		return err
	}
	return t.withPlan(ctx, func() Plan { return t.graph.PlanDelete(paths, opt) }, func(plan Plan) error {
		return t.execute(ctx, plan, func() Plan { return t.graph.PlanDelete(paths, opt) }, report)
	})
}

// Rebase puts target onto parent, another image of its chain; an empty parent
// makes it a full.
func (t *Tree) Rebase(ctx context.Context, target, parent Path, report func(Progress)) error {
	if t.cfg.ReadOnly {
		return errReadOnly
	}
	decide := func() Plan { return t.graph.PlanRebase(target, parent) }
	return t.withPlan(ctx, decide, func(plan Plan) error {
		return t.execute(ctx, plan, decide, report)
	})
}

var errReadOnly = fmt.Errorf("the tree is open read-only: %w", fs.ErrPermission)

// Plan surveys the tree and decides, without doing anything. Images that are in
// use are refusals of the plan.
func (t *Tree) Plan(ctx context.Context, decide func(*Graph) Plan) (Plan, error) {
	if _, err := t.survey(ctx); err != nil {
		return Plan{}, err
	}
	plan := t.decide(func() Plan { return decide(t.graph) })
	err := t.allIdle(plan)
	if refused := (*RefusedError)(nil); errors.As(err, &refused) {
		plan.Refusals, plan.Steps = refused.Refusals, nil
		err = nil
	}
	return plan, err
}

// deletePlain handles the deletion of one file that is no image and that no
// image needs, without journal and, mostly, without a walk: only a raw file
// that got its first child behind the mount within the last moments could be
// mistaken for one. It reports whether it was such a file.
func (t *Tree) deletePlain(ctx context.Context, paths []Path, opt DeleteOptions) (bool, error) {
	if len(paths) != 1 || !t.lastWalk.recent() {
		return false, nil
	}
	if err := t.Changed(paths[0]); err != nil {
		return false, nil // the survey will say what is wrong
	}
	t.mu.RLock()
	plan := t.graph.PlanDelete(paths, opt)
	t.mu.RUnlock()
	if len(plan.Refusals) > 0 || len(plan.Steps) != 1 || plan.Steps[0].Image != 0 {
		return false, nil
	}
	return true, t.cfg.Files.Unlink(paths[0])
}

// withPlan claims the chains that decide's plan touches, surveys the tree,
// decides again and calls act with a plan that rests on that survey.
func (t *Tree) withPlan(ctx context.Context, decide func() Plan, act func(Plan) error) error {
	plan := t.decide(decide)
	for try := 0; try < maxReplans; try++ {
		claimed := plan.Chains
		if err := t.claims.acquire(ctx, claimed); err != nil {
			return err
		}
		_, err := t.survey(ctx)
		if err == nil {
			plan = t.decide(decide)
			err = plan.Err()
		}
		if err != nil || subset(plan.Chains, claimed) {
			if err == nil {
				err = act(plan)
			}
			t.claims.release(claimed)
			return err
		}
		t.claims.release(claimed)
	}
	return fmt.Errorf("%s: its chain keeps changing: %w", plan.Paths[0], ErrChanged)
}

func (t *Tree) decide(decide func() Plan) Plan {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return decide()
}

func subset(a, b []ImageID) bool {
	for _, id := range a {
		if !slices.Contains(b, id) {
			return false
		}
	}
	return true
}

// execute carries out a plan whose chains are claimed:
//
//	check that nobody uses what it touches
//	journal it as prepared
//	rebase each child
//	survey again; rebase children that appeared meanwhile
//	journal it as committed
//	unlink, newest first, and sync the directories
//	journal it as done, together with what changed in the index
func (t *Tree) execute(ctx context.Context, plan Plan, decide func() Plan, report func(Progress)) error {
	if len(plan.Steps) == 0 {
		return nil
	}
	if err := t.allIdle(plan); err != nil {
		return err
	}
	if !plan.hasImages() {
		return t.unlinkAll(plan.Steps)
	}
	run, err := t.begin(plan, report)
	if err != nil {
		return err
	}
	defer t.running.remove(run)
	if plan.Rebases() {
		if err := t.absorb(ctx, run, decide); err != nil {
			return t.undo(run, err)
		}
	}
	if err := t.commit(run); err != nil {
		return t.undo(run, err)
	}
	return t.complete(run)
}

// unlinkAll deletes files that are no images: they need neither journal nor sync.
func (t *Tree) unlinkAll(steps []Step) error {
	for _, s := range steps {
		if err := t.cfg.Files.Unlink(s.Path); err != nil {
			return err
		}
	}
	return nil
}

// allIdle refuses the plan while somebody uses an image that it deletes or
// rewrites, or that belongs to a backup set it deletes from.
func (t *Tree) allIdle(plan Plan) error {
	for _, s := range plan.Steps {
		if s.Image == 0 {
			continue
		}
		if err := t.errIdle(s.Path); err != nil {
			return err
		}
	}
	for _, p := range plan.Idle {
		if err := t.errIdle(p); err != nil {
			return err
		}
	}
	return nil
}

// begin journals the plan. A plan that only unlinks has nothing to absorb, so
// it is committed from the start.
func (t *Tree) begin(plan Plan, report func(Progress)) (*run, error) {
	id, err := t.cfg.Journal.NewOpID()
	if err != nil {
		return nil, fmt.Errorf("number the operation: %w", err)
	}
	op := Operation{ID: id, Act: plan.Act, State: Prepared, Plan: plan, Started: time.Now()}
	if !plan.Rebases() {
		op.State = Committed
	}
	if err := t.cfg.Journal.Record(op); err != nil {
		return nil, fmt.Errorf("journal the operation: %w", err)
	}
	t.cfg.Step(LabelPrepared)
	return t.running.add(op, report), nil
}

// absorb rebases until a fresh survey shows nothing left to rebase.
func (t *Tree) absorb(ctx context.Context, run *run, decide func() Plan) error {
	for try := 0; try < maxReplans; try++ {
		for _, s := range run.op.Plan.Steps {
			if s.Verb != StepRebase {
				continue
			}
			if err := t.rebase(ctx, run, s); err != nil {
				return err
			}
		}
		if _, err := t.survey(ctx); err != nil {
			return err
		}
		plan := t.decide(decide)
		if err := plan.Err(); err != nil {
			return err
		}
		if !plan.Rebases() {
			return nil
		}
		if !subset(plan.Chains, run.op.Plan.Chains) {
			return fmt.Errorf("%s got a child of another chain: %w", plan.Paths[0], ErrChanged)
		}
		run.op.Plan.Steps = plan.Steps
		if err := t.cfg.Journal.Record(run.op); err != nil {
			return fmt.Errorf("journal the operation: %w", err)
		}
	}
	return fmt.Errorf("%s keeps getting children: %w", run.op.Plan.Paths[0], ErrChanged)
}

// rebase carries out one rebase step and takes what it changed into the index.
func (t *Tree) rebase(ctx context.Context, run *run, s Step) error {
	// A child with two names changes its link count, and so its change time,
	// when its other name is rebased.
	if err := t.Changed(s.Path); err != nil {
		return err
	}
	job, err := t.job(run.op.ID, s)
	if err != nil {
		return err
	}
	t.cfg.Log.Info("rebasing", "op", run.op.ID, "image", s.Path, "onto", s.NewParent)
	err = t.cfg.Rebaser.Rebase(ctx, job, func(done, total int64) { run.step(s.Path, done, total) })
	if err != nil {
		return err // it says what was rebased onto what
	}
	run.stepDone(s)
	return t.Changed(s.Path)
}

func (t *Tree) job(op OpID, s Step) (RebaseJob, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	im := t.graph.At(s.Path)
	if im == nil || !im.Identity.SameContent(s.Identity) {
		return RebaseJob{}, fmt.Errorf("%s: %w", s.Path, ErrChanged)
	}
	job := RebaseJob{
		Op: op, Child: s.Path, Identity: im.Identity,
		NewParent: s.NewParent, NewName: s.NewName, NewFormat: s.NewFormat,
		Scratch: s.Path.Dir().Join(ScratchName(op, s.Path.Base())), Bytes: s.Bytes,
	}
	line, _ := t.graph.Below(im)
	job.Layers = layers(line)
	if to := t.graph.At(s.NewParent); to != nil {
		line, _ = t.graph.Below(to)
		job.NewLayers = layers(append([]*Image{to}, line...))
	}
	return job, nil
}

func layers(line []*Image) []Layer {
	var ls []Layer
	for _, im := range line {
		ls = append(ls, Layer{Path: im.Path, Format: im.Format(), Backing: im.Header.Backing})
	}
	return ls
}

// commit makes the deletion final.
func (t *Tree) commit(run *run) error {
	if run.op.State == Committed {
		return nil
	}
	t.cfg.Step(LabelAbsorbed)
	run.op.State = Committed
	// COMMIT POINT: until this record is durable recovery undoes the operation;
	// after it, it unlinks what is left to unlink.
	if err := t.cfg.Journal.Record(run.op); err != nil {
		run.op.State = Prepared
		return fmt.Errorf("journal the operation: %w", err)
	}
	t.cfg.Step(LabelCommitted)
	return nil
}

// complete unlinks what a committed operation has left and ends it. It is not
// cancelled: from here on the deletion stands.
func (t *Tree) complete(run *run) error {
	gone := 0
	var failed error
	for _, s := range run.op.Plan.Steps {
		if s.Verb != StepUnlink {
			continue
		}
		if failed = t.unlink(s); failed != nil {
			break
		}
		gone++
		run.stepDone(s)
	}
	if failed != nil {
		return t.giveUp(run, gone, failed)
	}
	return t.finish(run)
}

// unlink deletes one file durably. A file that is gone already is success: this
// runs again after a crash.
func (t *Tree) unlink(s Step) error {
	if err := t.stillThat(s); err != nil {
		if errors.Is(err, fs.ErrNotExist) && s.Image != 0 {
			return t.goneAlready(s)
		}
		return err
	}
	if err := t.cfg.Files.Unlink(s.Path); err != nil {
		return fmt.Errorf("unlink %s: %w", s.Path, err)
	}
	t.cfg.Step(LabelUnlinked)
	if s.Image != 0 {
		if err := t.cfg.Files.SyncDir(s.Path.Dir()); err != nil {
			return fmt.Errorf("make the deletion of %s durable: %w", s.Path, err)
		}
		t.cfg.Step(LabelSynced)
		t.cfg.Log.Info("deleted", "image", s.Path, "frees", s.Bytes)
	}
	t.drop(s)
	return nil
}

func (t *Tree) goneAlready(s Step) error {
	t.drop(s)
	err := t.cfg.Files.SyncDir(s.Path.Dir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil // its directory went too; what removed that is not ours to make durable
	}
	return err
}

// stillThat checks right before the unlink that the file is the one that was
// decided on and that nobody began to use it.
func (t *Tree) stillThat(s Step) error {
	e, err := t.cfg.Files.Stat(s.Path)
	if err != nil {
		return err
	}
	if s.Image == 0 {
		return nil
	}
	if !e.Identity.SameContent(s.Identity) {
		return fmt.Errorf("%s: %w", s.Path, ErrChanged)
	}
	return t.errIdle(s.Path)
}

// drop takes a deleted file out of the graph; the index follows in finish.
func (t *Tree) drop(s Step) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.edited()
	if im := t.graph.At(s.Path); im != nil {
		t.forget(im)
	}
	delete(t.graph.blind, s.Path)
}

func (t *Tree) finish(run *run) error {
	run.op.State, run.op.Ended = Done, time.Now()
	if err := t.end(run.op); err != nil {
		// What the user asked for is done and durable. The journal still says
		// committed; recovery will find nothing left to unlink and end it.
		t.cfg.Log.Error("the operation is done but could not be recorded", "op", run.op.ID, "err", err)
	}
	t.cfg.Step(LabelFinished)
	return nil
}

// end stores an ended operation and all that changed in the index.
func (t *Tree) end(op Operation) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dropBases()
	put, remove := t.takeUnsaved()
	if err := t.cfg.Journal.Finish(op, put, remove); err != nil {
		return fmt.Errorf("journal the end of operation %s: %w", op.ID, err)
	}
	t.saved()
	return nil
}

// undo ends an operation that deleted nothing. Children that have absorbed
// already stay as they are: they read the same.
func (t *Tree) undo(run *run, why error) error {
	run.op.State, run.op.Ended, run.op.Error = Undone, time.Now(), why.Error()
	err := t.sweep(run.op)
	if err == nil {
		err = t.end(run.op)
	}
	if err != nil {
		t.cfg.Log.Error("the operation was undone but that could not be recorded; the next start does it", "op", run.op.ID, "err", err)
	}
	if !interrupted(why) {
		t.cfg.Log.Warn("operation undone", "op", run.op.ID, "err", why)
	}
	return why
}

// giveUp ends a committed operation that could not delete all it had to. The
// caller gets the error, so nothing was acknowledged that is not done.
func (t *Tree) giveUp(run *run, gone int, why error) error {
	run.op.State, run.op.Ended = Failed, time.Now()
	if gone == 0 {
		run.op.State = Undone
	}
	run.op.Error = why.Error()
	if err := t.end(run.op); err != nil {
		t.cfg.Log.Error("the operation failed and that could not be recorded", "op", run.op.ID, "err", err)
	}
	t.cfg.Log.Warn("operation failed", "op", run.op.ID, "deleted", gone, "err", why)
	return why
}

// sweep removes the scratch files of an operation.
func (t *Tree) sweep(op Operation) error {
	for _, s := range op.Plan.Steps {
		if s.Verb != StepRebase {
			continue
		}
		scratch := s.Path.Dir().Join(ScratchName(op.ID, s.Path.Base()))
		if err := t.cfg.Files.Unlink(scratch); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the scratch file %s: %w", scratch, err)
		}
	}
	return nil
}
