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
	away, why, err := w.whyCopy()
	if err != nil || why != "" {
		return err
	}
	images, err := w.openImages()
	if err != nil {
		return err
	}
	work, err := w.measure(ctx, images, away)
	if err != nil {
		return err
	}
	if err := w.checkRoom(work, away); err != nil {
		return err
	}
	// Reading the tables took its time, and from here on our own writing hides
	// what others write.
	if err := w.checkStill(); err != nil {
		return err
	}
	child, err := w.openForWriting()
	if err != nil {
		return err
	}
	defer child.Close() // what was written was synced, or counts for nothing
	copies, err := w.copying(away)
	if err != nil {
		return err
	}
	job := qcow2.Job{
		Child: qcow2.OSFile{File: child}, Away: images[:away], Below: images[away:],
		Name: string(w.job.NewName), Format: string(w.job.NewFormat),
		Moving: qcow2.Moving{
			Verify: w.opts.Verify.wants(work.Bytes()), Progress: w.progress,
			Extended: w.checkUnread, Step: w.opts.Step, Unmoved: copies.free(),
		},
	}
	if w.limit != nil {
		job.Limit = w.wait
	}
	if _, err := qcow2.Absorb(ctx, job); err != nil {
		return w.failed(err)
	}
	return w.settle()
}

// whyCopy is why the child must not be changed in place, as far as that can be
// told without its tables; empty when it may.
func (w *rebase) whyCopy() (away int, why string, err error) {
	st, err := stat(w.child)
	if err != nil {
		return 0, "", err
	}
	away, ok := w.away()
	switch {
	case w.opts.ByCopy:
		why = "that was asked for"
	case !ok:
		why = "its new parent is not below it"
	case st.Nlink > 1:
		// The other name may be in another directory, where the new backing name
		// leads elsewhere. A copy takes the place of this one name.
		why = "it has another name, which must stay as it is"
	}
	return away, why, nil
}

// checkUnread: nobody opened the child while it was shorter than it is now. (A
// process that writes to it and takes no locks cannot be told from us any more.)
func (w *rebase) checkUnread() error {
	for _, base := range []int64{heldBase, unsharedBase} {
		locked, err := isLocked(w.child, base, permissions)
		if err != nil {
			return fmt.Errorf("look for users of %s: %w", w.job.Child, err)
		}
		if locked {
			return refuseInUse(w.job.Child, chain.Use{Locked: true, By: holder(w.child, 0)})
		}
	}
	if w.job.Unread != nil {
		return w.job.Unread()
	}
	return nil
}

// failed sorts the errors of an absorb that did not come to its end: nil for those
// that a copy may do better.
func (w *rebase) failed(err error) error {
	if errors.Is(err, qcow2.ErrSync) {
		w.stop(err)
		return err
	}
	if errors.Is(err, qcow2.ErrChanged) {
		return fmt.Errorf("%s: %w: %w", w.job.Child, chain.ErrChanged, err)
	}
	st, statErr := stat(w.child)
	if statErr == nil && st.Mtim != w.modified {
		if timesErr := w.setTimes(w.job.Child, w.child); timesErr != nil {
			return errors.Join(err, timesErr)
		}
		st, statErr = stat(w.child)
	}
	switch {
	case errors.Is(err, qcow2.ErrFallback), errors.Is(err, qcow2.ErrNoRoom):
		// What was linked before that changed the file, and reads the same.
		w.job.Identity = identityOf(&st)
		return statErr
	case errors.Is(err, qcow2.ErrVerify):
		return fmt.Errorf("%w: %w", chain.ErrVerify, err)
	}
	return w.damaged(err)
}

// damaged makes a refusal of an error that says what is wrong with an image.
func (w *rebase) damaged(err error) error {
	if !errors.Is(err, qcow2.ErrCorrupt) && !errors.Is(err, qcow2.ErrTruncated) {
		return err
	}
	return chain.Refuse(w.job.Child, "%s, or an image below it, is damaged (%v), and it cannot absorb anything; see qemu-img check, or restore it from another copy", w.job.Child, err)
}

// settle is what is left once the child durably stands on its new parent.
func (w *rebase) settle() error {
	if err := w.setTimes(w.job.Child, w.child); err != nil {
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
	f, err := openBelow(w.dir, w.job.Child, unix.O_RDWR)
	if err != nil {
		return nil, err
	}
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
		return work, w.damaged(fmt.Errorf("read the tables of %s and the images below it: %w", w.job.Child, err))
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
