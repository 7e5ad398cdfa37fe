package chain

import (
	"context"
	"slices"
)

// ReclaimNow does all that the reclaimer has to do, in this goroutine and without
// waiting for quiet, and returns the first error. What is kept stays.
func (t *Tree) ReclaimNow(ctx context.Context) error {
	r := t.reclaim
	r.refresh()
	for _, j := range slices.Clone(r.jobs) {
		if j.Status == Cancelled {
			continue
		}
		delete(r.unfinished, j.Op)
		err := r.work(ctx, j)
		r.ended(ctx, j, err)
		if err != nil {
			return err
		}
	}
	return nil
}
