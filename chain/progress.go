package chain

import (
	"cmp"
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
	Path    Path      `json:"path"`  // the image being worked on
	Done    int64     `json:"done"`  // bytes
	Total   int64     `json:"total"` // bytes: an upper bound until the operation has ended
}

// run is an operation while it runs.
type run struct {
	op     Operation // changed only by the goroutine that runs it
	report func(Progress)

	mu       sync.Mutex
	progress Progress // guarded by mu
	finished int64    // bytes of the steps that are done; guarded by mu
}

// runningOps are the operations of this process.
type runningOps struct {
	mu   sync.Mutex
	runs map[*run]bool // guarded by mu
}

func (r *runningOps) add(op Operation, report func(Progress)) *run {
	n := &run{op: op, report: report}
	n.progress = Progress{Op: op.ID, Act: op.Act, State: op.State, Paths: op.Plan.Paths, Started: op.Started, Total: op.Plan.Copies()}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.runs == nil {
		r.runs = map[*run]bool{}
	}
	r.runs[n] = true
	return n
}

func (r *runningOps) remove(n *run) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.runs, n)
}

func (r *run) step(p Path, done, total int64) {
	r.mu.Lock()
	r.progress.Path, r.progress.Done = p, r.finished+min(done, total)
	r.tell()
}

func (r *run) stepDone(s Step) {
	r.mu.Lock()
	if s.Verb == StepRebase {
		r.finished += s.Bytes
	}
	r.progress.Path, r.progress.Done, r.progress.State = s.Path, r.finished, r.op.State
	r.tell()
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
