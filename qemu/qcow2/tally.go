package qcow2

import "fmt"

// tally counts references by cluster, in pages: what a file says of its length,
// and how far apart its clusters lie, is up to who wrote it.
type tally struct {
	pages    map[int64]*tallyPage
	many     map[int64]uint64 // counts that a page has no room for
	highest  int64            // the highest cluster that has a reference; -1 without any
	reserved int              // bytes of maxTally that somebody else uses
	full     bool             // maxTally was not enough: the counts are not complete

	// The page that was looked at last.
	number int64
	page   *tallyPage
}

// tallyPage is a count in the low bits for each cluster, and marks.
type tallyPage [tallyClusters]uint16

const (
	tallyClusters = 4096
	maxTallyCount = 1<<12 - 1 // stands for "see many"
	maxReferences = 1 << 62   // more than a file can have before the machine is scrapped

	// maxTally bounds the memory, in bytes. Pages that are used in full are enough
	// for 64 million clusters: 4 TiB with clusters of 64 KiB. An entry of 8 bytes
	// can make a page, so that without a bound a small file could ask for any amount.
	maxTally     = 128 << 20
	tallyPageUse = 2*tallyClusters + 64
	tallyManyUse = 64
	l2TableUse   = 48 // of a table in a census: 16 bytes in a map that is half full, and 8 to sort
)

// mark is what else is known of a cluster.
type mark uint16

const (
	markMeta   mark = 1 << (12 + iota) // metadata that nothing else may share
	markBlock                          // a refcount block, which must be named once only
	markCopied                         // an active entry says that the refcount is one
	markShared                         // an active entry says that it is not
)

// errTooFar: a census would need more memory than there should be.
var errTooFar = fmt.Errorf("the image's clusters are too many, or too far apart, to be counted in %d MiB: %w", maxTally>>20, ErrFallback)

func newTally() tally {
	return tally{pages: map[int64]*tallyPage{}, many: map[int64]uint64{}, highest: -1, number: -1}
}

func (t *tally) at(number int64) *tallyPage {
	if number != t.number {
		t.number, t.page = number, t.pages[number]
	}
	return t.page
}

// slot is where a cluster is counted; nil when there is no room for it.
func (t *tally) slot(cluster int64) *uint16 {
	page := t.at(cluster / tallyClusters)
	if page == nil {
		if !t.room(tallyPageUse) {
			return nil
		}
		page = new(tallyPage)
		t.pages[t.number], t.page = page, page
	}
	return &page[cluster%tallyClusters]
}

func (t *tally) room(n int) bool {
	if len(t.pages)*tallyPageUse+len(t.many)*tallyManyUse+t.reserved+n > maxTally {
		t.full = true
	}
	return !t.full
}

// reserve takes n bytes for something else, where there is room.
func (t *tally) reserve(n int) bool {
	if !t.room(n) {
		return false
	}
	t.reserved += n
	return true
}

// add counts n references, and sets marks.
func (t *tally) add(cluster int64, n uint64, m mark) {
	s := t.slot(cluster)
	if s == nil {
		return
	}
	have := uint64(*s & maxTallyCount)
	listed := have == maxTallyCount
	if listed {
		have = t.many[cluster]
	}
	switch sum := have + n; {
	case sum < maxTallyCount:
		*s += uint16(n)
	case sum > maxReferences:
		t.full = true
	case listed || t.room(tallyManyUse):
		*s |= maxTallyCount
		t.many[cluster] = sum
	}
	*s |= uint16(m)
	t.highest = max(t.highest, cluster)
}

// of is how many references a cluster has, and its marks.
func (t *tally) of(cluster int64) (uint64, mark) {
	if cluster < 0 { // by an offset that is too large; nothing is counted there
		return 0, 0
	}
	page := t.at(cluster / tallyClusters)
	if page == nil {
		return 0, 0
	}
	s := page[cluster%tallyClusters]
	n := uint64(s & maxTallyCount)
	if n == maxTallyCount {
		n = t.many[cluster]
	}
	return n, mark(s &^ maxTallyCount)
}

func (t *tally) has(cluster int64, m mark) bool {
	_, marks := t.of(cluster)
	return marks&m != 0
}
