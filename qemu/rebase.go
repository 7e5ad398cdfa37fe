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

// rebase is one job under way.
type rebase struct {
	*Rebaser
	job      chain.RebaseJob
	look     bool // nothing is changed or locked: it is only measured
	progress func(done, total int64)

	dir      *os.File // the child's directory
	child    *os.File // the child as it was, locked from lockChild on
	header   chain.Header
	atime    unix.Timespec               // when the child was last read by others than us
	modified unix.Timespec               // and written to
	sizes    *qcow2.Header               // the same header's numbers
	layers   map[chain.Path]*os.File     // the layers below it, old and new, locked
	read     map[chain.Path]chain.Header // their headers
	mounts   mounts
	scratch  *os.File // open since before the first write to it; see syncScratch
}

// errDone ends the steps early: nothing is left to do.
var errDone = errors.New("done")

// run is the whole of a rebase.
func (w *rebase) run(ctx context.Context) error {
	err := w.each(ctx,
		w.stoppedBefore,
		w.checkJob,
		w.openChild,
		w.lockChild,
		w.acceptDone,
		w.checkIdentity,
		w.checkChild,
		w.checkLayers,
		w.absorb, // most jobs end here; what follows is the way by a copy
		w.createScratch,
		w.copyChild,
		w.rebaseScratch,
		w.checkScratch,
		w.compare,
		w.checkRefcounts,
		w.copyAttributes,
		w.syncScratch,
	)
	if errors.Is(err, errDone) {
		return nil
	}
	if err == nil {
		err = w.replaceChild()
	}
	if err != nil {
		return errors.Join(err, w.removeScratch())
	}
	return w.syncReplaced(w.scratch)
}

func (w *rebase) each(ctx context.Context, steps ...func(context.Context) error) error {
	for _, step := range steps {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := step(ctx); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (w *rebase) stoppedBefore(context.Context) error { return w.stopped() }

// checkJob catches a broken caller before anything is touched.
func (w *rebase) checkJob(context.Context) error {
	j := &w.job
	switch {
	case j.Scratch.Dir() != j.Child.Dir(), !chain.IsScratch(j.Scratch.Base()):
		return fmt.Errorf("scratch name %s is not one beside the child", j.Scratch)
	case hasProtocol(string(j.NewName)):
		return chain.Refuse(j.Child, "%s would have to name its parent as %s, which qemu does not take for a path; rename the parent", j.Child, j.NewName)
	case j.NewName != "" && !handled(j.NewFormat):
		return fmt.Errorf("format %q of the new parent", j.NewFormat)
	case len(j.NewName) > 1023:
		return chain.Refuse(j.Child, "%s would have to name its parent with %d bytes, and a header has room for 1023; shorten the path", j.Child, len(j.NewName))
	}
	return nil
}

// replaceChild looks at the child a last time and puts the scratch in its place.
func (w *rebase) replaceChild() error {
	w.opts.Step("REBASE:RENAME")
	if err := w.checkUnchanged(); err != nil {
		return err
	}
	dir := int(w.dir.Fd())
	// COMMIT POINT: until this rename the child is as it was and recovery throws
	// the scratch away; after it the child stands on its new parent. Both read the
	// same, and the scratch is durable already.
	if err := unix.Renameat(dir, w.job.Scratch.Base(), dir, w.job.Child.Base()); err != nil {
		return fmt.Errorf("rename %s over %s: %w", w.job.Scratch, w.job.Child, err)
	}
	return nil
}

// syncReplaced makes the name of the rebased child durable. Only then the old
// parent may go.
//
// The file itself is synced last, although nothing of it is dirty: XFS answers
// an fsync of a directory with success after it has shut down, and only that of
// a file with an error (Linux 6.18, seen in TestRebaseThroughPowerCut). A file
// system that is alive after the directory's fsync was alive during it.
func (w *rebase) syncReplaced(child *os.File) error {
	w.opts.Step("REBASE:RENAMED")
	if err := w.dir.Sync(); err != nil {
		w.stop(err)
		return fmt.Errorf("sync directory %s: %w", w.job.Child.Dir(), err)
	}
	if err := child.Sync(); err != nil {
		w.stop(err)
		return fmt.Errorf("sync %s: %w", w.job.Child, err)
	}
	w.opts.Step("REBASE:SYNCED")
	return nil
}

// close lets all locks go. What was written was synced before or is thrown away.
func (w *rebase) close() {
	w.mounts.close()
	for _, f := range w.layers {
		f.Close()
	}
	for _, f := range []*os.File{w.scratch, w.child, w.dir} {
		if f != nil {
			f.Close()
		}
	}
}
