package qcow2

import (
	"bytes"
	"context"
	"fmt"
	"slices"
)

// patched is a file as it will be when writes were done to it.
type patched struct {
	Source
	writes []write // in order, not overlapping
}

func (f patched) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.Source.ReadAt(p, off)
	i, _ := slices.BinarySearchFunc(f.writes, off, func(w write, off int64) int {
		if w.off+int64(len(w.data)) <= off {
			return -1
		}
		return 1
	})
	for ; i < len(f.writes) && f.writes[i].off < off+int64(n); i++ {
		w := f.writes[i]
		if skip := off - w.off; skip > 0 {
			copy(p[:n], w.data[skip:])
		} else {
			copy(p[-skip:n], w.data)
		}
	}
	return n, err
}

// verify reads what the batch moved, as the guest will once it is linked and the
// new parent named, and compares it with what the guest reads now.
func (m *mover) verify(ctx context.Context, b *batch, links []write) error {
	m.step("ABSORB:VERIFY")
	if !m.Verify {
		return nil
	}
	if err := m.evict(ctx); err != nil {
		return err
	}
	child, err := Open(patched{m.file, links})
	if err != nil {
		return err
	}
	after := NewChain(append([]*Image{child}, m.below.layers...)...)
	buffers := &buffers{}
	return b.runs(func(r run) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		r.n = min(r.n, child.virtual-r.guest)
		return buffers.same(ctx, m.old, after, r)
	})
}

// evict has the disk read again and not what the kernel remembers of it.
func (m *mover) evict(ctx context.Context) error {
	for _, c := range m.writer.copies {
		if err := evictAll(ctx, m.file, c.dst, c.n); err != nil {
			return err
		}
	}
	first := m.writer.first * m.im.cluster()
	return evictAll(ctx, m.file, first, m.writer.end*m.im.cluster()-first)
}

// evictAll evicts in pieces that take no time to speak of, and of which there are
// few, however long a file says it is: most of a very long one is not in memory.
func evictAll(ctx context.Context, f Source, off, n int64) error {
	const most = 64
	for piece := max(256<<20, n/most+1); n > 0; off, n = off+piece, n-piece {
		if err := ctx.Err(); err != nil {
			return err
		}
		evict(f, off, min(piece, n))
	}
	return nil
}

func evict(f Source, off, n int64) {
	if e, ok := f.(interface{ Evict(off, n int64) }); ok {
		e.Evict(off, n)
	}
}

// buffers are two to compare, made when they are needed.
type buffers struct{ p, q []byte }

func (b *buffers) two() (p, q []byte) {
	if b.p == nil {
		b.p, b.q = make([]byte, bufferSize), make([]byte, bufferSize)
	}
	return b.p, b.q
}

// same compares a run of two chains. What both have in the same blocks of the disk
// is not read.
func (b *buffers) same(ctx context.Context, x, y *Chain, r run) error {
	for end := r.guest + r.n; r.guest < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		e, err := x.Extent(r.guest, end-r.guest)
		if err != nil {
			return err
		}
		f, err := y.Extent(r.guest, e.Length)
		if err != nil {
			return err
		}
		n := f.Length
		if e.Kind == Data && f.Kind == Data {
			shared := sameBlocks(x.layers[e.Layer].src, e.Host, y.layers[f.Layer].src, f.Host, n)
			if r.guest += shared; shared > 0 {
				continue
			}
		}
		if !readsZero(e) || !readsZero(f) {
			n = min(n, bufferSize)
			p, q := b.two()
			if _, err := x.ReadAt(p[:n], r.guest); err != nil {
				return err
			}
			if _, err := y.ReadAt(q[:n], r.guest); err != nil {
				return err
			}
			if !bytes.Equal(p[:n], q[:n]) {
				return fmt.Errorf("%d bytes at %d of the disk: %w", n, r.guest, ErrVerify)
			}
		}
		r.guest += n
	}
	return nil
}
