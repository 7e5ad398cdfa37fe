package qcow2

import (
	"context"
	"errors"
	"fmt"
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

	// Verify has what was moved read back and compared before anything leads to it.
	Verify bool

	// Progress is told how many bytes of how many were moved. Limit, when set, is
	// asked before n bytes are moved and waits as long as it likes.
	Progress func(done, total int64)
	Limit    func(ctx context.Context, n int64) error

	// Extended, when set, is called when the file is as long as it will get and
	// nothing else of it is changed. It returns an error when somebody had opened
	// the child before that: see extend. Who opens it later reads right.
	Extended func() error

	// Step, when set, is called with each of Labels on the way. Tests stop there.
	Step func(label string)
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

// Result is what an absorb did.
type Result struct {
	Work
	Calls int // to the kernel to copy
}

// ErrVerify: what was read back is not what was written. Nothing leads to it,
// and the child is as it was.
var ErrVerify = errors.New("what was copied reads differently")

// absorb is a job under way.
type absorb struct {
	Job
	planner
	old    *Chain // all that the child stands on
	writer *writer
	copier *copier
	oldEnd int64 // the file's size at the start
	length int64 // its size from extend to commit
	total  Work
	done   int64
	result Result
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
	a, err := openAbsorb(job)
	if err != nil {
		return Result{}, err
	}
	err = a.run(ctx)
	if err == nil || errors.Is(err, ErrSync) {
		return a.result, err
	}
	if a.writer != nil && !errors.Is(err, ErrChanged) {
		err = errors.Join(err, a.giveBack())
	}
	return a.result, err
}

func openAbsorb(job Job) (*absorb, error) {
	if job.Progress == nil {
		job.Progress = func(int64, int64) {}
	}
	if job.Step == nil {
		job.Step = func(string) {}
	}
	size, err := job.Child.Size()
	if err != nil {
		return nil, err
	}
	// What an earlier run could not sync may be in the page cache and not on the
	// disk, as if it were durable.
	evict(job.Child, 0, size)
	child, err := Open(job.Child)
	if err != nil {
		return nil, err
	}
	a := &absorb{Job: job, oldEnd: size}
	a.planner = planner{child, NewChain(job.Away...), NewChain(job.Below...)}
	a.old = NewChain(append(append([]*Image{}, job.Away...), job.Below...)...)
	return a, nil
}

func (a *absorb) run(ctx context.Context) error {
	if h := a.child.header; h.BackingName == a.Name && (a.Name == "" || h.BackingFormat == a.Format) {
		return changeHeader(a.Child, a.header()) // an earlier run did it all
	}
	if err := a.inspect(); err != nil {
		return err
	}
	if err := a.measure(); err != nil {
		return err
	}
	if err := a.extend(); err != nil {
		return err
	}
	for off := int64(0); off < a.child.virtual; {
		if err := ctx.Err(); err != nil {
			return err
		}
		b, next, err := a.plan(off)
		if err != nil {
			return err
		}
		if !b.empty() {
			if err := a.move(ctx, b); err != nil {
				return err
			}
		}
		off = next
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
		return fmt.Errorf("it has a feature that is not known and would have to be cleared: %w", ErrFallback)
	}
	return canChange(im.src, c)
}

// inspect refuses what cannot be changed in place, and finds where the file's
// clusters end. A child that is corrupt already would get worse by being written to.
func (a *absorb) inspect() error {
	if len(a.Away) == 0 {
		return errors.New("no image goes away")
	}
	if err := a.child.inPlace(a.header()); err != nil {
		return err
	}
	c, refs, err := inspect(a.child)
	if err != nil {
		return err
	}
	if c.found.CorruptionCount > 0 {
		return corrupt("%s", c.found.Corruptions[0])
	}
	cluster := a.child.cluster()
	end := max((a.oldEnd+cluster-1)/cluster, c.refs.highest+1)
	a.writer = newWriter(a.Child, a.child, refs, end)
	return nil
}

func (a *absorb) header() HeaderChange {
	return HeaderChange{Backing: &Backing{Name: a.Name, Format: a.Format}}
}

func (a *absorb) measure() (err error) {
	if a.total, err = Measure(a.child, a.Away, a.Below); err != nil {
		return err
	}
	a.result.Work = a.total
	a.copier = &copier{file: a.Child, pace: pace{limit: a.Limit, progress: func(n int64) {
		a.done += n
		a.Progress(a.done, a.total.Bytes())
	}}}
	a.Progress(0, a.total.Bytes())
	return nil
}

// move carries out a batch.
func (a *absorb) move(ctx context.Context, b *batch) error {
	w := a.writer
	w.reset()
	if err := w.add(b); err != nil {
		return err
	}
	if err := w.allocate(); err != nil {
		return err
	}
	if w.end*w.im.cluster() > a.length {
		return fmt.Errorf("it grows beyond %d bytes: %w", a.length, ErrFallback)
	}
	links, err := w.linkWrites()
	if err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return a.store(ctx) },
		func() error { return a.count(ctx) },
		func() error { return a.verify(ctx, b, links) },
		func() error { return a.link(ctx, links) },
	} {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := step(); err != nil {
			return err
		}
	}
	return a.reopen()
}

