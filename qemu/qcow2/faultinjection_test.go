package qcow2

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"
)

var faultsFlag = flag.Int("faults", 40, "how many calls of each kind TestFaults fails in each scenario, and each way")

// mishap is a way in which a call fails, and what must come of it.
type mishap struct {
	kind    callKind
	err     unix.Errno
	short   bool
	dead    bool
	outcome outcome
}

type outcome int

const (
	mustFail    outcome = iota // an error that was swallowed is a lie about what is on disk
	mustSucceed                // there is another way
	mayDoEither
)

// mishaps: the kernel may copy less than it was asked to, or say that it cannot;
// that says nothing about the files, and they can be read and written instead.
// What could not be read may be read again; success is looked at closely anyway.
var mishaps = []mishap{
	{kind: callRead, err: unix.EIO, outcome: mayDoEither},
	{kind: callRead, err: unix.EIO, short: true, outcome: mayDoEither},
	{kind: callRead, err: unix.EIO, dead: true},
	{kind: callParentRead, err: unix.EIO, outcome: mayDoEither},
	{kind: callParentRead, err: unix.EIO, short: true, outcome: mayDoEither},
	{kind: callParentRead, err: unix.EIO, dead: true},
	{kind: callWrite, err: unix.EIO},
	{kind: callWrite, err: unix.EIO, short: true},
	{kind: callWrite, err: unix.EIO, dead: true},
	{kind: callWrite, err: unix.ENOSPC},
	{kind: callWrite, err: unix.ENOSPC, short: true},
	{kind: callWrite, err: unix.ENOSPC, short: true, dead: true},
	{kind: callWrite, err: unix.EINTR, outcome: mayDoEither},
	{kind: callWrite, err: unix.EINTR, short: true, outcome: mayDoEither},
	{kind: callSync, err: unix.EIO},
	{kind: callSync, err: unix.ENOSPC},
	{kind: callSync, err: unix.EIO, dead: true},
	{kind: callSync, err: unix.EINTR, outcome: mayDoEither},
	{kind: callTruncate, err: unix.EIO},
	{kind: callTruncate, err: unix.ENOSPC, dead: true},
	{kind: callTruncate, err: unix.EINTR, outcome: mayDoEither},
	{kind: callCopy, err: unix.EIO},
	{kind: callCopy, err: unix.EIO, dead: true},
	{kind: callCopy, err: unix.ENOSPC},
	{kind: callCopy, err: unix.EINTR, outcome: mustSucceed},
	{kind: callCopy, err: unix.EXDEV, outcome: mustSucceed},
	{kind: callCopy, err: unix.EINVAL, outcome: mustSucceed},
	{kind: callCopy, err: unix.ENOSYS, outcome: mustSucceed},
	{kind: callCopy, err: unix.EOPNOTSUPP, outcome: mustSucceed},
	{kind: callCopy, outcome: mustSucceed},              // copies nothing, says nothing
	{kind: callCopy, short: true, outcome: mustSucceed}, // copies less
}

// Whatever call fails, and however: the child reads the same, an absorb that did
// not do it all says so, and on a healthy disk the same job comes to its end.
func TestFaults(t *testing.T) {
	needQemu(t)
	seed := testSeed(t)
	for i, s := range scenarios {
		if s.size == "12M" {
			continue // as others, and takes as long as all of them
		}
		t.Run(s.name, func(t *testing.T) {
			r := &faultRun{setting: s.make(t), rng: rngOf(seed + uint64(i)), counts: map[string]int{}}
			r.all()
			t.Logf("%v", r.counts)
		})
	}
}

type faultRun struct {
	*setting
	rng    *rand.Rand
	counts map[string]int
}

