package qemu

import (
	"context"
	"errors"
	"fmt"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/qemu/qcow2"
	"golang.org/x/sys/unix"
)

// Recover gives back what a rebase of the child that was cut off had stored in it
// and not made use of. before is the file as it was then. An image that is in use,
// or was replaced, is left as it is: what leaked costs space and no data.
func (r *Rebaser) Recover(ctx context.Context, child chain.Path, before chain.Identity) error {
	w := r.newRebase(chain.RebaseJob{Child: child}, nil)
	defer w.close()
	err := w.each(ctx, w.stoppedBefore, w.openChild, w.lockChild)
	if err == nil {
		err = w.reclaim(ctx, before)
	}
	if err != nil {
		return fmt.Errorf("give back what an interrupted rebase left in %s: %w", child, err)
	}
	return nil
}

func (w *rebase) reclaim(ctx context.Context, before chain.Identity) error {
	st, err := stat(w.child)
	if err != nil || st.Ino != before.Inode {
		return err // another file
	}
	f, err := w.openForWriting()
	if err != nil {
		return err
	}
	defer f.Close() // Reclaim has synced
	if err := qcow2.Reclaim(ctx, qcow2.OSFile{File: f}, before.Size); err != nil {
		if errors.Is(err, qcow2.ErrSync) {
			w.stop(err)
		}
		return err
	}
	// A power cut can lose a file's new size and time, and keep counts that were written.
	if st, err = stat(w.child); err != nil || identityOf(&st).SameContent(before) {
		return err
	}
	w.modified = unix.NsecToTimespec(before.MTime)
	if err := w.settle(); !errors.Is(err, errDone) {
		return err
	}
	return nil
}
