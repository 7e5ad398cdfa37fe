package chain_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
)

// slowRebaser is the toy rebaser whose rebases can be held up and made to fail.
type slowRebaser struct {
	*toyRebaser
	mu       sync.Mutex
	fail     map[chain.Path]error         // by child; guarded by mu
	hold     map[chain.Path]chan struct{} // by child; guarded by mu
	running  map[chain.Path]bool          // guarded by mu
	most     int                          // that ran at a time; guarded by mu
	done     int                          // rebases; guarded by mu
	restarts int                          // guarded by mu
}

func newSlow(w *world) *slowRebaser {
	quiet := *w
	quiet.killAt, quiet.onStep = 0, nil
	return &slowRebaser{
		toyRebaser: &toyRebaser{&quiet}, fail: map[chain.Path]error{},
		hold: map[chain.Path]chan struct{}{}, running: map[chain.Path]bool{},
	}
}

func (r *slowRebaser) Rebase(ctx context.Context, job chain.RebaseJob, progress func(done, total int64)) error {
	r.mu.Lock()
	hold, err := r.hold[job.Child], r.fail[job.Child]
	r.running[job.Child] = true
	r.most = max(r.most, len(r.running))
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.running, job.Child)
		r.mu.Unlock()
	}()
	progress(1, 2)
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err != nil {
		return err
	}
	n := *r.w
	err = (&toyRebaser{&n}).Rebase(ctx, job, progress)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done++
	return err
}

func (r *slowRebaser) Repoint(ctx context.Context, job chain.RepointJob) error {
	n := *r.w
	return (&toyRebaser{&n}).Repoint(ctx, job)
}

func (r *slowRebaser) Restart() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.restarts++
}

func (r *slowRebaser) set(child chain.Path, err error, hold chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail[child], r.hold[child] = err, hold
}

func (r *slowRebaser) isRunning(child chain.Path) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.running[child]
}

// working has the reclaimer work in the background, with a rebaser that can be held.
func (w *world) working(d chain.Deferral) *slowRebaser {
	w.t.Helper()
	if len(d.Pauses) == 0 {
		d.Pauses = []time.Duration{20 * time.Millisecond}
	}
	w.deferral = &d
	slow := newSlow(w)
	do(w.t, w.reopen(func(c *chain.Config) { c.Rebaser, c.Step = slow, nil }))
	ctx, stop := context.WithCancel(bg)
	wait := w.tree.StartReclaimer(ctx)
	w.t.Cleanup(func() { stop(); wait() })
	return slow
}

// eventually waits for something that must come, and says what when it does not.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if is() {
			return
		}
	}
	t.Fatalf("it never came: %s", what)
}

func (w *world) wait(p chain.Path) error {
	ctx, cancel := context.WithTimeout(bg, 20*time.Second)
	defer cancel()
	return w.tree.Wait(ctx, p, nil)
}

// vms makes lines of their own: vm0/T0 <- ... <- vm0/T<n-1>, vm1/T0 and so on.
func (w *world) vms(vms, n int, rng *rand.Rand) {
	for v := range vms {
		var parent chain.Path
		for i := range n {
			p := chain.Path(fmt.Sprintf("vm%d/T%d/r", v, i))
			w.write(p, parent, rng)
			parent = p
		}
	}
}

// A chain that fails, one that waits for a reader and one that is cancelled hold up
// no other, and each says what is the matter.
func TestReclaimerOneDoesNotHoldUpOthers(t *testing.T) {
	w, rng := reviewWorld(t)
	w.vms(5, 3, rng)
	slow := w.working(chain.Deferral{Workers: 2})
	full := fmt.Errorf("1 GiB needed: %w", unix.ENOSPC)
	slow.set("vm0/T2/r", full, nil)
	slow.set("vm1/T2/r", chain.Refuse("vm1/T2/r", "vm1/T2/r is in use by qemu-img (process 7)"), nil)
	held := make(chan struct{})
	slow.set("vm2/T2/r", nil, held)
	for v := range 5 {
		w.gone(chain.Path(fmt.Sprintf("vm%d/T1/r", v)))
	}
	do(t, w.wait("vm3"), w.wait("vm4/T1/r"))
	if err := w.wait("vm0"); err == nil || !strings.Contains(err.Error(), "1 GiB needed") {
		t.Errorf("wait for the one that fails: %v", err)
	}
	status := func(v int, want chain.Status, reason string) func() bool {
		return func() bool {
			return slices.ContainsFunc(append(w.tree.Pending(), w.tree.Running()...), func(p chain.Progress) bool {
				return slices.Equal(p.Paths, []chain.Path{chain.Path(fmt.Sprintf("vm%d/T1/r", v))}) &&
					p.Status == want && strings.Contains(p.Reason, reason) && p.Frees > 0
			})
		}
	}
	eventually(t, "vm0 failed", status(0, chain.Failing, "1 GiB needed"))
	eventually(t, "vm1 waits", status(1, chain.Waiting, "qemu-img (process 7)"))
	eventually(t, "vm2 runs", status(2, chain.Running, ""))
	w.check()

	id := w.op("vm2/T1/r")
	do(t, w.tree.Cancel(id))
	eventually(t, "vm2 is cancelled", status(2, chain.Cancelled, "retry"))
	if err := w.wait("vm2"); err == nil {
		t.Errorf("wait for the one that was cancelled ended well")
	}
	close(held)
	time.Sleep(50 * time.Millisecond)
	eventually(t, "vm2 stays cancelled", status(2, chain.Cancelled, "retry"))
	do(t, w.tree.Retry(id), w.wait("vm2"))

	slow.set("vm0/T2/r", nil, nil) // room was made
	slow.set("vm1/T2/r", nil, nil) // the reader went
	eventually(t, "all is settled", func() bool { return len(w.hidden()) == 0 })
	w.settled()
	if slow.restarts == 0 {
		t.Errorf("the rebaser was not told to begin anew after a failure")
	}
	if err := w.tree.Cancel(id); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("cancel of what has ended: %v", err)
	}
}

