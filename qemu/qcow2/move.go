package qcow2

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// Moving is how clusters are moved.
type Moving struct {
	// Verify has what was moved read back and compared before anything leads to it.
	Verify bool

	// Progress is told how many bytes of how many were moved. Limit, when set, is
	// asked before n bytes are moved and waits as long as it likes.
	Progress func(done, total int64)
	Limit    func(ctx context.Context, n int64) error

	// Unmoved says that a copy which the kernel makes moves no bytes here: extents
	// are shared, or a server copies. It is not cut into pieces then, nor synced on
	// the way.
	Unmoved bool

	// batch is what is moved at most between two rounds of syncs; 0 is the usual bound.
	// Tests set it.
	batch int64

	// Extended, when set, is called when the file is as long as it will get and
	// nothing else of it is changed. It returns an error when somebody had opened
	// it before that: see extend. Who opens it later reads right.
	Extended func() error

	// Step, when set, is called with each of Labels on the way. Tests stop there.
	Step func(label string)
}

// batchBytes is the bound of bytes in a batch. Where no bytes are moved there is none.
func (m *Moving) batchBytes() int64 {
	switch {
	case m.Unmoved:
		return 0
	case m.batch > 0:
		return m.batch
	}
	return maxBatchBytes
}

// Result is what an absorb or a merge did.
type Result struct {
	Work
	Calls int // to the kernel to copy
}

// ErrVerify: what was read back is not what was written. Nothing leads to it,
// and the image is as it was.
var ErrVerify = errors.New("what was copied reads differently")

// mover moves clusters of other images into one, batch by batch.
type mover struct {
	Moving
	file    File
	im      *Image   // file, as last read from the disk
	sources []*Image // where pieces come from
	old     *Chain   // what a guest reads where something is to be moved
	below   *Chain   // what im will stand on
	plan    func(ctx context.Context, off int64) (b *batch, next int64, err error)

	writer *writer
	copier *copier
	oldEnd int64 // the file's size at the start
	first  int64 // the cluster behind the last one in use at the start
	length int64 // its size from extend to cut
	bare   bool  // behind writer.first there is nothing but data that nothing leads to or counts
	total  Work
	done   int64
	result Result
}

func openMover(ctx context.Context, f File, how Moving) (*mover, error) {
	if how.Progress == nil {
		how.Progress = func(int64, int64) {}
	}
	if how.Step == nil {
		how.Step = func(string) {}
	}
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	// What an earlier run could not sync may be in the page cache and not on the
	// disk, as if it were durable.
	if err := evictAll(ctx, f, 0, size); err != nil {
		return nil, err
	}
	im, err := Open(f)
	if err != nil {
		return nil, err
	}
	return &mover{Moving: how, file: f, im: im, oldEnd: size}, nil
}

func (m *mover) step(label string) { m.Moving.Step(label) }

// inspect finds where the file's clusters end. An image that is corrupt already
// would get worse by being written to.
func (m *mover) inspect(ctx context.Context) (*census, error) {
	c, refs, err := inspect(ctx, m.im)
	if err != nil {
		return nil, err
	}
	if c.found.CorruptionCount > 0 {
		return nil, corrupt("%s", c.found.Corruptions[0])
	}
	cluster := m.im.cluster()
	m.first = max((m.oldEnd+cluster-1)/cluster, c.refs.highest+1)
	m.writer = newWriter(m.file, m.im, refs, m.first)
	m.bare = true
	return c, nil
}

// moveAll moves all that is planned.
func (m *mover) moveAll(ctx context.Context) error {
	if err := m.measure(ctx); err != nil {
		return err
	}
	if err := m.extend(); err != nil {
		return err
	}
	return m.eachBatch(ctx, func(b *batch) error {
		return m.move(ctx, b)
	})
}

// eachBatch plans batch by batch. Each is planned by the image as it is then.
func (m *mover) eachBatch(ctx context.Context, f func(*batch) error) error {
	for off := int64(0); off < m.im.virtual; {
		b, next, err := m.plan(ctx, off)
		if err != nil {
			return err
		}
		if !b.empty() {
			if err := f(b); err != nil {
				return err
			}
		}
		off = next
	}
	return nil
}

func (m *mover) measure(ctx context.Context) error {
	if err := m.eachBatch(ctx, func(b *batch) error { m.total.add(b); return nil }); err != nil {
		return err
	}
	m.result.Work = m.total
	m.copier = &copier{file: m.file, pace: pace{limit: m.Limit, unmoved: m.Unmoved, progress: func(n int64) {
		m.done += n
		m.Progress(m.done, m.total.Bytes())
	}}}
	m.Progress(0, m.total.Bytes())
	return nil
}

// move carries out a batch.
func (m *mover) move(ctx context.Context, b *batch) error {
	w := m.writer
	w.reset()
	if err := w.add(b); err != nil {
		return err
	}
	if err := w.allocate(); err != nil {
		return err
	}
	if w.end*w.im.cluster() > m.length {
		return fmt.Errorf("it grows beyond %d bytes: %w", m.length, ErrFallback)
	}
	links, err := w.linkWrites()
	if err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return m.store(ctx) },
		func() error { return m.count(ctx) },
		func() error { return m.verify(ctx, b, links) },
		func() error { return m.link(ctx, links) },
	} {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := step(); err != nil {
			return err
		}
	}
	return m.reopen()
}

