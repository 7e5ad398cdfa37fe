package qcow2

import (
	"context"
	"fmt"
	"io"
)

// RepairLeaks lowers refcounts to the number of references and cuts the file off
// behind the last cluster in use. It returns how many bytes the image can use
// again or the file is shorter. Nobody else may have the image open for writing.
//
//	settle   what somebody else wrote is durable                    sync
//	counts   lowered to the references                              sync
//	flags    set in entries that are now the only ones              sync
//	cut      the file, behind the last cluster in use               sync
//
// Any subset of these writes leaves an image that reads the same: neither counts
// nor flags say where data is. The counts go first because a count of one beside
// an entry without its flag is safe for every writer: QEMU then copies the
// cluster and lowers the count (specification, "Cluster mapping", bit 63). A flag
// beside a count of two would have it write in place to what the counts call
// shared. Where it stops half-way leaks are left, or flags that are missing;
// RepairLeaks mends both when it is called again, as "qemu-img check -r all" does.
//
// An image that is corrupt in any other way is ErrCorrupt and left alone: what its
// tables do not tell might be in use. ErrUnsupported is one in which clusters may
// belong to what is not known, ErrFallback one that takes too much memory to count.
// After ErrSync nothing is known about what is on disk but that it reads the same.
//
// It ends with ctx until it begins to write, and not any more then: nothing would
// be lost, but it would have to be done again.
func RepairLeaks(ctx context.Context, f File) (freed int64, err error) {
	if err := settle(ctx, f); err != nil {
		return 0, err
	}
	im, err := Open(f)
	if err != nil {
		return 0, err
	}
	if why, err := unrepairable(im); err != nil || why != "" {
		if err == nil {
			err = unsupported("the image %s", why)
		}
		return 0, err
	}
	c, r, err := inspect(ctx, im)
	if err != nil {
		return 0, err
	}
	if c.found.CorruptionCount > c.found.StaleFlags {
		return 0, corrupt("%s", c.found.Corruptions[0])
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	begun := &beginning{f, c, context.WithoutCancel(ctx)}
	for _, step := range []func() error{
		func() error { return c.lower(begun, r, func(difference) bool { return true }) },
		func() error { return c.flag(begun) },
		func() error { return c.cut(begun, 0) },
	} {
		if err := step(); err != nil {
			return 0, err
		}
	}
	size, err := f.Size()
	return c.spare*im.cluster() + im.fileSize - size, err
}

// beginning is a file that has a census end no more once it is written to.
type beginning struct {
	File
	c       *census
	patient context.Context
}

func (f *beginning) WriteAt(p []byte, off int64) (int, error) {
	f.c.ctx = f.patient
	return f.File.WriteAt(p, off)
}

const (
	knownCompatible   = 1 << 0 // lazy refcounts
	knownHeaderLength = 112
)

// unrepairable is why clusters without references may not be given back. What an
// image has that is not known may have clusters of its own: the bitmaps were such
// a feature once.
func unrepairable(im *Image) (string, error) {
	h := im.header
	switch {
	case h.Has(Dirty):
		return "was not closed, so that its refcounts are stale; run qemu-img check -r all on a copy of it", nil
	case h.Autoclear&^knownAutoclear != 0:
		return fmt.Sprintf("has autoclear features that are not known (%#x)", h.Autoclear&^knownAutoclear), nil
	case h.Compatible&^knownCompatible != 0:
		return fmt.Sprintf("has compatible features that are not known (%#x)", h.Compatible&^knownCompatible), nil
	}
	for _, e := range h.Extensions {
		switch e.Type {
		case ExtBackingFormat, ExtFeatureNames, ExtBitmaps:
		default:
			return fmt.Sprintf("has a header extension that is not known (%#08x)", e.Type), nil
		}
	}
	if h.HeaderLength <= knownHeaderLength {
		return "", nil
	}
	fields := make([]byte, h.HeaderLength-knownHeaderLength)
	if _, err := io.ReadFull(io.NewSectionReader(im.src, knownHeaderLength, int64(len(fields))), fields); err != nil {
		return "", fmt.Errorf("read the header: %w", err)
	}
	for _, b := range fields {
		if b != 0 {
			return "has header fields that are not known", nil
		}
	}
	return "", nil
}

// flag sets the flag of a refcount of one in the active entries that are the only
// ones of their clusters and do not say so. The counts are durable.
func (c *census) flag(f File) error {
	if !c.refs.anyUnflagged() {
		return nil
	}
	h := c.im.header
	l1 := newTable(int64(h.L1Offset), make([]byte, int64(h.L1Size)*8), false)
	if err := c.im.meta.read(l1.data, l1.off); err != nil {
		return fmt.Errorf("read the L1 table: %w", err)
	}
	for i := range int64(h.L1Size) {
		off := int64(l1.get64(i) & offsetMask)
		// What a table that is named twice leads to has two references, too.
		if off == 0 || c.tables[off].names() > 1 {
			continue
		}
		if c.refs.unflagged(off / c.im.cluster()) {
			l1.put64(i, l1.get64(i)|flagCopied)
		}
		if err := c.flagTable(f, off); err != nil {
			return err
		}
	}
	if err := writeTable(f, l1); err != nil {
		return err
	}
	return syncFile(f)
}

// flagTable does so in an L2 table.
func (c *census) flagTable(f File, off int64) error {
	var t *table
	err := c.eachEntry(off, func(at int64, e l2Entry) error {
		if e.compressed() || e.host() == 0 || e.desc&flagCopied != 0 || !c.refs.unflagged(e.host()/c.im.cluster()) {
			return nil
		}
		if t == nil {
			t = newTable(off, make([]byte, c.im.cluster()), false)
			if err := c.im.meta.read(t.data, off); err != nil {
				return fmt.Errorf("read an L2 table: %w", err)
			}
		}
		t.put64((at-off)/8, e.desc|flagCopied)
		return nil
	})
	if err != nil || t == nil {
		return err
	}
	return writeTable(f, t)
}

// writeTable writes the sectors of a table that were changed.
func writeTable(f File, t *table) error {
	for _, w := range t.writes() {
		if err := writeAt(f, w.data, w.off); err != nil {
			return err
		}
	}
	return nil
}

// unflagged reports whether a cluster's only entry is an active one that has not
// the flag of a refcount of one.
func (t *tally) unflagged(cluster int64) bool {
	n, marks := t.of(cluster)
	return n == 1 && marks&markShared != 0
}

func (t *tally) anyUnflagged() bool {
	for page := range t.pages {
		for n := range int64(tallyClusters) {
			if t.unflagged(page*tallyClusters + n) {
				return true
			}
		}
	}
	return false
}
