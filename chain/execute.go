package chain

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"golang.org/x/sys/unix"
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

// Labels are all labels of this package, for tests that stop at each.
var Labels = slices.Concat(
	[]string{LabelPrepared, LabelAbsorbed, LabelCommitted, LabelUnlinked, LabelSynced, LabelFinished},
	[]string{LabelCondemn, labelCondemned + labelLinked, labelCondemned + labelNamed, labelCondemned + labelUnlinked, labelCondemned + labelSynced, LabelLater},
	[]string{LabelUndelete, labelUndeleted + labelLinked, labelUndeleted + labelNamed, labelUndeleted + labelUnlinked, labelUndeleted + labelSynced},
)

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
	if plain, err := t.deletePlain(paths, opt); plain || err != nil {
		return err
	}
	decide := func() Plan { return t.graph.PlanDelete(paths, opt) }
	return t.withPlan(ctx, claimant{}, decide, func(plan Plan) error {
		if err := t.meant(plan, opt); err != nil {
			return err
		}
		opt.begun = true
		x := execution{plan: plan, decide: decide, report: report}
		if err := t.ready(&x); err != nil {
			return err
		}
		later, err := t.isForLater(ctx, &x, opt)
		if err != nil {
			return err
		}
		if later {
			err := t.condemn(ctx, x)
			if !errors.Is(err, ErrNotInPlace) {
				return err
			}
			t.cfg.Log.Info("a deletion cannot be left for later and is done now", "path", plan.Paths[0], "why", err)
		}
		return t.execute(ctx, x)
	})
}

// meant checks that the survey found the file that the caller saw.
func (t *Tree) meant(plan Plan, opt DeleteOptions) error {
	if opt.Inode == 0 {
		return nil
	}
	e, err := t.cfg.Files.Stat(plan.Paths[0])
	if err == nil && !opt.means(e) {
		err = fmt.Errorf("%s: %w", plan.Paths[0], ErrChanged)
	}
	return err
}

