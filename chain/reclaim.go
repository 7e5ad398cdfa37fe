package chain

import (
	"context"
	"errors"
	"slices"
	"time"
)

// PlanReclaim decides what it takes to make an end of condemned images: what
// stands on them and stays absorbs all of a run of them at once, and they are
// unlinked. What is condemned and not among paths stays, too.
func (g *Graph) PlanReclaim(paths []Path) Plan {
	there := slices.DeleteFunc(slices.Clone(paths), func(p Path) bool { return g.At(p) == nil })
	plan := g.PlanDelete(there, DeleteOptions{begun: true, only: true})
	plan.Act = ActReclaim
	return plan
}

// errGaveWay: a user's operation on the chain goes first.
var errGaveWay = errors.New("a user's operation on the chain went first")

// reclaimOnce makes an end of condemned images, as operation id. What was done is
// kept when it is stopped: a child that absorbed a part goes on from there.
func (t *Tree) reclaimOnce(ctx context.Context, id OpID, paths []Path) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	decide := func() Plan { return t.graph.PlanReclaim(paths) }
	// Who is known to be in the way is asked before the whole tree is walked.
	if err := t.allIdle(t.decide(decide)); err != nil {
		return err
	}
	for _, p := range paths {
		if err := t.errUnread(p); err != nil {
			return err
		}
	}
	who := claimant{giveWay: func() { stop(errGaveWay) }}
	err := t.withPlan(ctx, who, decide, func(plan Plan) error {
		x := execution{plan: plan, decide: decide, id: id, background: true}
		if err := t.ready(&x); err != nil {
			return err
		}
		return t.execute(ctx, x)
	})
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// finishOnce goes on with a committed operation of which a merge is not finished.
func (t *Tree) finishOnce(ctx context.Context, op Operation) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	who := claimant{giveWay: func() { stop(errGaveWay) }}
	if err := t.claims.acquire(ctx, who, op.Plan.Chains); err != nil {
		return err
	}
	defer t.claims.release(op.Plan.Chains)
	run := t.running.add(op, nil, nil)
	defer t.running.remove(run)
	if err := t.allIdle(op.Plan); err != nil { // see execute
		return err
	}
	err := t.goOn(ctx, run)
	switch {
	case !run.op.State.Running():
		return nil // with an error, too: it has ended, and there is nothing to go on with
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return err
}

// components are the condemned images, those that stand on one another together:
// each is absorbed in one pass. An image of which nobody was told that it is deleted
// is none.
func (g *Graph) components(due func(*Image) bool) [][]*Image {
	var all [][]*Image
	met := map[*Image]bool{}
	for _, im := range slices.Backward(byPosition(g.condemned)) { // those lower in a chain first
		if !g.isDue(im, due) || met[im] {
			continue
		}
		all = append(all, g.component(im, met, due))
	}
	return all
}

func (g *Graph) isDue(im *Image, due func(*Image) bool) bool {
	if !g.condemned[im] || !due(im) {
		return false
	}
	_, both := g.oldName(im)
	return !both
}

func (g *Graph) component(im *Image, met map[*Image]bool, due func(*Image) bool) []*Image {
	met[im] = true
	found := []*Image{im}
	for i := 0; i < len(found); i++ {
		beside := g.Children(found[i].Path)
		if parent := g.Parent(found[i]); parent != nil {
			beside = append(beside, parent)
		}
		for _, o := range beside {
			if !met[o] && g.isDue(o, due) {
				met[o] = true
				found = append(found, o)
			}
		}
	}
	return found
}

// describe is what is to be done for images, as far as that can be told without
// reading their tables.
func (g *Graph) describe(paths []Path) (p Progress, chain ImageID) {
	plan := g.PlanReclaim(paths)
	p = Progress{Act: ActReclaim, Paths: shown(paths), Total: plan.Copies(), AtMost: true, Frees: plan.Frees()}
	for _, at := range paths {
		if im := g.At(at); im != nil {
			chain = im.Chain
			if p.Frees == 0 { // it is refused
				p.Frees += im.Allocated
			}
		}
	}
	return p, chain
}

// leaveUnfinished has the reclaimer go on with a committed operation.
func (t *Tree) leaveUnfinished(op Operation, why error) {
	if t.reclaim != nil {
		t.reclaim.resume(op, why)
	}
}

// laterFor has the reclaimer know of what an operation condemned.
func (t *Tree) laterFor(op Operation) {
	t.touchAll(op.Plan.Chains)
	t.records.note(op)
	if t.reclaim != nil {
		t.reclaim.wake()
	}
}

// isKept reports whether --keep holds a condemned image back.
func (t *Tree) isKept(im *Image) bool {
	return time.Now().Before(t.keptUntil(t.records.of(im))) && !t.records.isGivenUp(im)
}

// keptUntil is before what time nothing is absorbed: as this mount says, or, where
// there is none, as was said at the deletion.
func (t *Tree) keptUntil(rec recorded) time.Time {
	if d := t.cfg.Deferral; d != nil && d.Keep >= 0 {
		if d.Keep == 0 {
			return time.Time{}
		}
		return rec.at.Add(d.Keep)
	}
	return rec.until
}

// touch notes that users do something with a chain: the reclaimer waits until they
// have done.
func (t *Tree) touch(chain ImageID) {
	if t.reclaim == nil {
		return
	}
	if held, byUser := t.claims.isHeld(chain); held && !byUser {
		return // it is the reclaimer itself
	}
	t.reclaim.touch(chain)
}

// isWaiting tells what is waited for from what has failed: somebody uses an image,
// or was faster.
func isWaiting(err error) bool {
	var refused *RefusedError
	return errors.As(err, &refused) || interrupted(err) ||
		errors.Is(err, ErrChanged) || errors.Is(err, errGaveWay) || errors.Is(err, errClaimed)
}

// sentence is why a job waits or failed, in words for a user.
func sentence(err error) string { return Printable(err.Error()) }
