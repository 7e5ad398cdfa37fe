package qemu

import (
	"context"
	"errors"
	"fmt"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/qemu/qcow2"
	"golang.org/x/sys/unix"
)

// RepointLabels are the points of a change of the parent's name.
var RepointLabels = []string{
	"REPOINT:NAME",  // the child's header is about to name its parent by the new name
	"REPOINT:NAMED", // it durably does
}

// repoint is a change of the parent's name under way. As a rebase it is one onto
// the same image by another name, so that nothing is to be moved.
type repoint struct {
	*rebase
	repoint chain.RepointJob
}

func (r *Rebaser) newRepoint(job chain.RepointJob) *repoint {
	return &repoint{repoint: job, rebase: r.newRebase(chain.RebaseJob{
		Child: job.Child, NewParent: job.To, NewName: job.Name, NewFormat: job.Format,
	}, nil)}
}

// CheckRepoint is chain.Rebaser's. It takes no lock, so that what it says is true
// of now.
func (r *Rebaser) CheckRepoint(job chain.RepointJob) error {
	p := r.newRepoint(job)
	defer p.close()
	err := p.each(context.Background(), p.stoppedBefore, p.checkRepointJob, p.openChild,
		p.checkFile, p.checkIdle, p.checkImage)
	if err == nil && !p.standsOnTarget(p.header) {
		err = p.checkHeader()
	}
	return p.about(err)
}

// Repoint is chain.Rebaser's. A failed sync leaves the child with either name, and
// this Rebaser refuses all further work until Restart.
func (r *Rebaser) Repoint(ctx context.Context, job chain.RepointJob) error {
	p := r.newRepoint(job)
	defer p.close()
	return p.about(p.run(ctx))
}

func (p *repoint) about(err error) error {
	if err != nil {
		err = fmt.Errorf("have %s name its parent as %s: %w", p.repoint.Child, p.repoint.Name, err)
	}
	return err
}

func (p *repoint) run(ctx context.Context) error {
	err := p.each(ctx, p.stoppedBefore, p.checkRepointJob, p.openChild, p.checkFile, p.lockChild,
		p.checkImage, p.checkTarget)
	if err != nil {
		return err
	}
	if p.standsOnTarget(p.header) {
		err = p.confirm() // an earlier run was cut off, or forgotten
	} else {
		err = p.rename()
	}
	if err != nil {
		return err
	}
	if err := p.date(); err != nil {
		return err
	}
	// Another file that was put in its place meanwhile names the old name.
	if err := p.checkNamed(p.repoint.Child, p.child); err != nil {
		return err
	}
	p.opts.Step("REPOINT:NAMED")
	return nil
}

// checkRepointJob catches what no header can say. The same child may well be put on
// another parent: ErrNotInPlace.
func (p *repoint) checkRepointJob(context.Context) error {
	j := &p.repoint
	switch {
	case j.Name == "" || !handled(j.Format):
		return fmt.Errorf("parent %q of the format %q", j.Name, j.Format)
	case len(j.Name) > 1023:
		return notInPlace("it would have to name its parent with %d bytes, and a header has room for 1023", len(j.Name))
	case hasProtocol(string(j.Name)):
		return notInPlace("qemu does not take that name for a path")
	}
	return nil
}

func notInPlace(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), chain.ErrNotInPlace)
}

// checkFile: it is the file that was planned for, and has no names but those that
// were. From another directory the new backing name would lead elsewhere.
func (p *repoint) checkFile(context.Context) error {
	st, err := stat(p.child)
	if err != nil {
		return err
	}
	if st.Ino != p.repoint.Inode {
		return fmt.Errorf("%s: %w", p.repoint.Child, chain.ErrChanged)
	}
	if names := max(p.repoint.Names, 1); int(st.Nlink) > names {
		return notInPlace("it has %d names, and %d can be told of", st.Nlink, names)
	}
	p.job.Identity = identityOf(&st)
	return nil
}

