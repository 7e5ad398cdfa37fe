package qcow2

import "fmt"

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

// findings collects corruptions.
type findings struct {
	Findings
	flags map[int64]flagged
}

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
// uses: four bytes a cluster.
func Check(src Source) (*Findings, error) {
	im, err := Open(src)
	if err != nil {
		return nil, err
	}
	c, _, err := inspect(im)
	if err != nil {
		return nil, err
	}
	return &c.found.Findings, nil
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

// compare notes where refcounts and references differ.
func (c *census) compare(r *refcounts) error {
	err := c.differences(r, func(cluster int64, has, want uint64) error {
		if has < want {
			c.found.corrupt("cluster %d has a refcount of %d and %d references", cluster, has, want)
			return nil
		}
		c.found.LeakedClusters++
		c.found.LeakedBytes += c.im.cluster()
		return nil
	})
	if err != nil {
		return err
	}
	for cluster, f := range c.found.flags {
		n, err := r.get(cluster)
		if err != nil {
			return err
		}
		if f.copied != (n == 1) {
			c.found.corrupt("%s at %#x has a refcount of %d, and its entry says otherwise", f.what, cluster*c.im.cluster(), n)
		}
	}
	return nil
}

// differences calls f for each cluster whose refcount is not its number of
// references. It keeps none of the blocks that it reads.
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
		if has == want {
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
