package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"

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
		return w.byCopy(why)
	}
	err = qcow2.InPlace(qcow2.OSFile{File: w.child}, string(w.job.NewName), string(w.job.NewFormat))
	if errors.Is(err, qcow2.ErrFallback) || errors.Is(err, qcow2.ErrNoRoom) {
		return w.byCopy(err.Error())
	}
	if err != nil {
		return chain.Effort{}, err
	}
	images, err := w.openImages()
	if err != nil {
		return chain.Effort{}, err
	}
	work, err := w.measure(ctx, images, away)
	if err != nil {
		return chain.Effort{}, err
	}
	copies, err := w.copying(away)
	if err != nil {
		return chain.Effort{}, err
	}
	up := chain.Effort{Bytes: work.Bytes(), Moves: moves(work, copies), Way: chain.InPlace}
	if w.job.Merge == nil || copies.Shares {
		return up, nil // with shared extents an absorb copies nothing at all
	}
	return w.cheaper(ctx, up, images)
}

// moves is how many bytes pass this host: all that the kernel cannot copy, as it
// has to be read through the chain or packed elsewhere, and the rest where it must.
func moves(work qcow2.Work, copies Copying) int64 {
	if copies.free() {
		return work.Bytes() - work.Data
	}
	return work.Bytes()
}

// cheaper is a merge downwards where that is possible and copies less.
func (w *rebase) cheaper(ctx context.Context, up chain.Effort, images []*qcow2.Image) (chain.Effort, error) {
	job := w.job.Merge
	child, err := qcow2.Open(qcow2.OSFile{File: w.child})
	if err != nil {
		return up, err
	}
	work, err := qcow2.MeasureDown(ctx, images[0], child)
	switch {
	case errors.Is(err, qcow2.ErrFallback):
		return up, nil
	case err != nil:
		return up, err
	case work.Bytes() >= up.Bytes, w.checkRoom(work, 1) != nil:
		return up, nil
	}
	if ok, err := w.mayMerge(job); err != nil || !ok {
		return up, err
	}
	copies, err := w.copying(1)
	if err != nil {
		return up, err
	}
	return chain.Effort{
		Bytes: work.Bytes(), Moves: moves(work, copies), Way: chain.MergeDown,
		Why: fmt.Sprintf("the other way it would be %s", chain.Size(up.Bytes)),
	}, nil
}

// mayMerge: both headers have room for the names, and nobody else has the parent
// open or knows it by another name.
func (w *rebase) mayMerge(job *chain.MergeJob) (bool, error) {
	hidden := chain.RelativeName(job.Child, job.Scratch)
	parent := w.layers[job.Parent]
	for f, name := range map[*os.File]chain.Path{w.child: hidden, parent: job.NewName} {
		err := qcow2.InPlace(qcow2.OSFile{File: f}, string(name), string(chain.QCOW2))
		if errors.Is(err, qcow2.ErrNoRoom) || errors.Is(err, qcow2.ErrFallback) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	st, err := stat(parent)
	if at, err := stat(w.dir); err != nil || at.Dev != st.Dev {
		return false, err // no link leads to another file system
	}
	if err != nil || st.Nlink != 1 || st.Ino != job.Identity.Inode {
		return false, err
	}
	use, err := useOf(parent)
	if err != nil || use.Locked || use.Writer {
		return false, err
	}
	return isAlone(parent)
}

// byCopy is what a rebase by a scratch copy takes at most. Before qemu-img absorbs,
// which always moves bytes, the child itself is copied.
func (w *rebase) byCopy(why string) (chain.Effort, error) {
	e := chain.Effort{Bytes: w.job.Bytes, Moves: w.job.Bytes, Way: chain.ByCopy, Why: why, AtMost: true}
	copies, err := w.copying(0)
	if err != nil || copies.free() {
		return e, err
	}
	st, err := stat(w.child)
	e.Moves += st.Blocks * 512
	return e, err
}
