package qemu

import (
	"context"
	"errors"
	"fmt"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/qemu/qcow2"
)

// Measure tells what a job would take. It reads tables and changes nothing; who
// uses the images is not asked.
func (r *Rebaser) Measure(ctx context.Context, job chain.RebaseJob) (chain.Effort, error) {
	w := r.newRebase(job, nil)
	defer w.close()
	e, err := w.effort(ctx)
	if err != nil {
		return e, fmt.Errorf("measure the rebase of %s onto %s: %w", job.Child, target(job), err)
	}
	return e, nil
}

func (w *rebase) effort(ctx context.Context) (chain.Effort, error) {
	w.look = true
	if err := w.each(ctx, w.checkJob, w.openChild, w.checkChild); err != nil {
		return chain.Effort{}, err
	}
	if w.standsOnTarget(w.header) {
		return chain.Effort{Way: chain.InPlace, Why: "it stands there already"}, nil
	}
	if err := w.checkLayers(ctx); err != nil {
		return chain.Effort{}, err
	}
	away, why, err := w.whyCopy()
	if err != nil {
		return chain.Effort{}, err
	}
	if why != "" {
		return w.byCopy(why), nil
	}
	err = qcow2.InPlace(qcow2.OSFile{File: w.child}, string(w.job.NewName), string(w.job.NewFormat))
	if errors.Is(err, qcow2.ErrFallback) || errors.Is(err, qcow2.ErrNoRoom) {
		return w.byCopy(err.Error()), nil
	}
	if err != nil {
		return chain.Effort{}, err
	}
	images, err := w.openImages()
	if err != nil {
		return chain.Effort{}, err
	}
	work, err := w.measure(images, away)
	if err != nil {
		return chain.Effort{}, err
	}
	return chain.Effort{Bytes: work.Bytes(), Way: chain.InPlace}, nil
}

// byCopy is what a rebase by a scratch copy takes at most.
func (w *rebase) byCopy(why string) chain.Effort {
	return chain.Effort{Bytes: w.job.Bytes, Way: chain.ByCopy, Why: why, AtMost: true}
}
