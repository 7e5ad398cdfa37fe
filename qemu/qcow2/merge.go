package qcow2

import (
	"context"
	"fmt"
)

// MergeJob is a parent that takes over what its only child has, so that it can
// take the child's place: a merge downwards, which moves fewer bytes than an
// absorb where the child is small.
//
// The caller keeps everybody else from reading or writing the parent other than
// through the child, and from writing to the child. From the first batch on the
// parent does not read as before; the child does, at every instant, because it
// never reads from the parent what it has itself.
type MergeJob struct {
	Parent File
	Child  *Image
	Moving
}

// MergeDown makes the parent read as the child. It may be run again after a crash
// or an error; the child is not changed. Its steps, syncs and errors are those of
// Absorb, without the header: the parent stands where it stood.
func MergeDown(ctx context.Context, job MergeJob) (Result, error) {
	m, err := openMover(ctx, job.Parent, job.Moving)
	if err != nil {
		return Result{}, err
	}
	m.sources, m.below = []*Image{job.Child}, NewChain()
	m.plan = func(ctx context.Context, off int64) (*batch, int64, error) {
		m.old = NewChain(job.Child, m.im)
		return planDown(ctx, m.im, job.Child, off, job.batchBytes())
	}
	err = m.giveBackAfter(ctx, mergeDown(ctx, m, job.Child))
	return m.result, err
}

func mergeDown(ctx context.Context, m *mover, child *Image) error {
	if err := canMergeDown(m.im, child); err != nil {
		return err
	}
	c, err := m.inspect(ctx)
	if err != nil {
		return err
	}
	if err := c.unshared(); err != nil {
		return err
	}
	if err := m.moveAll(ctx); err != nil {
		return err
	}
	if err := m.cut(); err != nil {
		return err
	}
	return syncFile(m.file) // with the clusters that were freed last
}

// unshared is nil when no cluster has two entries. Where one of them went, the
// other would lack the flag of a refcount of one.
func (c *census) unshared() error {
	for page := range c.refs.pages {
		for n := range int64(tallyClusters) {
			if _, marks := c.refs.of(page*tallyClusters + n); marks&markShared != 0 {
				return fmt.Errorf("a cluster of the parent is shared: %w", ErrFallback)
			}
		}
	}
	return nil
}

// MeasureDown is how much MergeDown would have to do. ErrFallback says why it
// cannot be done, as far as the parent's tables tell too: a caller may go beyond
// the point of no return before it calls MergeDown.
func MeasureDown(ctx context.Context, parent, child *Image) (Work, error) {
	var w Work
	if err := canMergeDown(parent, child); err != nil {
		return w, err
	}
	// An image that cannot be written to must not be found out when there is no
	// way back any more.
	c, refs, err := inspect(ctx, parent)
	if err != nil {
		return w, err
	}
	if c.found.CorruptionCount > 0 {
		return w, fmt.Errorf("the parent is damaged (%s): %w", c.found.Corruptions[0], ErrFallback)
	}
	if err := c.unshared(); err != nil {
		return w, err
	}
	places := newWriter(nil, parent, refs, (parent.fileSize+parent.cluster()-1)/parent.cluster())
	for off := int64(0); off < parent.virtual; {
		b, next, err := planDown(ctx, parent, child, off, 0)
		if err != nil {
			return w, err
		}
		places.reset()
		if err := places.add(b); err != nil {
			return w, err
		}
		w.add(b)
		off = next
	}
	return w, nil
}

// canMergeDown is about what the two headers tell.
func canMergeDown(parent, child *Image) error {
	not := func(why string) error { return fmt.Errorf("%s: %w", why, ErrFallback) }
	switch {
	case parent.header == nil || child.header == nil:
		return not("a raw file has no clusters")
	case parent.virtual != child.virtual:
		return not("the parent and the child are not of the same size")
	case parent.clusterBits != child.clusterBits || parent.extended != child.extended:
		return not("the parent and the child have different clusters")
	case parent.header.Has(Dirty):
		return not("the parent was not closed and its refcounts are stale")
	case parent.header.Snapshots > 0 || child.header.Snapshots > 0:
		return not("there are internal snapshots")
	case parent.header.HasBitmaps || child.header.HasBitmaps:
		return not("there are bitmaps")
	case parent.header.Autoclear != 0 || child.header.Autoclear != 0:
		return not("there is a feature that would have to be cleared")
	case child.header.Version == 3 && parent.header.Version == 2:
		return not("the parent is of version 2 and has no zero clusters")
	}
	return nil
}

// planDown plans what the child has from off on.
func planDown(ctx context.Context, parent, child *Image, off, maxBytes int64) (b *batch, next int64, err error) {
	b = newBatch(parent.geometry, maxBytes)
	for off < child.virtual {
		if err := ctx.Err(); err != nil {
			return nil, 0, err
		}
		e, err := child.extent(off, child.virtual-off)
		if err != nil {
			return nil, 0, err
		}
		if e.Kind == Absent {
			off = e.End()
			continue
		}
		r, whole, err := aroundPacked(parent, e)
		if err != nil {
			return nil, 0, err
		}
		take := b.takeData
		if e.Kind == Zero && !whole {
			take = b.take
		}
		if r.n = take(r.guest, r.n); r.n == 0 {
			return b, off, nil
		}
		sameType := parent.header.CompressionType == child.header.CompressionType
		switch {
		case whole, e.Kind == Compressed && !sameType:
			b.mixed = append(b.mixed, r)
		case e.Kind == Data:
			b.pieces = append(b.pieces, piece{run: r, host: e.Host})
		case e.Kind == Zero:
			b.zeros = append(b.zeros, r)
		case e.Kind == Compressed:
			b.packed = append(b.packed, packedCluster{guest: off, host: e.Host, n: e.Packed})
		}
		off = r.guest + r.n
	}
	return b, off, nil
}

// aroundPacked is the run to be moved for an extent of the child. Where only some
// subclusters of a cluster are written that the parent has compressed, the others
// have to leave it too: then it is the whole cluster, as the child reads it.
func aroundPacked(parent *Image, e Extent) (r run, whole bool, err error) {
	r = run{e.Start, e.Length}
	if !parent.extended || e.Kind == Compressed {
		return r, false, nil
	}
	cluster := parent.cluster()
	start := e.Start / cluster * cluster
	r.n = min(r.n, start+cluster-e.Start)
	was, err := parent.extent(start, min(cluster, parent.virtual-start))
	if err != nil || was.Kind != Compressed {
		return r, false, err
	}
	return run{start, min(cluster, parent.virtual-start)}, true, nil
}
