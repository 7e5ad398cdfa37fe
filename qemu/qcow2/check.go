package qcow2

import "fmt"

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

// findings collects corruptions.
type findings struct{ Findings }

const maxKept = 100

func (f *findings) corrupt(format string, args ...any) {
	f.CorruptionCount++
	if len(f.Corruptions) < maxKept {
		f.Corruptions = append(f.Corruptions, fmt.Sprintf(format, args...))
	}
}

// Check finds in a qcow2 image what "qemu-img check" finds: clusters that are
// used more often than they are counted, or by two, tables that lead nowhere,
// flags that contradict the counts, and leaks. An error means that it could not
// be read, or is none that can be checked. Memory is bounded by what the file
// uses: four bytes a cluster, and some for each L2 table.
func Check(src Source) (*Findings, error) {
	im, err := Open(src)
	if err != nil {
		return nil, err
	}
	c, _, err := inspect(im)
	if err != nil {
		return nil, err
	}
	c.found.Dirty = im.header.Has(Dirty)
	c.found.Unrepairable, err = unrepairable(im)
	return &c.found.Findings, err
}

// inspect takes the census and compares it with the refcounts.
func inspect(im *Image) (*census, *refcounts, error) {
	r, err := openRefcounts(im)
	if err != nil {
		return nil, nil, err
	}
	c, err := take(im)
	if err != nil {
		return nil, nil, err
	}
	return c, r, c.compare(r)
}

// compare notes where refcounts, references and flags differ. What is counted
// behind the end of the file costs nothing, and qemu-img does not look there.
func (c *census) compare(r *refcounts) error {
	err := c.differences(r, func(cluster int64, has, want uint64) error {
		wrong, stale := c.refs.contradicts(cluster, has)
		switch {
		case want == tallyMost:
			c.found.corrupt("cluster %d has more references than can be counted", cluster)
		case has < want:
			c.found.corrupt("cluster %d has a refcount of %d and %d references", cluster, has, want)
		case has > want && cluster*c.im.cluster() < c.im.fileSize:
			c.found.LeakedClusters++
			c.found.LeakedBytes += c.im.cluster()
			if want == 0 && cluster < c.refs.highest {
				c.spare++
			}
		}
		if wrong {
			c.found.corrupt("cluster %d has a refcount of %d, and its entry the flag of one", cluster, has)
		}
		switch {
		case stale && has == want:
			c.found.StaleFlags++
		case stale:
			c.found.corrupt("cluster %d has a refcount of one, and its entry not the flag of that", cluster)
		}
		return nil
	})
	// Last and in one sentence: they must not hide what is worse.
	if n := c.found.StaleFlags; n > 0 && err == nil {
		c.found.corrupt("%d entries do not have the flag of a refcount of one", n)
		c.found.CorruptionCount += n - 1
	}
	return err
}

// differences calls f for each cluster whose refcount is not its number of
// references, or not what its entries say. It keeps none of the blocks that it reads.
func (c *census) differences(r *refcounts, f func(cluster int64, has, want uint64) error) error {
	block := make([]byte, c.im.cluster())
	met := map[int64]bool{}
	for i := range r.entries() {
		off, err := r.offset(i)
		if err != nil {
			c.found.corrupt("%s", reasonOf(err))
			continue
		}
		if off == 0 || met[off] { // the census tells of those named twice
			continue
		}
		met[off] = true
		if err := c.im.meta.read(block, off); err != nil {
			return fmt.Errorf("read refcount block %d: %w", i, err)
		}
		if err := c.differencesIn(r, i, block, f); err != nil {
			return err
		}
	}
	return c.uncounted(r, f)
}

func (c *census) differencesIn(r *refcounts, i int64, block []byte, f func(cluster int64, has, want uint64) error) error {
	first := i * r.perBlock()
	for n := range r.perBlock() {
		has := count(block, r.order, n)
		want, _ := c.refs.of(first + n)
		if wrong, stale := c.refs.contradicts(first+n, has); has == want && !wrong && !stale {
			continue
		}
		if err := f(first+n, has, want); err != nil {
			return err
		}
	}
	return nil
}

// uncounted finds clusters in use for which there is no refcount block.
func (c *census) uncounted(r *refcounts, f func(cluster int64, has, want uint64) error) error {
	for page := range c.refs.pages {
		for n := range int64(tallyPage) {
			cluster := page*tallyPage + n
			want, _ := c.refs.of(cluster)
			if want == 0 {
				continue
			}
			if off, err := r.offset(cluster / r.perBlock()); err == nil && off != 0 {
				continue
			}
			if err := f(cluster, 0, want); err != nil {
				return err
			}
		}
	}
	return nil
}
