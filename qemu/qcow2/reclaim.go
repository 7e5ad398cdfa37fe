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

// Reclaim frees clusters that nothing in the image refers to, and cuts the file
// off behind the last one in use. It is for what an absorb that did not come to
// its end stored; oldEnd is the file's size before that, in bytes. Nobody else may
// have the image open for writing.
//
// Before oldEnd there can be clusters to be freed, too: a refcount table that was
// replaced by a longer one. Where the image has features that are not known, to
// which they might belong, only what is behind oldEnd is freed.
//
// An image that is corrupt is left alone: what its tables do not tell might be
// in use.
//
// A cluster is free when nothing on the disk leads to it: entries that were written
// and not synced may be lost, and with them back it would be in use.
func Reclaim(ctx context.Context, f File, oldEnd int64) error {
	if err := settle(ctx, f); err != nil {
		return err
	}
	return reclaim(ctx, f, oldEnd)
}

func reclaim(ctx context.Context, f File, oldEnd int64) error {
	im, err := Open(f)
	if err != nil {
		return err
	}
	c, r, err := inspect(ctx, im)
	if err != nil {
		return err
	}
	if c.found.CorruptionCount > 0 {
		return corrupt("%s", c.found.Corruptions[0])
	}
	from := int64(0)
	if why, err := unrepairable(im); err != nil || why != "" {
		from = oldEnd
	}
	if err := c.free(f, r, from); err != nil {
		return err
	}
	return c.cut(f, oldEnd)
}

// settle makes durable what was written to a file, and has it read from the disk
// from now on: after a sync that failed the page cache has what never got there.
func settle(ctx context.Context, f File) error {
	if err := syncFile(f); err != nil {
		return err
	}
	size, err := f.Size()
	if err != nil {
		return err
	}
	return evictAll(ctx, f, 0, size)
}

// free gives back the clusters at or behind from that are counted too often.
func (c *census) free(f File, r *refcounts, from int64) error {
	return c.lower(f, r, func(d difference) bool {
		// With references left, only clusters of compressed data can be counted
		// less: for others the entries would have to say so, too.
		return d.cluster >= (from+c.im.cluster()-1)/c.im.cluster() && (d.want == 0 || d.marks == 0)
	})
}

// lower lowers refcounts to the number of references, for the clusters that are
// chosen. The counts are durable before anything else is done. One block is in
// memory at a time: how many differ is up to who wrote the image.
func (c *census) lower(f File, r *refcounts, choose func(difference) bool) error {
	block, changed := int64(-1), false
	flush := func() error {
		for _, b := range r.changed() {
			if err := writeTable(f, b); err != nil {
				return err
			}
		}
		r.blocks = map[int64]*table{}
		return nil
	}
	err := c.differences(r, func(d difference) error {
		if d.has <= d.want || !choose(d) {
			return nil
		}
		if i := d.cluster / r.perBlock(); i != block {
			if err := flush(); err != nil {
				return err
			}
			block = i
		}
		changed = true
		return r.set(d.cluster, d.want)
	})
	if err != nil || !changed {
		return err
	}
	if err := flush(); err != nil {
		return err
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
