package qcow2

// walk asks a chain for one extent after the other. It remembers what each layer
// said: a layer that has nothing for a long way would otherwise be searched as
// far again for each extent of those below it.
type walk struct {
	*Chain
	held []Extent // by layer, what it said last; no longer than it was asked for
}

func newWalk(c *Chain) *walk { return &walk{c, make([]Extent, len(c.layers))} }

// extent is as Chain.Extent.
func (w *walk) extent(off, n int64) (Extent, error) { return w.extentOf(off, n, w.layer) }

func (w *walk) layer(i int, off, n int64) (Extent, error) {
	if e := &w.held[i]; e.Start <= off && off < e.End() {
		return e.cut(off, n), nil
	}
	e, err := w.layers[i].extent(off, n)
	if err == nil {
		w.held[i] = e
	}
	return e, err
}

// cut is the part of an extent from off on, at most n bytes.
func (e Extent) cut(off, n int64) Extent {
	if e.Kind == Data {
		e.Host += off - e.Start
	}
	e.Length = min(e.End()-off, n)
	e.Start = off
	return e
}
