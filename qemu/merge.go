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

// MergeLabels are the points of a merge downwards, in order. Those of the engine
// (qcow2.Labels without the last two) come behind MERGE:UNLINKED, and those of a
// copy from REBASE:VERIFIED on at the end.
var MergeLabels = []string{
	"MERGE:LINK",     // the parent is about to get its hidden name
	"MERGE:LINKED",   // it durably has it; headers are about to be rewritten
	"MERGE:NAMED",    // the child names the hidden name; the parent's own is about to go
	"MERGE:UNLINKED", // it is durably gone; clusters are about to be moved
}

// merge is a merge downwards under way. What a rebase calls the scratch is here
// the parent itself, by its hidden name.
type merge struct {
	*rebase
	merge chain.MergeJob
	dir   *os.File       // the parent's directory
	again bool           // an earlier run was cut off
	named chain.Identity // the child once it names the hidden name
}

// MergeDown is chain.Rebaser's. The steps, each of which finds what an earlier run
// did:
//
//	lock     nobody else has the child or the parent open
//	link     the parent gets a hidden name beside the child
//	name     the parent's backing name becomes one that is right in both directories,
//	         and then the child names the hidden name
//	unlink   the parent's own name goes: DELETED, from here on only forward
//	merge    the parent takes the child's clusters
//	replace  the hidden name is renamed over the child: COMMIT POINT
//
// At every instant the child's name leads to a chain that reads as before.
func (r *Rebaser) MergeDown(ctx context.Context, job chain.MergeJob, progress func(done, total int64)) error {
	m := &merge{merge: job, rebase: r.newRebase(chain.RebaseJob{
		Op: job.Op, Child: job.Child, Scratch: job.Scratch, NewParent: job.Parent,
	}, progress)}
	defer m.close()
	if err := m.run(ctx); err != nil {
		return fmt.Errorf("merge %s down into %s: %w", job.Child, job.Parent, err)
	}
	return nil
}

func (m *merge) run(ctx context.Context) error {
	if err := m.each(ctx, m.stoppedBefore, m.openDirs, m.openChild); err != nil {
		return err
	}
	m.modified = unix.NsecToTimespec(m.merge.Before.MTime)
	if st, err := stat(m.child); err != nil || st.Ino == m.merge.Identity.Inode {
		return errors.Join(err, m.replaced())
	}
	err := m.each(ctx, m.lockChild, m.checkChild, m.checkStands, m.link, m.lockParent, m.name)
	if err != nil {
		return m.undo(err)
	}
	if err := m.unlinkParent(ctx); err != nil {
		return m.undo(err)
	}
	err = m.each(ctx, m.checkOneName, m.move, m.copyAttributes, m.syncScratch, m.checkUnneeded)
	if err == nil {
		err = m.replaceChild()
	}
	if err == nil {
		err = m.syncReplaced(m.scratch)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", chain.ErrUnfinished, err)
	}
	return nil
}

// checkStands: the child stands on the parent, by its own name or by the hidden one.
func (m *merge) checkStands(context.Context) error {
	r, err := m.files.Resolve(m.job.Child.Dir(), string(m.header.Backing))
	if err != nil {
		return fmt.Errorf("resolve %s in %s: %w", m.header.Backing, m.job.Child, err)
	}
	if r.External || r.Path != m.merge.Parent && r.Path != m.job.Scratch {
		return fmt.Errorf("%s does not stand on %s: %w", m.job.Child, m.merge.Parent, chain.ErrChanged)
	}
	return nil
}

func (m *merge) openDirs(context.Context) (err error) {
	if m.dir, err = m.files.OpenDir(m.merge.Parent.Dir()); err != nil {
		return fmt.Errorf("open directory %s: %w", m.merge.Parent.Dir(), err)
	}
	return nil
}

func (m *merge) close() {
	m.rebase.close()
	if m.dir != nil {
		m.dir.Close()
	}
}

