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

// Pending lists what the reclaimer has to do and is not doing now.
func (t *Tree) Pending() []Progress {
	r := t.reclaim
	if r == nil {
		return nil
	}
	r.refresh()
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []Progress
	for _, j := range r.jobs {
		if j.stop == nil {
			r.wait(j)
			all = append(all, j.Progress)
		}
	}
	slices.SortFunc(all, func(a, b Progress) int { return cmp.Compare(a.Op, b.Op) })
	return all
}

// Cancel stops an operation: one of the reclaimer's until Retry or the next mount,
// with all that it has done kept; any other one for good, as long as it has deleted
// nothing.
func (t *Tree) Cancel(id OpID) error {
	if r := t.reclaim; r != nil && r.cancel(id) {
		return nil
	}
	if t.running.cancel(id) {
		return nil
	}
	return fmt.Errorf("operation %s does not run or wait, or cannot be stopped any more: %w", id, fs.ErrNotExist)
}

func (r *reclaimer) cancel(id OpID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, j := range r.jobs {
		if j.Op != id {
			continue
		}
		if j.stop != nil {
			j.stopped = true
			j.stop()
			return true
		}
		j.Status, j.Reason, j.Next = Cancelled, fmt.Sprintf("cancelled; chainfs ops retry %s goes on with it", id), time.Time{}
		r.tell()
		return true
	}
	return false
}

// Retry goes on at once with an operation that failed, waits or was cancelled.
func (t *Tree) Retry(id OpID) error {
	if r := t.reclaim; r != nil && r.retry(id) {
		return nil
	}
	return fmt.Errorf("operation %s does not wait to be tried again: %w", id, fs.ErrNotExist)
}

func (r *reclaimer) retry(id OpID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, j := range r.jobs {
		if j.Op != id || j.stop != nil {
			continue
		}
		r.touched[j.chain] = time.Time{} // as if it had been quiet for long
		if j.Status == Cancelled {
			j.Status = Waiting
		}
		j.Tries, j.Next, j.Reason = 0, time.Time{}, ""
		r.tell()
		r.wake()
		return true
	}
	return false
}

// errNotWorking: nobody makes an end of what is pending.
var errNotWorking = errors.New("nobody works on what was deleted; mount the tree, or run chainfs scan")

// Wait returns when nothing is left to be done for the chains of what is, or was,
// at or below p. What --keep holds back is not waited for. It is an error when the
// work failed or was cancelled, although it may be tried again.
func (t *Tree) Wait(ctx context.Context, p Path, report func(Progress)) error {
	r := t.reclaim
	if r == nil {
		return nil
	}
	for {
		r.refresh()
		changed, left, err := r.left(p)
		if err != nil || !left {
			return err
		}
		if report != nil {
			for _, now := range t.Running() {
				report(now)
			}
		}
		select {
		case <-changed:
		case <-time.After(waitTick):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// waitTick is how often the progress is told to who waits.
const waitTick = 200 * time.Millisecond

// left reports whether jobs are left for p's chains.
func (r *reclaimer) left(p Path) (changed <-chan struct{}, left bool, err error) {
	var chains map[ImageID]bool
	r.tree.View(func(g *Graph) { chains = g.chainsOf(p) })
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, j := range r.jobs {
		about := chains[j.chain] || slices.ContainsFunc(j.Paths, func(o Path) bool { return o.Within(p) })
		switch {
		case !about:
		case !r.on:
			return nil, true, errNotWorking
		case j.stop != nil:
			left = true
		case j.Status == Failing, j.Status == Cancelled:
			return nil, true, fmt.Errorf("%s is deleted, but its chain is not settled: %s", j.Paths[0], j.Reason)
		default:
			left = true
		}
	}
	return r.changed, left, nil
}

// chainsOf are the chains of what is, or was, at or below p.
func (g *Graph) chainsOf(p Path) map[ImageID]bool {
	chains := map[ImageID]bool{}
	for _, im := range g.Within(p) {
		chains[im.Chain] = true
	}
	for im := range g.condemned {
		if Shown(im.Path).Within(p) {
			chains[im.Chain] = true
		}
	}
	return chains
}
