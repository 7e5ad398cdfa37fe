package chain

import (
	"cmp"
	"context"
	"math"
)

// measure replaces the upper bounds of a plan by what its rebases take. Where that
// cannot be told the bound stays, and the error is the first that says why.
func (t *Tree) measure(ctx context.Context, plan *Plan) (first error) {
	for i := range plan.Steps {
		s := &plan.Steps[i]
		if s.Verb != StepRebase {
			continue
		}
		job, err := t.job(0, *s)
		if err != nil {
			first = cmp.Or(first, err)
			continue
		}
		// The real number comes later; this one makes the longest hidden name.
		job.Merge = t.mergeJob(math.MaxUint64, plan, *s)
		effort, err := t.cfg.Rebaser.Measure(ctx, job)
		if err != nil {
			t.cfg.Log.Debug("a rebase could not be measured", "image", s.Path, "err", err)
			first = cmp.Or(first, err)
			continue
		}
		s.Bytes, s.Moves, s.AtMost, s.Way, s.Why = effort.Bytes, effort.Moves, effort.AtMost, effort.Way, effort.Why
		if s.Merges = ""; s.Way == MergeDown {
			s.Merges = job.Merge.Parent
		}
	}
	return first
}
