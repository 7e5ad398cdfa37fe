package qcow2

import (
	"context"
	"fmt"
)

// Findings is what Check finds in an image.
type Findings struct {
	// Corruptions are things that cost data, or will when the image is written
	// to: sentences without a subject. The first hundred are kept.
	Corruptions     []string
	CorruptionCount int

	// LeakedClusters are counted as used more often than they are. They cost
	// space and no data.
	LeakedClusters int64
	LeakedBytes    int64
}

const maxKept = 100

func (c *census) corrupt(format string, args ...any) {
	f := &c.found
	f.CorruptionCount++
	if len(f.Corruptions) < maxKept {
		f.Corruptions = append(f.Corruptions, fmt.Sprintf(format, args...))
	}
}

// Check finds in a qcow2 image what "qemu-img check" finds: clusters that are
// used more often than they are counted, tables that lead nowhere, flags that
// contradict the counts, and leaks; and beyond that metadata that something else
// uses, too. An error means that the image could not be read, or is none that
// can be checked: ErrFallback when it would take more memory than is good.
func Check(ctx context.Context, src Source) (*Findings, error) {
	im, err := Open(src)
	if err != nil {
		return nil, err
	}
	c, _, err := inspect(ctx, im)
	if err != nil {
		return nil, err
	}
	return &c.found, nil
}

// inspect takes the census and compares it with the refcounts.
func inspect(ctx context.Context, im *Image) (*census, *refcounts, error) {
	r, err := openRefcounts(im)
	if err != nil {
		return nil, nil, err
	}
	c, err := take(ctx, im)
	if err != nil {
		return nil, nil, err
	}
	return c, r, c.compare(r)
}

// difference is a cluster that is not as its counts and flags say.
type difference struct {
	cluster   int64
	has, want uint64 // refcount and references
	marks     mark
}

// wrong reports whether there is any.
func (d difference) wrong() bool {
	return d.has != d.want || d.marks&markMeta != 0 && d.want != 1 ||
		d.marks&markCopied != 0 && d.has != 1 || d.marks&markShared != 0 && d.has == 1
}

// compare notes where refcounts and references differ.
func (c *census) compare(r *refcounts) error {
	return c.differences(r, func(d difference) error {
		at := d.cluster * c.im.cluster()
		if d.has > d.want {
			c.found.LeakedClusters++
			c.found.LeakedBytes += c.im.cluster()
		}
		switch {
		case d.has < d.want:
			c.corrupt("cluster %d has a refcount of %d and %d references", d.cluster, d.has, d.want)
		case d.marks&markMeta != 0 && d.want != 1:
			// Its refcount may be right. To write to one use would destroy the other.
			c.corrupt("the metadata at %#x is used %d times", at, d.want)
		case d.marks&markCopied != 0 && d.has != 1, d.marks&markShared != 0 && d.has == 1:
			c.corrupt("the cluster at %#x has a refcount of %d, and its entry says otherwise", at, d.has)
		}
		return nil
	})
}

// differences calls f for each cluster with one, in order of the refcount blocks.
// It keeps none of the blocks that it reads.
func (c *census) differences(r *refcounts, f func(difference) error) error {
	block := make([]byte, c.im.cluster())
	for i := range r.entries() {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		off, err := r.offset(i)
		if err != nil {
			c.corrupt("%s", reasonOf(err))
			continue
		}
		if off == 0 || c.again[i] {
			continue
		}
		if err := c.im.meta.read(block, off); err != nil {
			return fmt.Errorf("read refcount block %d: %w", i, err)
		}
		if err := c.differencesIn(r, i, block, f); err != nil {
			return err
		}
	}
	return c.uncounted(r, f)
}

func (c *census) differencesIn(r *refcounts, i int64, block []byte, f func(difference) error) error {
	first := i * r.perBlock()
	for n := range r.perBlock() {
		want, marks := c.refs.of(first + n)
		d := difference{first + n, count(block, r.order, n), want, marks}
		if !d.wrong() {
			continue
		}
		if err := f(d); err != nil {
			return err
		}
	}
	return nil
}

// uncounted finds clusters in use for which there is no refcount block.
func (c *census) uncounted(r *refcounts, f func(difference) error) error {
	for page := range c.refs.pages {
		for n := range int64(tallyClusters) {
			cluster := page*tallyClusters + n
			want, marks := c.refs.of(cluster)
			if want == 0 {
				continue
			}
			if off, err := r.offset(cluster / r.perBlock()); err == nil && off != 0 {
				continue
			}
			if err := f(difference{cluster, 0, want, marks}); err != nil {
				return err
			}
		}
	}
	return nil
}