// has reports whether a name in dir leads to the parent. Another file of that name
// is none of ours.
func (m *merge) has(dir *os.File, base string) (bool, error) {
	var st unix.Stat_t
	err := unix.Fstatat(int(dir.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil && st.Ino == m.merge.Identity.Inode, err
}

// link gives the parent its hidden name, durably.
func (m *merge) link(context.Context) error {
	m.opts.Step("MERGE:LINK")
	there, err := m.has(m.rebase.dir, m.job.Scratch.Base())
	if m.again = there; err != nil || there {
		return err
	}
	if named, err := m.has(m.dir, m.merge.Parent.Base()); err != nil || !named {
		return errors.Join(err, fmt.Errorf("%s: %w", m.merge.Parent, chain.ErrChanged))
	}
	err = unix.Linkat(int(m.dir.Fd()), m.merge.Parent.Base(), int(m.rebase.dir.Fd()), m.job.Scratch.Base(), 0)
	if err != nil {
		return fmt.Errorf("link %s to %s: %w", m.merge.Parent, m.job.Scratch, err)
	}
	return m.syncDir(m.rebase.dir, m.child)
}

// syncDir makes a directory's entries durable; see syncReplaced for the file.
func (m *merge) syncDir(dir, file *os.File) error {
	for _, f := range []*os.File{dir, file} {
		if err := f.Sync(); err != nil {
			m.stop(err)
			return fmt.Errorf("sync %s: %w", chain.Printable(f.Name()), err)
		}
	}
	return nil
}

// lockParent opens the parent by its hidden name, and refuses while anybody else
// has it open, be it for reading: from the merge on it does not read as before.
func (m *merge) lockParent(context.Context) error {
	f, err := openBelow(m.rebase.dir, m.job.Scratch, unix.O_RDWR)
	if err != nil {
		return err
	}
	m.scratch = f
	if err := m.checkNamed(m.job.Scratch, m.scratch); err != nil {
		return err
	}
	if err := LockImage(m.scratch); err != nil {
		if errors.Is(err, ErrLocked) {
			return refuseInUse(m.merge.Parent, chain.Use{Locked: true, Writer: true})
		}
		return fmt.Errorf("lock %s: %w", m.merge.Parent, err)
	}
	return m.checkAlone()
}

func (m *merge) checkAlone() error {
	use, err := useOf(m.scratch)
	if err != nil {
		return fmt.Errorf("look for users of %s: %w", m.merge.Parent, err)
	}
	alone, err := isAlone(m.scratch)
	if err != nil {
		return err
	}
	if use.Locked || !alone {
		return refuseInUse(m.merge.Parent, use)
	}
	return nil
}

// name rewrites the backing names, first the parent's and then the child's.
func (m *merge) name(context.Context) error {
	m.opts.Step("MERGE:LINKED")
	if err := m.nameParents(); err != nil {
		return fmt.Errorf("name the parent of %s: %w", m.merge.Parent, err)
	}
	f, err := m.openForWriting()
	if err != nil {
		return err
	}
	defer f.Close() // setBacking synced it
	hidden := chain.RelativeName(m.job.Child, m.job.Scratch)
	if err := m.setBacking(qcow2.OSFile{File: f}, string(hidden), string(chain.QCOW2)); err != nil {
		return err
	}
	st, err := stat(m.child)
	m.named = identityOf(&st)
	return err
}

// nameParents gives the parent the backing name that is right in both directories.
// Once its own name is gone that was done, and it may stand on another image since:
// the one that it stood on may have been deleted.
func (m *merge) nameParents() error {
	named, err := m.has(m.dir, m.merge.Parent.Base())
	if err != nil || !named {
		return err
	}
	st, err := stat(m.scratch)
	if err != nil {
		return err
	}
	h, err := Inspector{}.Inspect(m.scratch, st.Size)
	if err != nil {
		return err
	}
	stands, err := m.files.Resolve(m.merge.Parent.Dir(), string(h.Backing))
	if err != nil {
		return err
	}
	want, err := m.files.Resolve(m.job.Child.Dir(), string(m.merge.NewName))
	if err != nil {
		return err
	}
	if stands.External || want.External || stands.Path != want.Path || h.BackingFormat != m.merge.Format {
		return fmt.Errorf("it names %s: %w", h.Backing, chain.ErrChanged)
	}
	return m.setBacking(qcow2.OSFile{File: m.scratch}, string(m.merge.NewName), string(m.merge.Format))
}

// checkNames: the parent has n names. Another one is an image of its own, which
// would change with it.
func (m *merge) checkNames(n uint64) error {
	st, err := stat(m.scratch)
	if err == nil && uint64(st.Nlink) != n {
		err = fmt.Errorf("%s has another name: %w", m.merge.Parent, chain.ErrChanged)
	}
	return err
}

func (m *merge) checkOneName(context.Context) error { return m.checkNames(1) }

// checkUnneeded: no copy and no second name of the child was made while it named
// the hidden name.
func (m *merge) checkUnneeded(ctx context.Context) error {
	return m.merge.Unneeded(ctx, m.job.Scratch)
}

func (m *merge) setBacking(f qcow2.File, name, format string) error {
	err := qcow2.SetBacking(f, name, format)
	if errors.Is(err, qcow2.ErrSync) {
		m.stop(err)
	}
	return err
}

// unlinkParent removes the parent's own name, durably.
func (m *merge) unlinkParent(ctx context.Context) error {
	m.opts.Step("MERGE:NAMED")
	named, err := m.has(m.dir, m.merge.Parent.Base())
	if err != nil {
		return err
	}
	if named {
		if err := m.merge.Unneeded(ctx, m.merge.Parent); err != nil {
			return err
		}
		if err := m.checkNames(2); err != nil {
			return err
		}
		if err := m.checkAlone(); err != nil { // who opens it later finds no name
			return err
		}
		// The deletion: until here all of it can be undone, from here on it stands.
		if err := unix.Unlinkat(int(m.dir.Fd()), m.merge.Parent.Base(), 0); err != nil {
			return fmt.Errorf("unlink %s: %w", m.merge.Parent, err)
		}
	}
	if err := m.syncDir(m.dir, m.scratch); err != nil {
		return fmt.Errorf("%w: %w", chain.ErrUnfinished, err)
	}
	m.opts.Step("MERGE:UNLINKED")
	return nil
}

// undo gives the parent's name back to the child and removes the hidden one. Once
// the parent's name is gone nothing is undone.
func (m *merge) undo(why error) error {
	if errors.Is(why, chain.ErrUnfinished) || errors.Is(why, qcow2.ErrSync) {
		return why
	}
	named, err := m.has(m.dir, m.merge.Parent.Base())
	if err != nil || !named {
		return errors.Join(fmt.Errorf("%w: %w", chain.ErrUnfinished, why), err)
	}
	if err := m.renameBack(); err != nil {
		return errors.Join(why, err)
	}
	if there, err := m.has(m.rebase.dir, m.job.Scratch.Base()); err != nil || !there {
		return errors.Join(why, err)
	}
	err = m.unlinkScratch()
	if !errors.Is(why, chain.ErrChanged) { // somebody else's change stays new
		err = errors.Join(err, m.timesBack())
	}
	return errors.Join(why, err)
}

// timesBack makes both files as old as they were: they say again what they said.
func (m *merge) timesBack() error {
	var errs []error
	for f, before := range map[*os.File]chain.Identity{m.child: m.merge.Before, m.scratch: m.merge.Identity} {
		if f == nil {
			continue
		}
		st, err := stat(f)
		if err == nil && st.Mtim.Nano() != before.MTime {
			err = futimens(f, st.Atim, unix.NsecToTimespec(before.MTime))
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (m *merge) renameBack() error {
	st, err := stat(m.child)
	if err != nil {
		return err
	}
	h, err := Inspector{}.Inspect(m.child, st.Size)
	if err != nil || h.Backing != chain.RelativeName(m.job.Child, m.job.Scratch) {
		return err
	}
	f, err := m.openForWriting()
	if err != nil {
		return err
	}
	defer f.Close() // setBacking synced it
	name := chain.RelativeName(m.job.Child, m.merge.Parent)
	return m.setBacking(qcow2.OSFile{File: f}, string(name), string(chain.QCOW2))
}

// move has the parent take the child's clusters.
func (m *merge) move(ctx context.Context) error {
	child, err := qcow2.Open(qcow2.OSFile{File: m.child})
	if err != nil {
		return fmt.Errorf("open %s: %w", m.job.Child, err)
	}
	parent := qcow2.OSFile{File: m.scratch}
	if m.again {
		// What that run stored and did not come to use, or left and did not come to free.
		if err := qcow2.Reclaim(ctx, parent, 0); err != nil {
			if errors.Is(err, qcow2.ErrSync) {
				m.stop(err)
			}
			return err
		}
	}
	job := qcow2.MergeJob{Parent: parent, Child: child, Moving: qcow2.Moving{Progress: m.progress, Step: m.opts.Step}}
	if m.limit != nil {
		job.Limit = m.wait
	}
	im, err := qcow2.Open(parent)
	if err != nil {
		return fmt.Errorf("open %s: %w", m.merge.Parent, err)
	}
	work, err := qcow2.MeasureDown(ctx, im, child)
	if err != nil {
		return err
	}
	job.Verify = m.opts.Verify.wants(work.Bytes())
	if _, err = qcow2.MergeDown(ctx, job); errors.Is(err, qcow2.ErrSync) {
		m.stop(err)
	}
	if err != nil {
		return err
	}
	// replaceChild compares it; our own rewriting of the header moved its times.
	st, err := stat(m.child)
	if err != nil {
		return err
	}
	// What was written to it meanwhile may be missing. A change of its mode or
	// owner is not: those are copied from now on.
	m.job.Identity = identityOf(&st)
	if !m.job.Identity.SameContent(m.named) {
		return fmt.Errorf("%s: %w", m.job.Child, chain.ErrChanged)
	}
	return nil
}

// replaced ends a job whose last rename was done.
func (m *merge) replaced() error {
	for dir, p := range map[*os.File]chain.Path{m.dir: m.merge.Parent, m.rebase.dir: m.job.Scratch} {
		there, err := m.has(dir, p.Base())
		if err != nil || !there {
			continue
		}
		if err := unix.Unlinkat(int(dir.Fd()), p.Base(), 0); err != nil {
			return fmt.Errorf("unlink %s: %w", p, err)
		}
	}
	return m.syncReplaced(m.child)
}
