package chain

import (
	"context"
	"math"
)

// measure replaces the upper bounds of a plan by what its rebases take. Where
// that cannot be told the bound stays, and the rebase will say what is wrong.
func (t *Tree) measure(ctx context.Context, plan *Plan) {
	for i := range plan.Steps {
		s := &plan.Steps[i]
		if s.Verb != StepRebase {
			continue
		}
		job, err := t.job(0, *s)
		if err != nil {
			continue
		}
		// The real number comes later; this one makes the longest hidden name.
		job.Merge = t.mergeJob(math.MaxUint64, plan, *s)
		effort, err := t.cfg.Rebaser.Measure(ctx, job)
		if err != nil {
			t.cfg.Log.Debug("a rebase could not be measured", "image", s.Path, "err", err)
			continue
		}
		s.Bytes, s.AtMost, s.Way, s.Why = effort.Bytes, effort.AtMost, effort.Way, effort.Why
		if s.Merges = ""; s.Way == MergeDown {
			s.Merges = job.Merge.Parent
		}
	}
}
