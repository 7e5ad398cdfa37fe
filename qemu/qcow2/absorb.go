package qcow2

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Job is one child that absorbs what it would lose with parents that go away.
//
// The caller keeps everybody else from writing to any of the files.
type Job struct {
	Child File
	Away  []*Image // adjacent parents that go away, the child's own first
	Below []*Image // what stays, the new parent first; none: the child becomes a full

	// Name and Format are the backing name and format to be written, empty for
	// a child that becomes a full.
	Name, Format string

	Moving
}

// Labels are the points that Job.Step is told, in order. All but the last two
// are told once for each batch.
var Labels = []string{
	"ABSORB:STORE",  // data, new tables and counts are about to be written
	"ABSORB:COUNT",  // they are durable; the refcount table is about to be written
	"ABSORB:VERIFY", // it is durable; what was stored is about to be read back
	"ABSORB:LINK",   // L2 and L1 entries are about to be written
	"ABSORB:NAME",   // all is durable; the header is about to name the new parent
	"ABSORB:DONE",   // it durably does
}

// absorb is a job under way.
type absorb struct {
	*mover
	job Job
}

// Absorb makes the child read the same without Away:
//
//	inspect   the child's tables, all of them
//	measure   what it needs
//	extend    the file, to the most that this may take
//	batch by batch:
//	  store   data, new tables, counts: beyond the end of the file     sync
//	  count   the refcount table                                       sync
//	  verify  read it back
//	  link    L2 and L1 entries                                        sync
//	cut       the file behind the last cluster in use
//	name      the backing name, in unused space                        sync
//	commit    sector 0, in one write: the COMMIT POINT                 sync
//
// At every instant the child names Away[0] or the new parent, and reads the same
// either way: what was linked is what it read from below before.
//
// It returns nil once all of that is durable, also when it was before. On any
// other error than ErrSync what was stored and not linked is given back; after
// ErrSync, and after a crash, Reclaim does that. ErrFallback and ErrNoRoom mean
// that the child cannot be changed in place; it reads as before.
func Absorb(ctx context.Context, job Job) (Result, error) {
	m, err := openMover(ctx, job.Child, job.Moving)
	if err != nil {
		return Result{}, err
	}
	m.sources, m.old, m.below = job.Away, NewChain(slices.Concat(job.Away, job.Below)...), NewChain(job.Below...)
	m.plan = func(ctx context.Context, off int64) (*batch, int64, error) {
		p := newPlanner(m.im, job.Away, job.Below, job.batchBytes())
		return p.plan(ctx, off)
	}
	a := &absorb{mover: m, job: job}
	err = m.giveBackAfter(ctx, a.run(ctx))
	return m.result, err
}

func (a *absorb) run(ctx context.Context) error {
	if h := a.im.header; h.BackingName == a.job.Name && (a.job.Name == "" || h.BackingFormat == a.job.Format) {
		return changeHeader(a.file, a.header()) // an earlier run did it all
	}
	if len(a.job.Away) == 0 {
		return errors.New("no image goes away")
	}
	if err := a.im.inPlace(a.header()); err != nil {
		return err
	}
	if _, err := a.inspect(ctx); err != nil {
		return err
	}
	if err := a.moveAll(ctx); err != nil {
		return err
	}
	return a.commit(ctx)
}

// InPlace is nil when the image, as far as its header tells, can take another
// parent in place, and ErrFallback or ErrNoRoom when only a copy of it can.
func InPlace(src Source, name, format string) error {
	im, err := Open(src)
	if err != nil {
		return err
	}
	return im.inPlace(HeaderChange{Backing: &Backing{Name: name, Format: format}})
}

func (im *Image) inPlace(c HeaderChange) error {
	h := im.header
	switch {
	case h.Has(Dirty):
		return fmt.Errorf("it was not closed and its refcounts are stale: %w", ErrFallback)
	case h.Snapshots > 0:
		return fmt.Errorf("it has internal snapshots: %w", ErrFallback)
	case h.Autoclear&^knownAutoclear != 0:
		return errAutoclear
	}
	return canChange(im.src, c)
}

var errAutoclear = fmt.Errorf("it has a feature that is not known and would have to be cleared: %w", ErrFallback)

func (a *absorb) header() HeaderChange {
	return HeaderChange{Backing: &Backing{Name: a.job.Name, Format: a.job.Format}}
}

func (a *absorb) commit(ctx context.Context) error {
	a.step("ABSORB:NAME")
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := a.unchanged(); err != nil {
		return err
	}
	if err := a.cut(); err != nil {
		return err
	}
	// The COMMIT POINT is inside: one write of sector 0.
	if err := changeHeader(a.file, a.header()); err != nil {
		return err
	}
	a.step("ABSORB:DONE")
	return nil
}
