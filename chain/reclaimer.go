package chain

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// pauses are waited after failures unless Deferral says otherwise: a full disk or
// a NAS that comes back is found soon, and one that does not is not pestered.
var pauses = []time.Duration{time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, 30 * time.Second, time.Minute}

// claimPause is waited for a user's operation on the chain. As a rule that touches
// the chain, which is then waited for to be quiet.
const claimPause = 100 * time.Millisecond

// readerPauses are waited for a reader, and for what refuses.
var readerPauses = []time.Duration{time.Second, 2 * time.Second, 5 * time.Second, 15 * time.Second}

// reclaimer makes an end of condemned images when their chains are quiet. Its jobs
// follow from the graph, so that nothing about them is stored: who finds the hidden
// names finds the work.
type reclaimer struct {
	tree *Tree
	Deferral

	woken chan struct{}

	// Lock order: Tree.mu, then mu.
	mu      sync.Mutex
	on      bool                  // somebody works on the jobs; guarded by mu
	began   time.Time             // since when; guarded by mu
	jobs    []*job                // guarded by mu
	touched map[ImageID]time.Time // when users last did something with a chain; guarded by mu
	// unfinished are committed operations that stopped short. guarded by mu
	unfinished map[OpID]unfinished
	changed    chan struct{} // closed, and replaced, when a job changes; guarded by mu
	workers    sync.WaitGroup
}

// job is one run of condemned images, or an operation that is to be gone on with.
// Its fields are guarded by reclaimer.mu.
type job struct {
	Progress
	chain   ImageID
	paths   []Path     // the images, by their hidden names
	op      *Operation // an operation to be gone on with
	stop    func()     // while it runs
	stopped bool       // by Cancel
}

// unfinished is a committed operation that stopped short, and why.
type unfinished struct {
	op  Operation
	why error
}

func newReclaimer(t *Tree) *reclaimer {
	r := &reclaimer{
		tree: t, Deferral: *t.cfg.Deferral, woken: make(chan struct{}, 1),
		touched: map[ImageID]time.Time{}, unfinished: map[OpID]unfinished{}, changed: make(chan struct{}),
	}
	if len(r.Pauses) == 0 {
		r.Pauses = pauses
	}
	r.Workers = max(r.Workers, 1)
	return r
}

// StartReclaimer works on condemned images until ctx ends; the returned function
// waits until it has stopped.
func (t *Tree) StartReclaimer(ctx context.Context) (wait func()) {
	r := t.reclaim
	if r == nil {
		return func() {}
	}
	done := make(chan struct{})
	r.mu.Lock()
	r.on, r.began = true, time.Now()
	r.mu.Unlock()
	go func() {
		defer close(done)
		r.loop(ctx)
	}()
	return func() { <-done }
}