func (r *faultRun) all() {
	r.t.Helper()
	healthy := newFaults(fault{}, r.rng)
	if err := r.absorb(newCrashDisk(r.child), healthy); err != nil {
		r.t.Fatal(err)
	}
	for kind, n := range healthy.calls {
		r.counts[string(kind)+" calls"] = n
	}
	for _, m := range mishaps {
		for _, n := range r.numbers(healthy.calls[m.kind]) {
			f := fault{m.kind, n, m.err, m.short, m.dead}
			if err := r.one(f, m.outcome); err != nil {
				r.t.Errorf("%v: %v", f, err)
				if r.counts["wrong"]++; r.counts["wrong"] == 10 {
					r.t.Fatal("and so on")
				}
			}
		}
	}
}

// numbers are all calls of a kind, or the first, the last and some in between.
func (r *faultRun) numbers(calls int) []int {
	var all []int
	if calls <= *faultsFlag {
		for i := range calls {
			all = append(all, i+1)
		}
		return all
	}
	for i := range *faultsFlag / 4 {
		all = append(all, i+1, calls-i)
	}
	for len(all) < *faultsFlag {
		all = append(all, 1+r.rng.IntN(calls))
	}
	return all
}

// absorb runs the job with the child and its parents on a disk with faults.
func (s *setting) absorb(d *crashDisk, f *faults) error {
	j := s.job(faultyFile{d, f})
	j.away, j.below = f.layers(j.away), f.layers(j.below)
	return engineAbsorb(j)
}

func (f *faults) layers(layers []testLayer) []testLayer {
	var all []testLayer
	for _, l := range layers {
		all = append(all, testLayer{faultySource{l.src, f}, l.raw})
	}
	return all
}

// one runs the job with one fault.
func (r *faultRun) one(f fault, want outcome) error {
	d, faults := newCrashDisk(r.child), newFaults(f, r.rng)
	err := r.absorb(d, faults)
	if !faults.hit {
		return fmt.Errorf("it did not come to that call: it makes other calls each time")
	}
	switch {
	case err != nil && want == mustSucceed:
		return fmt.Errorf("it gave up: %w", err)
	case err == nil && want == mustFail:
		return errors.New("it said nothing")
	case err == nil:
		r.counts["succeeded"]++
		return r.finishedClean(d)
	case fellBack(err):
		return fmt.Errorf("it takes a fault for a property of the image: %w", err)
	case f.kind == callSync && !lostSync(err):
		return fmt.Errorf("it does not tell that a sync failed: %w", err)
	}
	faults.heal()
	return r.afterError(d, lostSync(err))
}

// afterError: nobody sees anything else than before, neither who reads now nor who
// reads after a power cut, and the job can be done.
func (r *faultRun) afterError(d *crashDisk, lost bool) error {
	if _, err := r.sound(d.durable); err != nil {
		return fmt.Errorf("what is durable: %w", err)
	}
	torn := tear(d.durable, d.unsynced(), keepHalf, r.rng)
	if _, err := r.sound(torn); err != nil {
		return fmt.Errorf("after a power cut: %w", err)
	}
	if err := r.recover(newCrashDisk(torn)); err != nil {
		return fmt.Errorf("after a power cut: %w", err)
	}
	if _, err := r.sound(d.now); err != nil {
		return fmt.Errorf("as seen now: %w", err)
	}
	if lost {
		r.counts["sync lost"]++
		return r.afterLostSync(d)
	}
	r.counts["failed"]++
	if err := engineAbsorb(r.job(d)); err != nil {
		return fmt.Errorf("run again: %w", err)
	}
	if err := r.finished(d); err != nil {
		return fmt.Errorf("run again: %w", err)
	}
	if err := engineReclaim(d, r.child.size); err != nil {
		return fmt.Errorf("reclaim in the end: %w", err)
	}
	return r.finishedClean(d)
}

// afterLostSync: the page cache has, as if it were durable, what never got to the
// disk. The same job may fail then; when it says that all is done it must be.
func (r *faultRun) afterLostSync(d *crashDisk) error {
	if err := engineAbsorb(r.job(d)); err != nil {
		r.counts["refused after a lost sync"]++
		_, err = r.sound(d.durable)
		return err
	}
	if err := r.finished(d); err != nil {
		return fmt.Errorf("run again after a lost sync: %w", err)
	}
	return nil
}