// store writes what nothing leads to yet.
func (a *absorb) store(ctx context.Context) error {
	a.Step("ABSORB:STORE")
	w := a.writer
	a.copier.fresh = w.first * w.im.cluster()
	for _, c := range w.copies {
		if err := a.copier.copy(ctx, a.away.layers[c.layer], c); err != nil {
			return err
		}
	}
	for _, m := range w.moving {
		c := copying{layer: m.layer, src: m.host, dst: m.dst, n: m.n}
		if err := a.copier.copy(ctx, a.away.layers[m.layer], c); err != nil {
			return err
		}
	}
	for _, r := range w.filling {
		if err := a.fill(ctx, r); err != nil {
			return err
		}
	}
	if err := w.write(ctx, w.storeWrites()); err != nil {
		return err
	}
	a.result.Calls = a.copier.calls
	return syncFile(a.Child)
}

// fill reads a run as the child's guest reads it and writes it to its place.
func (a *absorb) fill(ctx context.Context, r run) error {
	return a.writer.eachCluster(r, func(guest, n int64) error {
		off, err := a.writer.place(guest)
		if err != nil {
			return err
		}
		off += guest % a.child.cluster()
		for n > 0 {
			p := a.copier.space(n)
			if err := a.copier.pace.before(ctx, int64(len(p))); err != nil {
				return err
			}
			if _, err := a.old.ReadAt(p, guest); err != nil {
				return err
			}
			if err := writeAt(a.Child, p, off); err != nil {
				return err
			}
			a.copier.pace.progress(int64(len(p)))
			guest, off, n = guest+int64(len(p)), off+int64(len(p)), n-int64(len(p))
		}
		return nil
	})
}

// count makes the refcount table lead to new blocks.
func (a *absorb) count(ctx context.Context) error {
	a.Step("ABSORB:COUNT")
	t := a.writer.refs.table
	if t.fresh {
		return changeHeader(a.Child, HeaderChange{RefcountTable: &TableAt{
			Offset: uint64(t.off), Clusters: uint32(int64(len(t.data)) / a.child.cluster()),
		}})
	}
	if len(t.dirty) == 0 {
		return nil
	}
	if err := a.writer.write(ctx, t.writes()); err != nil {
		return err
	}
	return syncFile(a.Child)
}

// link makes the batch part of the child's disk. Every entry on its own is right,
// linked or not.
func (a *absorb) link(ctx context.Context, links []write) error {
	a.Step("ABSORB:LINK")
	if err := a.unchanged(); err != nil {
		return err
	}
	if err := a.writer.write(ctx, links); err != nil {
		return err
	}
	if err := syncFile(a.Child); err != nil {
		return err
	}
	return a.writer.release(ctx)
}

// reopen begins anew with what is in the file.
func (a *absorb) reopen() error {
	child, err := Open(a.Child)
	if err != nil {
		return err
	}
	a.child = child
	a.writer.im, a.writer.refs.im = child, child
	a.writer.refs.table.fresh, a.writer.refs.table.dirty = false, map[int64]bool{}
	return nil
}

func (a *absorb) commit(ctx context.Context) error {
	a.Step("ABSORB:NAME")
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := a.unchanged(); err != nil {
		return err
	}
	if end := max(a.writer.end*a.child.cluster(), a.oldEnd); end < a.length {
		if err := a.Child.Truncate(end); err != nil {
			return fmt.Errorf("cut the file off at %d: %w", end, err)
		}
	}
	// The COMMIT POINT is inside: one write of sector 0.
	if err := changeHeader(a.Child, a.header()); err != nil {
		return err
	}
	a.Step("ABSORB:DONE")
	return nil
}

// giveBack returns what was stored and not linked.
func (a *absorb) giveBack() error {
	if err := Reclaim(a.Child, a.oldEnd); err != nil {
		return fmt.Errorf("clusters that are not used stay behind in the child: %w", err)
	}
	return nil
}
