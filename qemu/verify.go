package qemu

import (
	"context"
	"fmt"

	"github.com/chainfs/chainfs/chain"
)

// rebaseScratch has qemu-img absorb into the scratch what it will not read from
// below any more, and re-point it.
func (w *rebase) rebaseScratch(ctx context.Context) error {
	w.opts.Step("REBASE:COPIED")
	args := []string{"rebase", "-p", "-f", "qcow2"}
	if w.job.NewName != "" {
		args = append(args, "-F", string(w.job.NewFormat))
	}
	args = append(args, "-b", string(w.job.NewName), "./"+w.job.Scratch.Base())
	code, err := w.qemuImg(ctx, args...)
	if err != nil {
		return err
	}
	if code.status != 0 {
		return code.error()
	}
	return nil
}

// checkScratch does not take qemu-img's word for it.
func (w *rebase) checkScratch(context.Context) error {
	w.opts.Step("REBASE:REBASED")
	st, err := stat(w.scratch)
	if err != nil {
		return err
	}
	h, err := Inspector{}.Inspect(w.scratch, st.Size)
	switch {
	case err != nil:
		return fmt.Errorf("read the header of %s: %w", w.job.Scratch, err)
	case !w.standsOnTarget(h):
		return fmt.Errorf("after the rebase %s names %q as %q (%s): %w", w.job.Scratch, h.Backing, h.BackingFormat, h.Trouble, chain.ErrVerify)
	case h.VirtualSize != w.header.VirtualSize:
		// compare takes a longer image for the same when zeros follow.
		return fmt.Errorf("after the rebase %s has %d bytes, was %d: %w", w.job.Scratch, h.VirtualSize, w.header.VirtualSize, chain.ErrVerify)
	}
	return nil
}

// compare reads both images as their guests would.
func (w *rebase) compare(ctx context.Context) error {
	code, err := w.qemuImg(ctx, "compare", "-f", "qcow2", "-F", "qcow2", "./"+w.job.Child.Base(), "./"+w.job.Scratch.Base())
	switch {
	case err != nil:
		return err
	case code.status == 1: // 2 and above: they could not be compared
		return fmt.Errorf("%w: %w", chain.ErrVerify, code.error())
	case code.status != 0:
		return code.error()
	}
	return nil
}

// The exit statuses of "qemu-img check".
const (
	checkFine    = 0
	checkCorrupt = 2
	checkLeaks   = 3 // and no corruption
)

// checkRefcounts has qemu-img look for corruption that a guest does not read yet
// but that the next write would cause. Leaked clusters are accepted: they waste
// space and harm nothing, and the child may have had them before.
func (w *rebase) checkRefcounts(ctx context.Context) error {
	code, err := w.qemuImg(ctx, "check", "-f", "qcow2", "./"+w.job.Scratch.Base())
	switch {
	case err != nil:
		return err
	case code.status == checkFine, code.status == checkLeaks:
		return nil
	case code.status == checkCorrupt:
		return fmt.Errorf("%w: %w", chain.ErrVerify, code.error())
	}
	return code.error()
}
