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

func (w *rebase) openChild(context.Context) error {
	dir, err := w.files.OpenDir(w.job.Child.Dir())
	if err != nil {
		return fmt.Errorf("open directory %s: %w", w.job.Child.Dir(), err)
	}
	w.dir = dir
	if w.child, err = openBelow(dir, w.job.Child, unix.O_RDONLY); err != nil {
		return err
	}
	st, err := stat(w.child)
	if err != nil {
		return err
	}
	w.atime, w.modified = st.Atim, st.Mtim
	if w.header, err = (Inspector{}).Inspect(w.child, st.Size); err != nil {
		return fmt.Errorf("read the header of %s: %w", w.job.Child, err)
	}
	return nil
}

func stat(f *os.File) (st unix.Stat_t, err error) {
	if err = unix.Fstat(int(f.Fd()), &st); err != nil {
		err = fmt.Errorf("stat %s: %w", chain.Printable(f.Name()), err)
	}
	return st, err
}

func identityOf(st *unix.Stat_t) chain.Identity {
	return chain.Identity{Inode: st.Ino, Size: st.Size, MTime: st.Mtim.Nano(), CTime: st.Ctim.Nano()}
}

// acceptDone ends the job when an earlier run, which was cut off or forgotten,
// did all of it. The identity is not asked for: that run changed it.
func (w *rebase) acceptDone(context.Context) error {
	if !w.standsOnTarget(w.header) {
		return nil
	}
	if w.job.NewName != "" {
		if err := w.checkName(w.job.Child, w.job.NewName, w.job.NewParent); err != nil {
			return err
		}
	}
	if err := w.confirm(); err != nil {
		return err
	}
	if err := w.syncReplaced(w.child); err != nil {
		return err
	}
	return errDone
}

// confirm makes the header durable that names the new parent. The run that wrote
// it may have met an error of its sync: then the kernel has it, and the disk not.
func (w *rebase) confirm() error {
	f, err := w.openForWriting()
	if err != nil {
		return err
	}
	defer f.Close() // SetBacking syncs
	err = qcow2.SetBacking(qcow2.OSFile{File: f}, string(w.job.NewName), string(w.job.NewFormat))
	if errors.Is(err, qcow2.ErrSync) {
		w.stop(err)
	}
	// What was written is what was there, so the file is as old as it was.
	return errors.Join(err, futimens(w.child, w.atime, w.modified))
}

func (w *rebase) standsOnTarget(h chain.Header) bool {
	if h.Format != chain.QCOW2 || h.Trouble != "" || h.Backing != w.job.NewName {
		return false
	}
	return w.job.NewName == "" || h.BackingFormat == w.job.NewFormat
}

// lockChild keeps every qemu from writing to the child, and refuses when one has
// it open, be it for reading: a reader could turn into a writer of the file that
// is about to lose its name ("block-commit").
func (w *rebase) lockChild(context.Context) error {
	err := LockImage(w.child)
	if err != nil && !errors.Is(err, ErrLocked) {
		return fmt.Errorf("lock %s: %w", w.job.Child, err)
	}
	if refused := w.checkUnused(); refused != nil || err == nil {
		return refused
	}
	// Whoever it was is gone by now; the lock was not taken all the same.
	return refuseInUse(w.job.Child, chain.Use{Locked: true})
}

func (w *rebase) checkUnused() error {
	use, err := useOf(w.child)
	if err != nil {
		return fmt.Errorf("look for users of %s: %w", w.job.Child, err)
	}
	if use.Locked || use.Writer {
		return refuseInUse(w.job.Child, use)
	}
	return nil
}

func refuseInUse(p chain.Path, use chain.Use) error {
	by := use.By
	switch {
	case by == "" && use.Locked:
		by = "a qemu process"
	case by == "":
		by = "a process"
	}
	how := "reading"
	if use.Writer {
		how = "writing"
	}
	return chain.Refuse(p, "%s is open for %s by %s; try again when that has ended", p, how, by)
}

func (w *rebase) checkIdentity(context.Context) error {
	st, err := stat(w.child)
	if err != nil {
		return err
	}
	if identityOf(&st) != w.job.Identity {
		return fmt.Errorf("%s: %w", w.job.Child, chain.ErrChanged)
	}
	return nil
}

// checkStill: nobody wrote to the child or changed its attributes, no process has
// opened it, and its name still leads to it.
func (w *rebase) checkStill() error {
	if err := w.checkIdentity(context.Background()); err != nil {
		return err
	}
	if err := w.checkNamed(w.job.Child, w.child); err != nil {
		return err
	}
	return w.checkUnused()
}

// checkUnchanged: the child is the one that was copied, and the scratch's name
// leads to the copy that was verified.
func (w *rebase) checkUnchanged() error {
	if err := w.checkNamed(w.job.Scratch, w.scratch); err != nil {
		return err
	}
	return w.checkStill()
}

// checkNamed: p, beside the child, leads to f.
func (w *rebase) checkNamed(p chain.Path, f *os.File) error {
	var named unix.Stat_t
	if err := unix.Fstatat(int(w.dir.Fd()), p.Base(), &named, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("stat %s: %w", p, err)
	}
	opened, err := stat(f)
	if err != nil {
		return err
	}
	if named.Ino != opened.Ino || named.Dev != opened.Dev {
		return fmt.Errorf("%s: %w", p, chain.ErrChanged)
	}
	return nil
}

// checkChild: it is an image that a rebase leaves whole.
func (w *rebase) checkChild(context.Context) error {
	st, err := stat(w.child)
	if err != nil {
		return err
	}
	// Read again, now that it is locked.
	if w.header, err = (Inspector{}).Inspect(w.child, st.Size); err != nil {
		return fmt.Errorf("read the header of %s: %w", w.job.Child, err)
	}
	switch {
	case w.header.Format != chain.QCOW2:
		return chain.Refuse(w.job.Child, "%s is not a qcow2 image", w.job.Child)
	case w.header.Trouble != "":
		return refuseTrouble(w.job.Child, w.header)
	case w.header.Pinned != "":
		return chain.Refuse(w.job.Child, "%s %s; it cannot be rebased", w.job.Child, w.header.Pinned)
	}
	w.sizes, err = qcow2.ReadHeader(w.child, st.Size)
	if err != nil {
		return fmt.Errorf("read the header of %s: %w", w.job.Child, err)
	}
	return nil
}

func refuseTrouble(p chain.Path, h chain.Header) error {
	return chain.Refuse(p, "%s %s; it cannot take part in a rebase", p, h.Trouble)
}