func (w *world) op(p chain.Path) (id chain.OpID) {
	for _, now := range append(w.tree.Pending(), w.tree.Running()...) {
		if slices.Contains(now.Paths, p) {
			id = now.Op
		}
	}
	return id
}

// At most so many chains are worked on at a time, and one operation on each.
func TestReclaimerWorkers(t *testing.T) {
	w, rng := reviewWorld(t)
	w.vms(4, 6, rng)
	slow := w.working(chain.Deferral{Workers: 3})
	held := make(chan struct{})
	for v := range 4 {
		for _, i := range []int{2, 4} {
			slow.set(chain.Path(fmt.Sprintf("vm%d/T%d/r", v, i)), nil, held)
		}
		w.gone(chain.Path(fmt.Sprintf("vm%d/T1/r", v)))
		w.gone(chain.Path(fmt.Sprintf("vm%d/T3/r", v)))
	}
	eventually(t, "three run", func() bool { return len(w.tree.Running()) == 3 })
	time.Sleep(50 * time.Millisecond)
	vms := map[string]bool{}
	for _, p := range w.tree.Running() {
		vms[strings.SplitN(string(p.Paths[0]), "/", 2)[0]] = true
	}
	if len(vms) != 3 || len(w.tree.Running()) != 3 {
		t.Errorf("at work is %v", w.tree.Running())
	}
	close(held)
	do(t, w.wait(""))
	w.settled()
	if slow.most != 3 {
		t.Errorf("%d ran at a time, want 3", slow.most)
	}
}

// It waits until a chain is quiet, and then absorbs all in one pass.
func TestReclaimerSettles(t *testing.T) {
	w, rng := reviewWorld(t)
	w.vms(1, 6, rng)
	slow := w.working(chain.Deferral{Workers: 1, Settle: 400 * time.Millisecond})
	for i := 1; i < 5; i++ {
		w.gone(chain.Path(fmt.Sprintf("vm0/T%d/r", i)))
		time.Sleep(100 * time.Millisecond)
	}
	pending := w.tree.Pending()
	if len(pending) != 1 || len(pending[0].Paths) != 4 || !strings.Contains(pending[0].Reason, "without a change") {
		t.Errorf("pending is %+v, want one with four images that waits for quiet", pending)
	}
	do(t, w.wait("vm0"))
	w.settled()
	if slow.done != 1 {
		t.Errorf("%d rebases, want one", slow.done)
	}
}

// A user's operation on a chain does not wait for a merge: that gives way and is
// gone on with afterwards.
func TestReclaimerGivesWay(t *testing.T) {
	w, rng := reviewWorld(t)
	w.vms(1, 6, rng)
	slow := w.working(chain.Deferral{Workers: 1, Settle: 50 * time.Millisecond})
	held := make(chan struct{})
	slow.set("vm0/T2/r", nil, held)
	runs := func() { eventually(t, "the merge runs", func() bool { return slow.isRunning("vm0/T2/r") }) }
	w.gone("vm0/T1/r")
	for _, act := range []func(){
		func() { w.gone("vm0/T4/r") },
		func() {
			do(t, w.tree.Rename(bg, "vm0/T5/r", "vm0/T5/s", 0))
			w.want["vm0/T5/s"] = w.want["vm0/T5/r"]
			delete(w.want, "vm0/T5/r")
		},
		func() { w.gone("vm0/T5/s") },
	} {
		runs()
		act()
		w.check()
	}
	w.write("vm0/N/r", "vm0/T0/r", rng)
	do(t, w.tree.Changed("vm0/N/r"))
	close(held)
	do(t, w.wait("vm0"))
	w.settled()
}