func (r *reclaimer) loop(ctx context.Context) {
	defer r.workers.Wait()
	for ctx.Err() == nil {
		r.refresh()
		next := r.startDue(ctx)
		timer := time.NewTimer(max(next, 10*time.Millisecond))
		select {
		case <-ctx.Done():
		case <-r.woken:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// wake has the jobs looked at again.
func (r *reclaimer) wake() {
	select {
	case r.woken <- struct{}{}:
	default: // it is woken already
	}
}

func (r *reclaimer) touch(chain ImageID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.touched[chain] = time.Now()
}

// resume has an operation gone on with that stopped short: by the job that runs it,
// or by a new one.
func (r *reclaimer) resume(op Operation, why error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unfinished[op.ID] = unfinished{op, why}
	if !slices.ContainsFunc(r.jobs, func(j *job) bool { return j.Op == op.ID }) {
		j := &job{Progress: Progress{Op: op.ID, Started: op.Started}}
		r.jobs = append(r.jobs, j)
		r.goOn(j)
		r.wake()
	}
}

// goOn makes j the job of an operation that stopped short. The caller holds mu.
func (r *reclaimer) goOn(j *job) {
	op := r.unfinished[j.Op].op
	j.op, j.paths = &op, op.Plan.Paths
	j.Act, j.State, j.Paths = op.Act, op.State, shown(op.Plan.Paths)
	j.Total, j.AtMost, j.Frees = op.Plan.Copies(), !op.Plan.Exact(), op.Plan.Frees()
	if len(op.Plan.Chains) > 0 {
		j.chain = op.Plan.Chains[0]
	}
	r.putOff(j, r.unfinished[j.Op].why)
}

// putOff notes why a job is not done, and when it is tried again. The caller holds mu.
func (r *reclaimer) putOff(j *job, why error) {
	j.Reason = sentence(why)
	if errors.Is(why, errGaveWay) || errors.Is(why, errClaimed) {
		j.Status, j.Next = Waiting, time.Now().Add(claimPause)
		return
	}
	j.Tries++
	if isWaiting(why) {
		j.Status, j.Next = Waiting, time.Now().Add(max(pause(readerPauses, j.Tries), r.tree.lastWalk.affordable()))
		r.tree.cfg.Log.Info("reclaiming waits", "op", j.Op, "why", why)
		return
	}
	p := pause(r.Pauses, j.Tries)
	j.Status, j.Next = Failing, time.Now().Add(p)
	r.tree.cfg.Log.Warn("reclaiming failed and is tried again", "op", j.Op, "try", j.Tries, "in", p, "err", why)
}

// refresh makes the jobs what the graph says is to be done.
func (r *reclaimer) refresh() {
	now := time.Now()
	r.tree.View(func(g *Graph) {
		due := func(im *Image) bool { return !r.tree.isKept(im) }
		components := g.components(due)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.match(g, components)
		r.tree.records.prune(g.condemned)
	})
	r.prune(now)
}

// match gives each component its job: the one that has some of its images, or a
// new one. A job that runs keeps what it is at until it has ended.
func (r *reclaimer) match(g *Graph, components [][]*Image) {
	left := slices.DeleteFunc(slices.Clone(r.jobs), func(j *job) bool { return j.op != nil || j.stop != nil })
	keep := slices.DeleteFunc(slices.Clone(r.jobs), func(j *job) bool { return j.op == nil && j.stop == nil })
	for _, images := range components {
		paths := pathsOf(images)
		if slices.ContainsFunc(r.jobs, func(j *job) bool { return j.stop != nil && overlap(j.paths, paths) }) {
			continue
		}
		i := slices.IndexFunc(left, func(j *job) bool { return overlap(j.paths, paths) })
		j := &job{Progress: Progress{Status: Waiting, Started: time.Now()}}
		if i >= 0 {
			j = left[i]
			left = slices.Delete(left, i, i+1)
		} else if id, err := r.tree.newOp(); err == nil {
			j.Op = id
		} else {
			r.tree.cfg.Log.Error("what was deleted cannot be worked on now", "path", paths[0], "err", err)
			continue // the next round tries again
		}
		r.describe(g, j, paths)
		keep = append(keep, j)
	}
	r.jobs = keep
	r.tell()
}

func (r *reclaimer) describe(g *Graph, j *job, paths []Path) {
	p, chain := g.describe(paths)
	j.paths, j.chain = paths, chain
	j.Act, j.Paths, j.Total, j.AtMost, j.Frees = p.Act, p.Paths, p.Total, p.AtMost, p.Frees
}

func pathsOf(images []*Image) (paths []Path) {
	for _, im := range images {
		paths = append(paths, im.Path)
	}
	return paths
}

func overlap(a, b []Path) bool {
	return slices.ContainsFunc(a, func(p Path) bool { return slices.Contains(b, p) })
}

// prune forgets what is long past.
func (r *reclaimer) prune(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, at := range r.touched {
		if now.Sub(at) > r.Settle && now.Sub(r.began) > r.Settle {
			delete(r.touched, id)
		}
	}
}

// tell has those look who wait for a change. The caller holds mu.
func (r *reclaimer) tell() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// startDue starts jobs, one for each chain and as many as there are workers, and
// returns how long until the next one is due.
func (r *reclaimer) startDue(ctx context.Context) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	busy := map[ImageID]bool{}
	running := 0
	for _, j := range r.jobs {
		if j.stop != nil {
			busy[j.chain] = true
			running++
		}
	}
	next := time.Hour
	slices.SortStableFunc(r.jobs, func(a, b *job) int { return a.Next.Compare(b.Next) })
	for _, j := range r.jobs {
		if j.stop != nil || j.Status == Cancelled || busy[j.chain] {
			continue
		}
		if wait := r.wait(j); wait > 0 {
			next = min(next, wait)
			continue
		}
		if running == r.Workers {
			break // one that ends wakes us
		}
		r.start(ctx, j)
		busy[j.chain] = true
		running++
	}
	return min(next, r.untilKept())
}

// wait is how long until j may begin, and says in j what for. The caller holds mu.
func (r *reclaimer) wait(j *job) time.Duration {
	now := time.Now()
	quiet := r.began.Add(r.Settle) // what came before nobody knows
	if at, is := r.touched[j.chain]; is {
		quiet = at.Add(r.Settle)
	}
	if quiet.After(now) && quiet.After(j.Next) {
		if j.Status == Waiting {
			j.Reason, j.Next = fmt.Sprintf("for %s without a change of its chain", r.Settle), quiet
		}
		return quiet.Sub(now)
	}
	return j.Next.Sub(now)
}

// untilKept is how long until the next image that is kept becomes due. The caller
// holds mu; it is an upper bound that keeps the loop from sleeping too long.
func (r *reclaimer) untilKept() time.Duration {
	if r.Keep <= 0 {
		return time.Hour
	}
	return min(max(r.Keep/100, 50*time.Millisecond), time.Minute)
}

func (r *reclaimer) start(ctx context.Context, j *job) {
	ctx, cancel := context.WithCancel(ctx)
	j.stop, j.stopped = cancel, false
	delete(r.unfinished, j.Op)
	if j.Status == Failing {
		r.tree.cfg.Rebaser.Restart()
	}
	r.workers.Go(func() {
		defer cancel()
		err := r.work(ctx, j)
		r.ended(ctx, j, err)
	})
}

func (r *reclaimer) work(ctx context.Context, j *job) error {
	if j.op != nil {
		return r.tree.finishOnce(ctx, *j.op)
	}
	return r.tree.reclaimOnce(ctx, j.Op, j.paths)
}

// ended notes what became of a job that ran.
func (r *reclaimer) ended(ctx context.Context, j *job, err error) {
	r.mu.Lock()
	defer r.wake()
	defer r.mu.Unlock()
	j.stop = nil
	if left, is := r.unfinished[j.Op]; is {
		r.goOn(j)
		err = left.why
	}
	switch {
	case err == nil:
		r.jobs = slices.DeleteFunc(r.jobs, func(o *job) bool { return o == j })
	case j.stopped:
		j.Status, j.Reason, j.Next = Cancelled, fmt.Sprintf("cancelled; chainfs ops retry %s goes on with it", j.Op), time.Time{}
	case ctx.Err() != nil: // all of it ends
		j.Status, j.Reason = Waiting, "for the next mount"
	default:
		r.putOff(j, err)
	}
	r.tell()
}

func pause(of []time.Duration, tries int) time.Duration { return of[min(tries, len(of))-1] }
