package qcow2

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"testing"
)

var cutsFlag = flag.Int("cuts", 1500, "how many power cuts TestPowerCuts makes, over all scenarios")

// Wherever the power goes: the child reads the same through the parent that it
// names, and after Reclaim the same job comes to its end and leaves no leak.
func TestPowerCuts(t *testing.T) {
	needQemu(t)
	seed := testSeed(t)
	for i, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			r := &cutRun{setting: s.make(t), rng: rngOf(seed + uint64(i)), counts: map[string]int{}}
			r.cut(*cutsFlag/len(scenarios) + 1)
			t.Logf("%v", r.counts)
		})
	}
}

// cutRun is one scenario, cut off again and again.
type cutRun struct {
	*setting
	rng    *rand.Rand
	counts map[string]int
}

// oneIn decides at random what is not done for each cut because it is slow.
func (r *cutRun) oneIn(n int) bool { return r.rng.IntN(n) == 0 }

func (r *cutRun) cut(n int) {
	r.t.Helper()
	whole := cutsOf(r.absorbed())
	r.counts["events"], r.counts["syncs"] = len(whole.events), len(whole.ends)-1
	for _, p := range whole.list(n, r.rng) {
		left := whole.after(p, r.rng)
		if err := r.survive(left); err != nil {
			r.t.Fatalf("power cut %v: %v", p, err)
		}
		r.counts["keep "+string(p.keep)]++
	}
	for _, must := range []string{"old parent", "new parent", "cut again", "by QEMU"} {
		if r.counts[must] == 0 && n > 50 {
			r.t.Errorf("of %d cuts none was %q", n, must)
		}
	}
}

// survive looks at what a cut left, and has the job done once more. That may be cut
// off as well.
func (r *cutRun) survive(left *content) error {
	if err := r.look(left); err != nil {
		return err
	}
	d := newCrashDisk(left)
	if err := r.recover(d); err != nil {
		return err
	}
	if !r.oneIn(8) {
		return nil
	}
	again := cutsOf(d)
	for range 3 {
		p := again.list(2*len(again.ends)+1, r.rng)
		last := p[r.rng.IntN(len(p))]
		left := again.after(last, r.rng)
		r.counts["cut again"]++
		if err := r.look(left); err != nil {
			return fmt.Errorf("cut again %v: %w", last, err)
		}
		if err := r.recover(newCrashDisk(left)); err != nil {
			return fmt.Errorf("cut again %v: %w", last, err)
		}
	}
	return nil
}

// look is nil when the image is sound, now and then by QEMU too.
func (r *cutRun) look(left *content) error {
	renamed, err := r.sound(left)
	if err != nil {
		return err
	}
	if renamed {
		r.counts["new parent"]++
	} else {
		r.counts["old parent"]++
	}
	if r.counts["by QEMU"] > 0 && !r.oneIn(200) {
		return nil
	}
	r.counts["by QEMU"]++
	return r.lookByQemu(left)
}

// lookByQemu has qemu-img check and read it, with its parents beside it.
func (s *setting) lookByQemu(left *content) error {
	s.write("cut", left.bytes())
	if out, err := s.try("qemu-img", "check", "-f", "qcow2", "cut"); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 3 { // 3: leaks, and nothing worse
			return fmt.Errorf("qemu-img check: %w\n%s", err, out)
		}
	}
	if err := firstDifference(s.raw("cut"), s.guest); err != nil {
		return fmt.Errorf("for qemu-img it %w", err)
	}
	return nil
}

// recover is what comes after a crash: what was stored and is not used is freed,
// and the job is run again.
func (s *setting) recover(d *crashDisk) error {
	if err := engineReclaim(d, s.child.size); err != nil {
		return fmt.Errorf("reclaim: %w", err)
	}
	if err := engineAbsorb(s.job(d)); err != nil {
		return fmt.Errorf("absorb again: %w", err)
	}
	return s.finishedClean(d)
}