// What is being merged can be brought back.
func TestUndeleteWhileItIsMerged(t *testing.T) {
	w, rng := reviewWorld(t)
	w.vms(1, 4, rng)
	slow := w.working(chain.Deferral{Workers: 1})
	held := make(chan struct{})
	defer close(held)
	slow.set("vm0/T2/r", nil, held)
	was := w.want["vm0/T1/r"]
	w.gone("vm0/T1/r")
	eventually(t, "the merge runs", func() bool { return slow.isRunning("vm0/T2/r") })
	_, err := w.tree.Undelete(bg, "vm0/T1/r", "")
	do(t, err)
	w.want["vm0/T1/r"] = was
	w.settled()
	if parent := w.parent("vm0/T2/r"); parent != "vm0/T1/r" {
		t.Errorf("T2 stands on %s", parent)
	}
}

// A writer to the tail is not kept waiting, and a merge into what is written to waits.
func TestReclaimerAndWriters(t *testing.T) {
	w, rng := reviewWorld(t)
	w.vms(1, 4, rng)
	slow := w.working(chain.Deferral{Workers: 1})
	held := make(chan struct{})
	slow.set("vm0/T2/r", nil, held)
	w.gone("vm0/T1/r")
	eventually(t, "the merge runs", func() bool { return slow.isRunning("vm0/T2/r") })
	do(t, w.tree.CheckWrite(bg, "vm0/T3/r", 1, 1, false))
	if !slow.isRunning("vm0/T2/r") {
		t.Errorf("a writer to the tail stopped a merge below it")
	}
	close(held)
	do(t, w.wait(""))
	slow.set("vm0/T3/r", nil, make(chan struct{}))
	w.gone("vm0/T2/r")
	eventually(t, "the merge runs", func() bool { return slow.isRunning("vm0/T3/r") })
	slow.set("vm0/T3/r", nil, nil) // the next try ends; the one that runs has to be stopped
	do(t, w.tree.CheckWrite(bg, "vm0/T3/r", 1, 1, false))
	do(t, w.wait(""))
	w.settled()
}

// A daemon that ends stops in the middle; the next one goes on.
func TestReclaimerEnds(t *testing.T) {
	w, rng := reviewWorld(t)
	w.vms(2, 4, rng)
	w.deferral = later()
	slow := newSlow(w)
	do(t, w.reopen(func(c *chain.Config) { c.Rebaser, c.Step = slow, nil }))
	ctx, stop := context.WithCancel(bg)
	wait := w.tree.StartReclaimer(ctx)
	slow.set("vm0/T2/r", nil, make(chan struct{}))
	w.gone("vm0/T1/r")
	w.gone("vm1/T1/r")
	eventually(t, "the merge runs", func() bool { return slow.isRunning("vm0/T2/r") })
	stop()
	wait()
	w.check()
	w.mount()
	w.reclaimed()
}

// TestConcurrentLater is TestConcurrent with a reclaimer at work, undeletes and
// directories that go.
func TestConcurrentLater(t *testing.T) {
	w, rng := reviewWorld(t)
	w.vms(4, 12, rng)
	all := slices.Collect(maps.Keys(w.want))
	slices.Sort(all)
	before := maps.Clone(w.want)
	w.working(chain.Deferral{Workers: 2, Settle: 20 * time.Millisecond})
	var mu sync.Mutex
	odd := map[string]int{}
	note := func(what string, err error) {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err == nil, refused(err), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded),
			errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTEMPTY), errors.Is(err, chain.ErrChanged), errors.Is(err, unix.ENOTDIR):
		default:
			odd[what+": "+err.Error()]++
		}
	}
	ctx, stop := context.WithTimeout(bg, 6*time.Second)
	defer stop()
	var wg sync.WaitGroup
	for g := range 6 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), uint64(time.Now().UnixNano())))
			for ctx.Err() == nil {
				p := all[rng.IntN(len(all))]
				switch k := rng.IntN(12); {
				case k < 4:
					c, cancel := ctx, func() {}
					if rng.IntN(4) == 0 {
						c, cancel = context.WithTimeout(ctx, time.Duration(rng.IntN(30))*time.Millisecond)
					}
					note("delete", w.tree.Delete(c, []chain.Path{p}, chain.DeleteOptions{}, nil))
					cancel()
				case k < 6:
					_, err := w.tree.Undelete(ctx, p, "")
					note("undelete", err)
				case k < 7:
					note("rmdir", w.rmdir(p.Dir()))
				case k < 8:
					w.tree.Look(ctx, p)
				case k < 9:
					w.tree.Pending()
				case k < 10:
					w.tree.List(ctx, p.Dir())
				case k < 11:
					w.tree.Summary()
				default:
					w.tree.CheckWrite(ctx, p, 1, 2, false)
				}
				time.Sleep(time.Duration(rng.IntN(10)) * time.Millisecond)
			}
		})
	}
	wg.Wait()
	for e, n := range odd {
		t.Errorf("%d times: %s", n, e)
	}
	do(t, w.wait(""))
	for p := range before {
		if _, err := os.Lstat(w.path(p)); err != nil {
			delete(w.want, p)
		}
	}
	t.Logf("%d of %d are left", len(w.want), len(before))
	w.settled()
}
