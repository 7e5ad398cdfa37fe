package qcow2

import (
	"context"
	"flag"
	"math/rand/v2"
	"testing"
)

var cuts = flag.Int("cuts", 1500, "power cuts that are simulated")

// dice are the random numbers of a test, by a seed that is logged.
func dice(t *testing.T) *rand.Rand { return rngOf(testSeed(t)) }

// TestPowerCuts cuts the power at any moment of an absorb. Of what was written
// since the last sync each sector of 512 bytes made it to the disk or did not.
// The child reads as before through the parent that its header names, nothing is
// corrupt, and what leaked comes back with the recovery.
func TestPowerCuts(t *testing.T) {
	rng := dice(t)
	all := scenes(t, rng)
	done, seen := 0, 0
	for i := range all {
		s := &all[i]
		d := &disk{data: append([]byte{}, s.child...)}
		s.reads(t, d.data)
		if _, err := Absorb(context.Background(), s.job(t, d, true)); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		if !s.reads(t, d.data) {
			t.Fatalf("%s: not done", s.name)
		}
		s.sound(t, d.data, false)
		s.qemuAgrees(t, d.data, false)
		for n := range *cuts / len(all) {
			if s.powerCut(t, d.log, n, rng) {
				done++
			}
			seen++
		}
	}
	t.Logf("%d power cuts; the new parent was named after %d", seen, done)
	if done == 0 || done == seen {
		t.Error("the cuts were not at all moments")
	}
}

func (s *scene) powerCut(t *testing.T, log []event, n int, rng *rand.Rand) (done bool) {
	t.Helper()
	keep := []float64{0, 1, 0.5, 0.05, 0.95}[n%5]
	at := rng.IntN(len(log) + 1)
	if n%3 == 0 { // the last steps are few and matter most
		at = len(log) - rng.IntN(min(len(log), 12))
	}
	data := cut(s.child, log, at, keep, rng)
	done = s.reads(t, data)
	s.sound(t, data, true)
	if n%50 == 0 {
		s.qemuAgrees(t, data, true)
	}
	after := s.completes(t, data)
	if n%50 == 0 {
		s.qemuAgrees(t, after, false)
	}
	return done
}
