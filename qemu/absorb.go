package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/qemu/qcow2"
	"golang.org/x/sys/unix"
)

// absorb does the job in place: package qcow2 moves what the child needs into it
// and names the new parent in its header. It leaves the job to be done by a copy
// where the child cannot be changed in place, or where images are to go away that
// are not the first ones below it.
func (w *rebase) absorb(ctx context.Context) error {
	away, ok := w.away()
	if !ok || w.opts.ByCopy {
		return nil
	}
	images, err := w.openImages()
	if err != nil {
		return err
	}
	child, err := w.openForWriting()
	if err != nil {
		return err
	}
	defer child.Close() // what was written was synced, or counts for nothing
	before, err := stat(w.child)
	if err != nil {
		return err
	}
	job := qcow2.Job{
		Child: qcow2.OSFile{File: child}, Away: images[:away], Below: images[away:],
		Name: string(w.job.NewName), Format: string(w.job.NewFormat),
		Moving: qcow2.Moving{Progress: w.progress, Step: w.opts.Step},
	}
	if w.limit != nil {
		job.Limit = w.wait
	}
	work, err := w.measure(ctx, images, away)
	if err != nil {
		return err
	}
	if err := w.checkRoom(work); err != nil {
		return err
	}
	job.Verify = w.opts.Verify.wants(work.Bytes())
	_, err = qcow2.Absorb(ctx, job)
	switch {
	case errors.Is(err, qcow2.ErrSync):
		w.stop(err)
		return err
	case err != nil:
		return w.refused(before.Mtim, err)
	}
	return w.settle(before.Mtim)
}

// refused sorts the errors of an absorb that came to nothing: nil for those that
// a copy may do better.
func (w *rebase) refused(modified unix.Timespec, err error) error {
	if st, statErr := stat(w.child); statErr == nil && st.Mtim != modified {
		err = errors.Join(err, w.setTimes(w.job.Child, modified))
	}
	switch {
	case errors.Is(err, qcow2.ErrFallback), errors.Is(err, qcow2.ErrNoRoom):
		return nil
	case errors.Is(err, qcow2.ErrCorrupt):
		return chain.Refuse(w.job.Child, "%s is damaged (%v) and cannot absorb anything; see qemu-img check, or restore it from another copy", w.job.Child, err)
	case errors.Is(err, qcow2.ErrVerify):
		return fmt.Errorf("%w: %w", chain.ErrVerify, err)
	}
	return err
}

// settle is what is left once the child durably stands on its new parent.
func (w *rebase) settle(modified unix.Timespec) error {
	if err := w.setTimes(w.job.Child, modified); err != nil {
		return err
	}
	if err := w.child.Sync(); err != nil {
		w.stop(err)
		return fmt.Errorf("sync %s: %w", w.job.Child, err)
	}
	// Another file that was put in its place meanwhile names the old parent.
	if err := w.checkNamed(w.job.Child, w.child); err != nil {
		return err
	}
	return errDone
}

// away is how many of the child's layers go away, when all that stay are the
// last ones.
func (w *rebase) away() (n int, ok bool) {
	j := &w.job
	n = len(j.Layers) - len(j.NewLayers)
	if n < 1 {
		return 0, false
	}
	for i, l := range j.NewLayers {
		if j.Layers[n+i].Path != l.Path {
			return 0, false
		}
	}
	return n, true
}

// openImages opens the child's layers, which checkLayers has locked.
func (w *rebase) openImages() ([]*qcow2.Image, error) {
	var images []*qcow2.Image
	for _, l := range w.job.Layers {
		open := qcow2.Open
		if l.Format == chain.Raw {
			open = qcow2.OpenRaw
		}
		im, err := open(qcow2.OSFile{File: w.layers[l.Path]})
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", l.Path, err)
		}
		images = append(images, im)
	}
	return images, nil
}

// openForWriting opens the child again. Its locks stay with the descriptor that
// reads: they keep every other writer out, and let readers in, which is right
// because the child reads the same at every moment.
func (w *rebase) openForWriting() (*os.File, error) {
	const flags = unix.O_RDWR | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	fd, err := unix.Openat(int(w.dir.Fd()), w.job.Child.Base(), flags, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s for writing: %w", w.job.Child, err)
	}
	f := os.NewFile(uintptr(fd), w.job.Child.Base())
	if err := w.checkNamed(w.job.Child, f); err != nil {
		f.Close()
		return nil, err
	}
	if err := w.checkNamed(w.job.Child, w.child); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (w *rebase) measure(ctx context.Context, images []*qcow2.Image, away int) (qcow2.Work, error) {
	child, err := qcow2.Open(qcow2.OSFile{File: w.child})
	if err != nil {
		return qcow2.Work{}, fmt.Errorf("open %s: %w", w.job.Child, err)
	}
	work, err := qcow2.Measure(ctx, child, images[:away], images[away:])
	if err != nil {
		return work, fmt.Errorf("read the tables of %s and the images below it: %w", w.job.Child, err)
	}
	return work, nil
}

// limitPiece is the most that is copied at once under a limit: qcow2 copies less.
const limitPiece = 4 << 20

// wait waits until n more bytes may be copied.
func (r *Rebaser) wait(ctx context.Context, n int64) error {
	for ; n > 0; n -= limitPiece {
		if err := r.limit.WaitN(ctx, int(min(n, limitPiece))); err != nil {
			return err
		}
	}
	return nil
}