// Rebase puts target onto parent, another image of its chain; an empty parent
// makes it a full.
func (t *Tree) Rebase(ctx context.Context, target, parent Path, report func(Progress)) error {
	if t.cfg.ReadOnly {
		return errReadOnly
	}
	decide := func() Plan { return t.graph.PlanRebase(target, parent) }
	return t.withPlan(ctx, claimant{}, decide, func(plan Plan) error {
		x := execution{plan: plan, decide: decide, report: report}
		if err := t.ready(&x); err != nil {
			return err
		}
		return t.execute(ctx, x)
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
	_ = t.measure(ctx, &plan) // the bound stays
	err := t.allIdle(plan)
	if refused := (*RefusedError)(nil); errors.As(err, &refused) {
		plan.Refusals, plan.Steps = refused.Refusals, nil
		err = nil
	}
	return plan, err
}

// deletePlain handles the deletion of one file that is no image, that no image
// needs and that cannot be the base of one, without journal and, as long as the
// last survey is recent, without another. It reports whether it was such a file.
func (t *Tree) deletePlain(paths []Path, opt DeleteOptions) (bool, error) {
	if len(paths) != 1 || !t.lastWalk.recent() {
		return false, nil
	}
	e, err := t.cfg.Files.Stat(paths[0])
	if err != nil || couldBeBase(e) || !opt.means(e) || t.Changed(paths[0]) != nil {
		return false, nil // the survey will say what is wrong
	}
	plan := t.decide(func() Plan { return t.graph.PlanDelete(paths, opt) })
	if len(plan.Refusals) > 0 || len(plan.Steps) != 1 || plan.Steps[0].Image != 0 || len(plan.Idle) > 0 {
		return false, nil
	}
	return true, t.cfg.Files.Unlink(paths[0])
}

// means reports whether e is the file that the caller saw.
func (o DeleteOptions) means(e Entry) bool { return o.Inode == 0 || o.Inode == e.Identity.Inode }

// withPlan claims the chains that decide's plan touches, surveys the tree,
// decides again and calls act with a plan that rests on that survey.
func (t *Tree) withPlan(ctx context.Context, who claimant, decide func() Plan, act func(Plan) error) error {
	plan := t.decide(decide)
	for try := 0; try < maxReplans; try++ {
		claimed := plan.Chains
		if err := t.claims.acquire(ctx, who, claimed); err != nil {
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

// execution is a plan to be carried out.
type execution struct {
	plan   Plan
	decide func() Plan // what makes the plan, from the graph as it is
	report func(Progress)

	measured bool
	id       OpID // 0 for a new one
	// background: it is the reclaimer's. It can be stopped after its commit, too;
	// what it has not done then is done later.
	background bool
}

// ready completes a plan whose chains are claimed. It is refused while somebody
// uses what it touches.
func (t *Tree) ready(x *execution) error {
	if err := t.allIdle(x.plan); err != nil {
		return err
	}
	return t.identify(x.plan.Steps)
}

// execute carries out a plan that is ready:
//
//	journal it as prepared
//	rebase each child
//	survey again; rebase children that appeared meanwhile
//	journal it as committed
//	unlink, newest first, and sync the directories
//	journal it as done, together with what changed in the index
func (t *Tree) execute(ctx context.Context, x execution) error {
	switch {
	case len(x.plan.Steps) == 0:
		return nil
	case !x.plan.hasImages():
		return t.unlinkAll(x.plan.Steps)
	}
	_ = t.measureOnce(ctx, &x) // the rebase will say what is wrong
	if err := t.allUnread(x.plan); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	run, err := t.begin(x, cancel)
	if err != nil {
		return err
	}
	defer t.running.remove(run)
	if x.background {
		run.graceTime = t.cfg.Deferral.Grace
		// A writer is let through while nothing runs that works on its file (see
		// checkWrite). From here on that does: who came before is found now.
		if err := t.allIdle(x.plan); err != nil {
			return t.undo(run, err)
		}
	}
	if x.plan.Rebases() {
		if err := t.absorb(ctx, run, x.decide); err != nil {
			return t.undo(run, err)
		}
	}
	if err := t.commit(run); err != nil {
		return t.undo(run, err)
	}
	if !x.background {
		ctx = context.WithoutCancel(ctx) // the deletion stands
	}
	return t.complete(ctx, run, run.op.Plan.unlinks(), 0)
}

// identify notes which file each step means that deletes no image: the graph
// does not know them. One that could be a raw disk is refused while something
// that might stand on it cannot be read.
func (t *Tree) identify(steps []Step) error {
	for i := range steps {
		s := &steps[i]
		if s.Image != 0 {
			continue
		}
		e, err := t.cfg.Files.Stat(s.Path)
		if err != nil {
			return fmt.Errorf("%s: %w", s.Path, err)
		}
		s.Identity = e.Identity
		var blind string
		t.View(func(g *Graph) { blind = g.blindness(s.Path) })
		if blind != "" && couldBeBase(e) {
			return Refuse(s.Path, "%s", blind)
		}
	}
	return nil
}

// unlinkAll deletes files that are no images: they need neither journal nor sync.
func (t *Tree) unlinkAll(steps []Step) error {
	plan := Plan{Steps: steps}
	for _, s := range steps {
		if err := t.stillThat(Operation{Plan: plan}, s); err != nil {
			return err
		}
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

// allUnread refuses the plan while somebody reads what it changes in place: who reads
// a file that is replaced by a copy keeps the old one. What a user deletes he may
// delete while it is read; what is left for later waits.
func (t *Tree) allUnread(plan Plan) error {
	for _, s := range plan.Steps {
		changed := s.Verb == StepRebase && s.Way != ByCopy
		if s.Image == 0 || !changed && plan.Act != ActReclaim {
			continue
		}
		if err := t.errUnread(s.Path); err != nil {
			return err
		}
	}
	return nil
}

// begin journals the plan. cancel stops it.
func (t *Tree) begin(x execution, cancel context.CancelFunc) (*run, error) {
	if err := t.recordOthers(); err != nil {
		return nil, err
	}
	if x.id == 0 {
		var err error
		if x.id, err = t.newOp(); err != nil {
			return nil, err
		}
	}
	op := Operation{ID: x.id, Act: x.plan.Act, State: Prepared, Plan: x.plan, Started: time.Now()}
	if d := t.cfg.Deferral; d != nil && d.Keep > 0 && op.Act == ActCondemn {
		op.KeptUntil = op.Started.Add(d.Keep)
	}
	if err := t.cfg.Journal.Record(op); err != nil {
		return nil, fmt.Errorf("journal the operation: %w", err)
	}
	t.cfg.Step(begun[op.Act])
	return t.running.add(op, x.report, cancel), nil
}

// begun is the label of the moment at which the journal has the plan.
var begun = map[Act]string{
	ActDelete: LabelPrepared, ActRebase: LabelPrepared, ActReclaim: LabelPrepared,
	ActCondemn: LabelCondemn, ActUndelete: LabelUndelete,
}

func (t *Tree) newOp() (OpID, error) {
	id, err := t.cfg.Journal.NewOpID()
	if err != nil {
		return 0, fmt.Errorf("number the operation: %w", err)
	}
	return id, nil
}

// absorb rebases until a fresh survey shows nothing left to rebase.
func (t *Tree) absorb(ctx context.Context, run *run, decide func() Plan) error {
	for try := 0; try < maxReplans; try++ {
		for _, s := range run.op.Plan.Steps {
			if s.Verb != StepRebase || s.Way == MergeDown {
				continue
			}
			if err := t.rebase(ctx, run, s); err != nil {
				return err
			}
		}
		if err := run.grace(ctx); err != nil {
			return err
		}
		if _, err := t.survey(ctx); err != nil {
			return err
		}
		plan := t.decide(decide)
		if err := plan.Err(); err != nil {
			return err
		}
		if !plan.Rebases() {
			run.op.Plan.dropMerges() // of a child that is gone
			return nil
		}
		if !subset(plan.Chains, run.op.Plan.Chains) {
			return fmt.Errorf("%s got a child of another chain: %w", plan.Paths[0], ErrChanged)
		}
		if err := t.identify(plan.Steps); err != nil {
			return err
		}
		_ = t.measure(ctx, &plan) // the rebase will say what is wrong
		run.replan(plan.Steps)
		if err := t.allIdle(plan); err != nil {
			return err
		}
		if plan.onlyMerges() {
			return nil // they come with the deletion
		}
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
	if err := t.scratchFree(job.Scratch); err != nil {
		return err
	}
	t.cfg.Log.Info("rebasing", "op", run.op.ID, "image", s.Path, "onto", s.NewParent)
	err = t.cfg.Rebaser.Rebase(ctx, job, func(done, total int64) { run.step(s.Path, done, total) })
	if err != nil {
		// It reads as before, and its file may have changed all the same.
		if changed := t.Changed(s.Path); changed != nil {
			t.cfg.Log.Warn("an image could not be read again", "image", s.Path, "err", changed) // a survey will
		}
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
		Scratch: scratchOf(op, s.Path), Bytes: s.Bytes,
		Unread: func() error { return t.errUnread(s.Path) },
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
	t.cfg.Step(LabelAbsorbed)
	run.op.State = Committed
	// COMMIT POINT: until this record is durable recovery undoes the operation;
	// after it, it unlinks what is left to unlink.
	if err := t.cfg.Journal.Record(run.op); err != nil {
		run.op.State = Prepared
		return fmt.Errorf("journal the operation: %w", err)
	}
	run.committed()
	t.cfg.Step(LabelCommitted)
	return nil
}

// complete unlinks the files of steps and ends the operation, of which gone
// files were deleted before.
func (t *Tree) complete(ctx context.Context, run *run, steps []Step, gone int) error {
	var unfinished error
	var open []Path // what is not merged in full
	for i, s := range steps {
		if i > 0 && !t.lastWalk.recent() {
			if _, err := t.survey(ctx); err != nil {
				return t.stopShort(run, gone, open, err)
			}
		}
		deleted, err := t.unlink(ctx, run, s)
		if deleted {
			gone++
		}
		if errors.Is(err, ErrUnfinished) {
			unfinished, open = err, append(open, s.Path)
			continue
		}
		if err != nil {
			return t.stopShort(run, gone, open, err)
		}
		run.stepDone(s)
	}
	if unfinished != nil {
		// The files are deleted, durably, and every chain is whole. The journal
		// still says committed, so that the reclaimer or the next start completes
		// the rest.
		t.cfg.Log.Warn("a merge is not finished", "op", run.op.ID, "err", unfinished)
		t.leaveUnfinished(run.op, unfinished)
		return nil
	}
	t.finish(run, LabelFinished)
	return nil
}

// unlink deletes one file, an image durably, and reports whether it is gone.
// One that was gone already is success: this runs again after a crash.
func (t *Tree) unlink(ctx context.Context, run *run, s Step) (gone bool, err error) {
	merge := run.op.Plan.mergeOf(s.Path)
	err = t.stillThat(run.op, s)
	if isGone(err) && merge == nil {
		return true, t.goneAlready(s)
	}
	if err != nil && !isGone(err) {
		return false, err
	}
	if merge != nil {
		return t.merge(ctx, run, *merge, s)
	}
	if err := t.cfg.Files.Unlink(s.Path); err != nil {
		return false, fmt.Errorf("unlink %s: %w", s.Path, err)
	}
	t.cfg.Step(LabelUnlinked)
	t.drop(s)
	if s.Image == 0 {
		return true, nil
	}
	if err := t.cfg.Files.SyncDir(s.Path.Dir()); err != nil {
		return true, fmt.Errorf("%s is deleted, but that may not be durable: %w", s.Path, err)
	}
	t.cfg.Step(LabelSynced)
	t.cfg.Log.Info("deleted", "image", s.Path, "frees", s.Bytes)
	t.removeEmpty(s.Path.Dir())
	return true, nil
}

// isGone reports whether an error means that there is no such file.
func isGone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR)
}

func (t *Tree) goneAlready(s Step) error {
	t.drop(s)
	if s.Image == 0 {
		return nil
	}
	err := t.cfg.Files.SyncDir(s.Path.Dir())
	if isGone(err) {
		return nil // its directory went too; what removed that is not ours to make durable
	}
	t.removeEmpty(s.Path.Dir())
	return err
}

// stillThat checks right before the unlink that the file is the one that was
// decided on, that nobody began to use it, and that no image appeared that
// needs it and stays.
func (t *Tree) stillThat(op Operation, s Step) error {
	e, err := t.cfg.Files.Stat(s.Path)
	if err != nil {
		return err
	}
	if !e.Identity.SameContent(s.Identity) && !t.mergeBegan(op, s, e) {
		return fmt.Errorf("%s: %w", s.Path, ErrChanged)
	}
	if err := t.stillUnneeded(op.Plan, s.Path); err != nil || s.Image == 0 {
		return err
	}
	return t.errIdle(s.Path)
}

func (t *Tree) stillUnneeded(plan Plan, p Path) error {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, im := range append(t.graph.Children(p), t.graph.needers[p]...) {
		if m := plan.mergeOf(p); !plan.deletes(im.Path) && (m == nil || m.Path != im.Path) {
			return fmt.Errorf("%s appeared, which needs %s: %w", im.Path, p, ErrChanged)
		}
	}
	return nil
}

// drop takes a deleted file out of the graph; the index follows in finish.
func (t *Tree) drop(s Step) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if im := t.graph.At(s.Path); im != nil {
		t.touch(im.Chain)
		t.forget(im)
	}
	delete(t.graph.blind, s.Path)
}

// finish ends an operation of which all is done and durable.
func (t *Tree) finish(run *run, label string) {
	run.op.State, run.op.Ended = Done, time.Now()
	if err := t.end(run.op); err != nil {
		// The journal still says that it runs; recovery will find nothing left to
		// do and end it.
		t.cfg.Log.Error("the operation is done but could not be recorded", "op", run.op.ID, "err", err)
	}
	t.cfg.Step(label)
}

// end stores an ended operation and all that changed in the index.
func (t *Tree) end(op Operation) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dropBases()
	put, remove := t.takeUnsaved()
	if err := t.cfg.Journal.Finish(op, put, remove); err != nil {
		t.unrecorded[op.ID] = op
		return fmt.Errorf("journal the end of operation %s: %w", op.ID, err)
	}
	delete(t.unrecorded, op.ID)
	t.saved()
	return nil
}

// recordOthers records what became of operations of which that could not be recorded.
// Recovery goes by the names that it finds: once others have changed the same names
// it would complete such an operation although it was answered with an error, or on
// files that it was not about.
func (t *Tree) recordOthers() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, op := range t.unrecorded {
		record := t.cfg.Journal.Record
		if !op.State.Running() {
			record = func(op Operation) error { return t.cfg.Journal.Finish(op, nil, nil) }
		}
		if err := record(op); err != nil {
			return fmt.Errorf("journal what became of operation %s: %w", id, err)
		}
		delete(t.unrecorded, id)
	}
	return nil
}

// undo ends an operation that deleted nothing. Children that have absorbed
// already stay as they are: they read the same.
func (t *Tree) undo(run *run, why error) error {
	run.op.State, run.op.Ended, run.op.Error = Undone, time.Now(), why.Error()
	if interrupted(why) {
		run.op.Error = "interrupted by its caller"
	}
	err := t.sweep(run.op)
	if err == nil {
		err = t.end(run.op)
	}
	if err != nil {
		t.cfg.Log.Error("the operation was undone but that could not be recorded; the next start does it", "op", run.op.ID, "err", err)
	}
	t.cfg.Log.Warn("operation undone", "op", run.op.ID, "why", run.op.Error)
	return why
}

// giveUp ends a committed operation that could not delete all it had to. The
// caller gets the error, so nothing was acknowledged that is not done. Once
// something is gone the error is no refusal any more, whatever stopped it.
func (t *Tree) giveUp(run *run, gone int, why error) error {
	run.op.State, run.op.Ended = Failed, time.Now()
	if gone == 0 {
		run.op.State = Undone
	}
	if total := len(run.op.Plan.unlinks()) + len(run.op.Plan.renames()); gone > 0 && total > 1 {
		why = fmt.Errorf("%d of %d files were deleted, then: %v", gone, total, why)
	}
	run.op.Error = why.Error()
	if err := t.end(run.op); err != nil {
		t.cfg.Log.Error("the operation failed and that could not be recorded", "op", run.op.ID, "err", err)
	}
	t.cfg.Log.Warn("operation failed", "op", run.op.ID, "deleted", gone, "err", why)
	return why
}

// stopShort is giveUp for an operation of which merges are open. Their images are
// deleted, so it stays committed to them and to nothing else: the next start
// completes them and leaves alone what could not be deleted.
func (t *Tree) stopShort(run *run, gone int, open []Path, why error) error {
	open = t.begunMerges(run.op, open)
	if len(open) == 0 {
		return t.giveUp(run, gone, why)
	}
	why = fmt.Errorf("%d of %d files were deleted, then: %v", gone, len(run.op.Plan.unlinks()), why)
	run.op.Plan.keepMerges(open)
	run.op.Error = why.Error()
	if err := t.cfg.Journal.Record(run.op); err != nil {
		t.cfg.Log.Error("the operation failed and that could not be recorded", "op", run.op.ID, "err", err)
	}
	t.cfg.Log.Warn("operation failed, and a merge is not finished", "op", run.op.ID, "deleted", gone, "err", why)
	t.leaveUnfinished(run.op, why)
	return why
}

// scratchFree: no image stands on the file of a scratch name. Numbers of operations
// begin anew with a lost store, and a merge of the old one may have left its file.
func (t *Tree) scratchFree(scratch Path) error {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if n := len(t.graph.Children(scratch)); n > 0 {
		return fmt.Errorf("%s is in the way, on which images stand; try again: %w", scratch, ErrChanged)
	}
	return nil
}

// sweep removes the scratch files of an operation.
func (t *Tree) sweep(op Operation) error {
	for _, s := range op.Plan.Steps {
		if s.Verb != StepRebase {
			continue
		}
		scratch := scratchOf(op.ID, s.Path)
		if t.scratchFree(scratch) != nil {
			continue // not of this operation, whatever its name says
		}
		if err := t.cfg.Files.Unlink(scratch); err != nil && !isGone(err) {
			return fmt.Errorf("remove the scratch file %s: %w", scratch, err)
		}
	}
	return nil
}
