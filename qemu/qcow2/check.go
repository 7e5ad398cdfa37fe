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

	// StaleFlags of the corruptions are no more than this: an entry does not say
	// that it is the only one of its cluster, though it is. That costs a copy of
	// the cluster when it is written to, and no data; RepairLeaks mends it.
	StaleFlags int

	// LeakedClusters are counted as used more often than they are. They cost
	// space and no data.
	LeakedClusters int64
	LeakedBytes    int64

	// Dirty: the image was not closed, and its refcounts may be stale. QEMU
	// makes them right when it opens the image for writing; no data is lost.
	Dirty bool

	// Unrepairable is why RepairLeaks does not touch the image, whatever is
	// leaked: a predicate ("has a header extension that is not known"), empty
	// when it would.
	Unrepairable string
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
	c.found.Dirty = im.header.Has(Dirty)
	c.found.Unrepairable, err = unrepairable(im)
	return &c.found, err
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

// is reports whether there is any.
func (d difference) is() bool {
	return d.has != d.want || d.sharedMeta() || d.wrong() || d.stale()
}

// sharedMeta: metadata is something else, too. Its refcount may be right; to write
// to one use would destroy the other.
func (d difference) sharedMeta() bool { return d.marks&markMeta != 0 && d.want != 1 }

// wrong: an active entry has the flag of a refcount of one, and the refcount is another.
func (d difference) wrong() bool { return d.marks&markCopied != 0 && d.has != 1 }

// stale: an active entry lacks that flag. It costs nothing but a copy of the
// cluster when it is written to.
func (d difference) stale() bool { return d.marks&markShared != 0 && d.has == 1 }

// compare notes where refcounts, references and flags differ.
func (c *census) compare(r *refcounts) error {
	err := c.differences(r, func(d difference) error {
		c.judge(d)
		return nil
	})
	// Last and in one sentence: they must not hide what is worse.
	if n := c.found.StaleFlags; n > 0 && err == nil {
		c.corrupt("%d entries do not have the flag of a refcount of one", n)
		c.found.CorruptionCount += n - 1
	}
	return err
}

func (c *census) judge(d difference) {
	switch {
	case d.has < d.want:
		c.corrupt("cluster %d has a refcount of %d and %d references", d.cluster, d.has, d.want)
	case d.sharedMeta():
		c.corrupt("the metadata at %#x is used %d times", d.cluster*c.im.cluster(), d.want)
	}
	if d.wrong() {
		c.corrupt("cluster %d has a refcount of %d, and its entry the flag of one", d.cluster, d.has)
	}
	switch {
	case !d.stale():
	case d.has == d.want:
		c.found.StaleFlags++
	default:
		c.corrupt("cluster %d has a refcount of one, and its entry not the flag of that", d.cluster)
	}
	// What is counted behind the end of the file costs nothing, and qemu-img does
	// not look there.
	if d.has > d.want && d.cluster <= (c.im.fileSize-1)/c.im.cluster() {
		c.found.LeakedClusters++
		c.found.LeakedBytes += c.im.cluster()
		if d.want == 0 && d.cluster < c.refs.highest {
			c.spare++
		}
	}
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
		if !d.is() {
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
