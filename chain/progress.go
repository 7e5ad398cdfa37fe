package chain

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"
)

// Progress is how far a running operation is.
type Progress struct {
	Op      OpID      `json:"op"`
	Act     Act       `json:"act"`
	State   State     `json:"state"`
	Paths   []Path    `json:"paths"`
	Started time.Time `json:"started"`
	Path    Path      `json:"path"`              // the image being worked on
	Done    int64     `json:"done"`              // bytes
	Total   int64     `json:"total"`             // bytes to be copied
	AtMost  bool      `json:"at_most,omitempty"` // Total is an upper bound
	Frees   int64     `json:"frees,omitempty"`   // bytes that are free again when it has ended
	Rate    int64     `json:"rate,omitempty"`    // bytes a second that were copied so far, 0 while that is not known

	// The rest is of work that is left to the reclaimer.
	Status Status    `json:"status"`
	Reason string    `json:"reason,omitempty"` // what it waits for, or why it failed
	Next   time.Time `json:"next,omitzero"`    // when it begins, or is tried again
	Tries  int       `json:"tries,omitempty"`  // that failed
}

// Status is what an operation that has not ended is doing.
type Status string

// The statuses.
const (
	Waiting   Status = "waiting" // for quiet, for a reader, for the end of --keep
	Running   Status = "running"
	Failing   Status = "failed"    // the last try failed; there will be another
	Cancelled Status = "cancelled" // its user stopped it; retry goes on with it
)

// run is an operation while it runs.
type run struct {
	op        Operation // changed only by the goroutine that runs it
	report    func(Progress)
	cancel    context.CancelFunc // nil for what cannot be stopped
	graceTime time.Duration      // see Deferral.Grace; changed by nobody

	mu       sync.Mutex
	progress Progress  // guarded by mu
	finished int64     // bytes of the steps that are done; guarded by mu
	steps    []Step    // op's plan, for others; guarded by mu
	copying  time.Time // when the first byte was copied; guarded by mu
}

// runningOps are the operations of this process.
type runningOps struct {
	mu   sync.Mutex
	runs map[*run]bool // guarded by mu
}

func (r *runningOps) add(op Operation, report func(Progress), cancel context.CancelFunc) *run {
	n := &run{op: op, report: report, cancel: cancel, steps: op.Plan.Steps}
	n.progress = Progress{
		Op: op.ID, Act: op.Act, State: op.State, Status: Running, Started: op.Started, Paths: shown(op.Plan.Paths),
		Total: op.Plan.Copies(), AtMost: !op.Plan.Exact(), Frees: op.Plan.Frees(),
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.runs == nil {
		r.runs = map[*run]bool{}
	}
	r.runs[n] = true
	return n
}

// touches reports whether an operation changes or deletes the file at p.
func (r *runningOps) touches(p Path) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for n := range r.runs {
		n.mu.Lock()
		touches := slices.ContainsFunc(n.steps, func(s Step) bool { return s.Path == p })
		n.mu.Unlock()
		if touches {
			return true
		}
	}
	return false
}

// cancel stops an operation that can be stopped.
func (r *runningOps) cancel(id OpID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for n := range r.runs {
		n.mu.Lock()
		can := n.progress.Op == id && n.progress.State == Prepared && n.cancel != nil
		n.mu.Unlock()
		if can {
			n.cancel()
			return true
		}
	}
	return false
}

func (r *runningOps) remove(n *run) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.runs, n)
}

func (r *run) step(p Path, done, total int64) {
	r.mu.Lock()
	r.progress.Path, r.progress.Done = p, r.finished+min(done, total)
	if r.copying.IsZero() {
		r.copying = time.Now()
	} else if took := time.Since(r.copying); took > time.Second {
		r.progress.Rate = int64(float64(r.progress.Done) / took.Seconds())
	}
	r.tell()
}

// grace waits until who has read a header that was changed has opened what it named.
// A user who waits for the operation is not kept waiting for that.
func (r *run) grace(ctx context.Context) error {
	if r.graceTime == 0 {
		return nil
	}
	select {
	case <-time.After(r.graceTime):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// committed notes for others that the operation cannot be undone any more.
func (r *run) committed() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.progress.State = Committed
}

// replan takes over the steps of a newer plan.
func (r *run) replan(steps []Step) {
	r.op.Plan.Steps = steps
	r.mu.Lock()
	defer r.mu.Unlock()
	r.steps = steps
	r.progress.Total, r.progress.AtMost = r.finished+r.op.Plan.Copies(), !r.op.Plan.Exact()
}

func (r *run) stepDone(s Step) {
	r.mu.Lock()
	if s.Verb == StepRebase {
		r.finished += s.Bytes
	}
	r.progress.Path, r.progress.Done, r.progress.State = s.Path, r.finished, r.op.State
	r.tell()
}

func shown(ps []Path) []Path {
	all := make([]Path, len(ps))
	for i, p := range ps {
		all[i] = Shown(p)
	}
	return all
}

// tell unlocks mu and reports.
func (r *run) tell() {
	now := r.progress
	r.mu.Unlock()
	if r.report != nil {
		r.report(now)
	}
}

// Running lists the operations that are under way, the oldest first.
func (t *Tree) Running() []Progress {
	t.running.mu.Lock()
	defer t.running.mu.Unlock()
	var all []Progress
	for r := range t.running.runs {
		r.mu.Lock()
		all = append(all, r.progress)
		r.mu.Unlock()
	}
	slices.SortFunc(all, func(a, b Progress) int { return cmp.Compare(a.Op, b.Op) })
	return all
}

// Operations lists ended and running operations from the journal, the oldest first.
func (t *Tree) Operations() ([]Operation, error) { return t.cfg.Journal.Operations(false) }
