package qcow2

import (
	"context"
	"fmt"
)

// storeWrites are the tables of a batch that nothing leads to yet, and the counts
// of its clusters in blocks that are there.
func (w *writer) storeWrites() []write {
	var all []write
	for _, i := range w.indexes() {
		if t := w.tables[i]; t.fresh {
			all = append(all, t.writes()...)
		}
	}
	for _, b := range w.refs.changed() {
		all = append(all, b.writes()...)
	}
	if w.refs.table.fresh {
		all = append(all, w.refs.table.writes()...)
	}
	return all
}

// release frees what nothing leads to any more now that the entries are durable.
// A power cut leaves leaks at worst.
func (w *writer) release(ctx context.Context) error {
	if len(w.freed) == 0 {
		return nil
	}
	w.refs.blocks = map[int64]*table{}
	size, err := w.file.Size()
	if err != nil {
		return err
	}
	w.im.meta.forget(size)
	w.im.fileSize = size
	for _, cluster := range w.freed {
		n, err := w.refs.get(cluster)
		if err != nil {
			return err
		}
		if n == 0 {
			return corrupt("cluster %d is freed twice", cluster)
		}
		if err := w.refs.set(cluster, n-1); err != nil {
			return err
		}
	}
	for _, b := range w.refs.changed() {
		if err := w.write(ctx, b.writes()); err != nil {
			return err
		}
	}
	return nil
}

// Reclaim frees the clusters at or behind oldEnd, in bytes, that nothing in the
// image refers to, and cuts the file off behind the last one in use. It is for
// what an absorb that did not come to its end stored; oldEnd is the file's size
// before that. Nobody else may have the image open for writing.
//
// An image that is corrupt is left alone: what its tables do not tell might be
// in use.
func Reclaim(f File, oldEnd int64) error {
	im, err := Open(f)
	if err != nil {
		return err
	}
	c, r, err := inspect(im)
	if err != nil {
		return err
	}
	if c.found.CorruptionCount > 0 {
		return corrupt("%s", c.found.Corruptions[0])
	}
	if err := c.free(f, r, oldEnd); err != nil {
		return err
	}
	return c.cut(f, oldEnd)
}

// free lowers refcounts to the number of references. The counts are durable
// before the file is cut off.
func (c *census) free(f File, r *refcounts, oldEnd int64) error {
	blocks := map[int64]bool{}
	err := c.differences(r, func(cluster int64, _, want uint64) error {
		if cluster*c.im.cluster() < oldEnd {
			return nil
		}
		blocks[cluster/r.perBlock()] = true
		return r.set(cluster, want)
	})
	if err != nil {
		return err
	}
	for _, b := range r.changed() {
		if err := writeTable(f, b); err != nil {
			return err
		}
	}
	if len(blocks) == 0 {
		return nil
	}
	return syncFile(f)
}

// cut shortens the file to what is in use, but not below oldEnd.
func (c *census) cut(f File, oldEnd int64) error {
	end := max((c.refs.highest+1)*c.im.cluster(), oldEnd)
	if end >= c.im.fileSize {
		return nil
	}
	if err := f.Truncate(end); err != nil {
		return fmt.Errorf("cut the file off at %d: %w", end, err)
	}
	return syncFile(f)
}
