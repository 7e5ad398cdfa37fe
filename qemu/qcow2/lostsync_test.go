package qcow2

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// After a sync that failed the page cache has, as if it were durable, what never
// got to the disk. Reclaim comes first when chainfs is started again: what it frees
// must be free on the disk, too.
func TestReclaimAfterLostSync(t *testing.T) {
	needQemu(t)
	seed := testSeed(t)
	for i, s := range scenarios {
		if s.size == "12M" {
			continue // as others, and takes longer
		}
		t.Run(s.name, func(t *testing.T) {
			r := &faultRun{setting: s.make(t), rng: rngOf(seed + uint64(i)), counts: map[string]int{}}
			healthy := newFaults(fault{}, r.rng)
			if err := r.absorb(newCrashDisk(r.child), healthy); err != nil {
				t.Fatal(err)
			}
			for n := range healthy.calls[callSync] {
				for range 2 { // which sectors are lost is random
					if err := r.reclaimAfter(n + 1); err != nil {
						t.Fatalf("sync %d is lost: %v", n+1, err)
					}
				}
			}
		})
	}
}

func (r *faultRun) reclaimAfter(sync int) error {
	d, f := newCrashDisk(r.child), newFaults(fault{kind: callSync, n: sync, err: unix.EIO}, r.rng)
	if err := r.absorb(d, f); !lostSync(err) {
		return fmt.Errorf("got error %w", err)
	}
	f.heal()
	if err := engineReclaim(d, r.child.size); err != nil {
		return fmt.Errorf("reclaim: %w", err)
	}
	if _, err := r.sound(d.durable); err != nil {
		return fmt.Errorf("after reclaim: %w", err)
	}
	return r.recover(d)
}

// The same for merges downwards, in which entries lead from one cluster to another.
func TestReclaimAfterLostSyncOfMerge(t *testing.T) {
	rng := dice(t)
	for _, s := range mergeable(t, rng) {
		count := newFaults(fault{}, rng)
		if err := s.downOn(t, context.Background(), faultyFile{newCrashDisk(contentOf(s.layers[0])), count}); err != nil {
			t.Fatal(err)
		}
		for n := range count.calls[callSync] {
			for range 2 {
				s.about = fmt.Sprintf("sync %d is lost", n+1)
				d := newCrashDisk(contentOf(s.layers[0]))
				f := newFaults(fault{kind: callSync, n: n + 1, err: unix.EIO}, rng)
				if err := s.downOn(t, context.Background(), faultyFile{d, f}); !lostSync(err) {
					t.Fatalf("%s: %s: got error %v", s.name, s.about, err)
				}
				if err := Reclaim(context.Background(), d, 0); err != nil {
					t.Fatalf("%s: %s: reclaim: %v", s.name, s.about, err)
				}
				s.sound(t, d.durable.bytes(), true)
				s.childReads(t, d.durable.bytes())
				s.complete(t, d.durable.bytes())
			}
		}
	}
}

// What was linked in part when a write fails, or the context ends, is not durable
// when its leftovers are freed. The power may go just then.
func TestPowerCutsWhileGivingBack(t *testing.T) {
	rng := dice(t)
	for _, s := range mergeable(t, rng) {
		count := newFaults(fault{}, rng)
		if err := s.downOn(t, context.Background(), faultyFile{newCrashDisk(contentOf(s.layers[0])), count}); err != nil {
			t.Fatal(err)
		}
		for range 4 {
			d := newCrashDisk(contentOf(s.layers[0]))
			f := newFaults(fault{kind: callWrite, n: 1 + rng.IntN(count.calls[callWrite]), err: unix.EIO, short: rng.IntN(2) == 0}, rng)
			if err := s.downOn(t, context.Background(), faultyFile{d, f}); err == nil || lostSync(err) {
				t.Fatalf("%s: %v: got error %v", s.name, f, err)
			}
			whole := cutsOf(d)
			for _, p := range whole.list(20, rng) {
				s.about = fmt.Sprintf("%v, power cut %v", f.fault, p)
				left := whole.after(p, rng).bytes()
				s.sound(t, left, true)
				s.childReads(t, left)
				s.complete(t, left)
			}
		}
	}
}

func (s *scene) downOn(t *testing.T, ctx context.Context, f File) error {
	t.Helper()
	child, err := Open(&disk{data: s.child})
	if err != nil {
		t.Fatal(err)
	}
	_, err = MergeDown(ctx, MergeJob{Parent: f, Child: child, Moving: Moving{Verify: true}})
	if errors.Is(err, ErrFallback) {
		t.Fatal(err)
	}
	return err
}
