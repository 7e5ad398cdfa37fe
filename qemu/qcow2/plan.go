package qcow2

import "context"

// planner finds what a child would lose with its parents: what it does not have
// itself and they do.
type planner struct {
	child       *Image
	away, below *walk // below has no layers when the child becomes a full
	maxBytes    int64 // of a batch; see there
}

func newPlanner(child *Image, away, below []*Image, maxBytes int64) planner {
	return planner{child, newWalk(NewChain(away...)), newWalk(NewChain(below...)), maxBytes}
}

// Measure is how much Absorb would have to do: exactly, from the images' tables
// alone.
func Measure(ctx context.Context, child *Image, away, below []*Image) (Work, error) {
	p := newPlanner(child, away, below, 0)
	var w Work
	for off := int64(0); off < child.virtual; {
		b, next, err := p.plan(ctx, off)
		if err != nil {
			return w, err
		}
		w.add(b)
		off = next
	}
	return w, nil
}

// plan fills a batch from off on, and tells where the next one begins.
func (p *planner) plan(ctx context.Context, off int64) (b *batch, next int64, err error) {
	b = newBatch(p.child.geometry, p.maxBytes)
	for off < p.child.virtual {
		if err := ctx.Err(); err != nil {
			return nil, 0, err
		}
		e, err := p.child.extent(off, p.child.virtual-off)
		if err != nil {
			return nil, 0, err
		}
		end := e.End()
		for e.Kind == Absent && off < end {
			if err := ctx.Err(); err != nil {
				return nil, 0, err
			}
			n, err := p.next(b, off, end)
			if err != nil {
				return nil, 0, err
			}
			if n == 0 { // the batch is full
				return b, off, nil
			}
			off += n
		}
		off = end
	}
	return b, off, nil
}

// next plans the start of a range that the child does not have, and tells how
// much of it; 0 when the batch is full. All begins and ends at the child's units,
// or at the end of its disk.
func (p *planner) next(b *batch, off, end int64) (int64, error) {
	e, err := p.away.extent(off, end-off)
	if err != nil {
		return 0, err
	}
	whole := e.Length / b.unit() * b.unit()
	if e.End() == end {
		whole = e.Length
	}
	switch {
	case whole == 0:
		return p.unit(b, run{off, min(b.unit(), end-off)})
	case e.Kind == Absent:
		return whole, nil
	case e.Kind == Zero:
		return p.zeros(b, run{off, whole})
	case e.Kind == Compressed:
		return p.compressed(b, e, run{off, whole}, end)
	}
	n := b.takeData(off, whole)
	if n > 0 {
		b.pieces = append(b.pieces, piece{run{off, n}, e.Layer, e.Host})
	}
	return n, nil
}

// compressed moves a whole cluster as it is where the child can hold it so. The
// last one of a disk that ends inside it is not whole: what it has behind the end
// would be seen when the child grows.
func (p *planner) compressed(b *batch, e Extent, r run, end int64) (int64, error) {
	from := p.away.layers[e.Layer]
	asIs := from.clusterBits == b.clusterBits && from.header.CompressionType == p.child.header.CompressionType &&
		r.guest%b.cluster() == 0 && r.n == b.cluster()
	n := b.takeData(r.guest, r.n)
	switch {
	case n == 0:
	case asIs && n == r.n:
		b.packed = append(b.packed, packedCluster{r.guest, e.Layer, e.Host, e.Packed})
	default:
		b.mixed = append(b.mixed, run{r.guest, n})
	}
	return n, nil
}

// unit plans a single unit that comes from several places.
func (p *planner) unit(b *batch, r run) (int64, error) {
	absent, zero := true, true
	for off := r.guest; off < r.guest+r.n; {
		e, err := p.away.extent(off, r.guest+r.n-off)
		if err != nil {
			return 0, err
		}
		absent = absent && e.Kind == Absent
		if e.Kind == Absent {
			if e, err = p.below.extent(off, e.Length); err != nil {
				return 0, err
			}
		}
		zero = zero && readsZero(e)
		off = e.End()
	}
	switch {
	case absent:
		return r.n, nil
	case zero:
		return p.zeros(b, r)
	}
	n := b.takeData(r.guest, r.n)
	if n > 0 {
		b.mixed = append(b.mixed, run{r.guest, n})
	}
	return n, nil
}

func readsZero(e Extent) bool { return e.Kind == Zero || e.Kind == Absent && e.Layer < 0 }

// zeros plans a run that reads as zeros. Where what stays below reads as zeros
// too nothing is needed.
func (p *planner) zeros(b *batch, r run) (int64, error) {
	end := r.guest + r.n
	for off := r.guest; off < end; {
		e, err := p.below.extent(off, end-off)
		if err != nil {
			return 0, err
		}
		if readsZero(e) {
			whole := e.Length / b.unit() * b.unit()
			if e.End() == end {
				whole = e.Length
			}
			if off += whole; whole > 0 {
				continue
			}
		}
		n := min((e.End()-off+b.unit()-1)/b.unit()*b.unit(), end-off)
		if n = b.take(off, n); n == 0 {
			return off - r.guest, nil // 0 when nothing at all was planned
		}
		b.zeros = append(b.zeros, run{off, n})
		off += n
	}
	return r.n, nil
}