// store writes what nothing leads to yet.
func (m *mover) store(ctx context.Context) error {
	m.step("ABSORB:STORE")
	w := m.writer
	m.copier.fresh = w.first * w.im.cluster()
	for _, c := range w.copies {
		if err := m.copier.copy(ctx, m.sources[c.layer], c); err != nil {
			return err
		}
	}
	for _, p := range w.moving {
		c := copying{layer: p.layer, src: p.host, dst: p.dst, n: p.n}
		if err := m.copier.copy(ctx, m.sources[p.layer], c); err != nil {
			return err
		}
	}
	for _, r := range w.filling {
		if err := m.fill(ctx, r); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	m.bare = false
	if err := w.write(ctx, w.storeWrites()); err != nil {
		return err
	}
	m.result.Calls, m.copier.unsynced = m.copier.calls, 0
	return syncFile(m.file)
}

// fill reads a run as the child's guest reads it and writes it to its place.
func (m *mover) fill(ctx context.Context, r run) error {
	return m.writer.eachCluster(r, func(guest, n int64) error {
		off, err := m.writer.place(guest)
		if err != nil {
			return err
		}
		off += guest % m.im.cluster()
		for n > 0 {
			p := m.copier.space(n)
			if err := m.copier.pace.before(ctx, int64(len(p))); err != nil {
				return err
			}
			if _, err := m.old.ReadAt(p, guest); err != nil {
				return err
			}
			if err := writeAt(m.file, p, off); err != nil {
				return err
			}
			m.copier.pace.progress(int64(len(p)))
			if err := m.copier.wrote(int64(len(p))); err != nil {
				return err
			}
			guest, off, n = guest+int64(len(p)), off+int64(len(p)), n-int64(len(p))
		}
		return nil
	})
}

// count makes the refcount table lead to new blocks.
func (m *mover) count(ctx context.Context) error {
	m.step("ABSORB:COUNT")
	t := m.writer.refs.table
	if t.fresh {
		return changeHeader(m.file, HeaderChange{RefcountTable: &TableAt{
			Offset: uint64(t.off), Clusters: uint32(int64(len(t.data)) / m.im.cluster()),
		}})
	}
	// A block may be counted in another one, never in one that comes before it in
	// the table: see addBlocks. Entries of one sector reach the disk together.
	for _, s := range slices.Backward(slices.Sorted(maps.Keys(t.dirty))) {
		if err := m.writer.write(ctx, []write{t.sector(s)}); err != nil {
			return err
		}
		if err := syncFile(m.file); err != nil {
			return err
		}
	}
	return nil
}

// link makes the batch part of the child's disk. Every entry on its own is right,
// linked or not.
func (m *mover) link(ctx context.Context, links []write) error {
	m.step("ABSORB:LINK")
	if err := m.unchanged(); err != nil {
		return err
	}
	if err := m.writer.write(ctx, links); err != nil {
		return err
	}
	if err := syncFile(m.file); err != nil {
		return err
	}
	return m.writer.release(ctx)
}

// reopen begins anew with what is in the file.
func (m *mover) reopen() error {
	child, err := Open(m.file)
	if err != nil {
		return err
	}
	m.im = child
	m.writer.im, m.writer.refs.im = child, child
	m.writer.refs.table.fresh, m.writer.refs.table.dirty = false, map[int64]bool{}
	m.writer.reset()
	m.bare = true
	return nil
}

// giveBackAfter returns what was stored and not linked, after an error that leaves
// no doubt about what is in the file. It does so also when ctx is at its end, and
// somebody waits for that. While clusters are being stored, which is what takes the
// time, it takes none: they are cut off, and what of them is not written yet need
// not be. Later it takes as long as the inspection did.
func (m *mover) giveBackAfter(ctx context.Context, err error) error {
	if err == nil || errors.Is(err, ErrSync) || errors.Is(err, ErrChanged) || m.writer == nil {
		return err
	}
	giveBack := m.reclaim
	if m.bare {
		giveBack = m.cutBack
	}
	if back := giveBack(context.WithoutCancel(ctx)); back != nil {
		err = errors.Join(err, fmt.Errorf("clusters that are not used stay behind in the image: %w", back))
	}
	return err
}

// cutBack cuts the batch off. A power cut after it brings back at most what nobody
// counts, behind the end of all that is in use.
func (m *mover) cutBack(context.Context) error {
	end := m.writer.first * m.im.cluster()
	if m.writer.first == m.first {
		end = m.oldEnd // which need not be that of a cluster
	}
	if err := m.file.Truncate(end); err != nil {
		return fmt.Errorf("cut the file off at %d: %w", end, err)
	}
	return nil
}

// reclaim is Reclaim without doubts about the page cache: no sync has failed.
func (m *mover) reclaim(ctx context.Context) error {
	if err := syncFile(m.file); err != nil {
		return err
	}
	return reclaim(ctx, m.file, m.oldEnd)
}