func (p *repoint) checkIdle(context.Context) error { return p.checkUnused() }

// checkImage: it is an image whose parent is the one that was planned for, by the
// old name or the new. That it has internal snapshots is no obstacle: they read
// from the same parent as before.
func (p *repoint) checkImage(context.Context) error {
	j := &p.repoint
	st, err := stat(p.child)
	if err != nil {
		return err
	}
	// Read again, now that it may be locked.
	if p.header, err = (Inspector{}).Inspect(p.child, st.Size); err != nil {
		return fmt.Errorf("read its header: %w", err)
	}
	switch {
	case p.header.Format != chain.QCOW2:
		return chain.Refuse(j.Child, "%s is not a qcow2 image", j.Child)
	case p.header.Trouble != "":
		return chain.Refuse(j.Child, "%s %s; its parent's name in it cannot be changed", j.Child, p.header.Trouble)
	case p.header.BackingFormat != j.Format:
		return fmt.Errorf("its parent's format is %q, and was %q: %w", p.header.BackingFormat, j.Format, chain.ErrChanged)
	case p.header.Backing == j.Name:
		return p.checkName(j.Child, j.Name, j.To)
	}
	if err := p.checkName(j.Child, p.header.Backing, j.From); err != nil {
		return err
	}
	return p.checkName(j.Child, j.Name, j.To)
}

// checkTarget: the child is not given the name of nothing.
func (p *repoint) checkTarget(context.Context) error {
	e, err := p.files.Stat(p.repoint.To)
	if err != nil {
		return err
	}
	if e.Type != chain.Regular {
		return fmt.Errorf("%s is not a regular file: %w", p.repoint.To, chain.ErrChanged)
	}
	return nil
}

// checkHeader: there is room for the name, and nothing would be lost.
func (p *repoint) checkHeader() error {
	err := qcow2.CanSetBacking(qcow2.OSFile{File: p.child}, string(p.repoint.Name), string(p.repoint.Format))
	if errors.Is(err, qcow2.ErrNoRoom) || errors.Is(err, qcow2.ErrFallback) {
		return fmt.Errorf("%w: %w", chain.ErrNotInPlace, err)
	}
	return err
}

// rename writes the name.
func (p *repoint) rename() error {
	if err := p.checkHeader(); err != nil {
		return err
	}
	p.opts.Step("REPOINT:NAME")
	// Our own writing hides what others, who ask nobody, write from here on.
	if err := p.checkStill(); err != nil {
		return err
	}
	f, err := p.openForWriting()
	if err != nil {
		return err
	}
	defer f.Close() // SetBacking syncs
	// The COMMIT POINT is inside: one write of sector 0. The child reads the same
	// through both names, as both lead to one file.
	err = qcow2.SetBacking(qcow2.OSFile{File: f}, string(p.repoint.Name), string(p.repoint.Format))
	switch {
	case errors.Is(err, qcow2.ErrSync):
		p.stop(err)
	case err != nil: // of a write, as on a full disk: the header is as it was
		err = errors.Join(err, futimens(p.child, p.atime, p.modified))
	}
	return err
}

// date gives the child its times and makes all of it durable.
func (p *repoint) date() error {
	if err := p.setDate(); err != nil {
		return fmt.Errorf("set its times: %w", err)
	}
	if err := p.child.Sync(); err != nil {
		p.stop(err)
		return fmt.Errorf("sync it: %w", err)
	}
	return nil
}

// setDate gives it the time that was asked for. A child that had the name already
// keeps its own, which the run before this one moved.
func (p *repoint) setDate() error {
	switch {
	case p.repoint.MTime != 0:
		return futimens(p.child, p.atime, unix.NsecToTimespec(p.repoint.MTime))
	case p.standsOnTarget(p.header):
		return futimens(p.child, p.atime, p.modified)
	}
	return p.setTimes(p.repoint.Child, p.child)
}
