package qcow2

import (
	"fmt"
	"math"
	"os"
)

// Chain is images on top of each other, as a guest sees them. Several goroutines
// may use it.
type Chain struct {
	layers   []*Image
	inflated inflated
}

// NewChain makes a chain of its layers, the top first. Whether their headers
// name each other is not asked.
//
// From now on the layers share the memory of one: a chain may have 256 of them.
func NewChain(layers ...*Image) *Chain {
	for _, im := range layers {
		if im.header != nil {
			im.meta.limit(max(chainBlocks/len(layers), minBlocks))
		}
	}
	return &Chain{layers: layers}
}

// VirtualSize is the top's, in bytes.
func (c *Chain) VirtualSize() int64 { return c.layers[0].virtual }

// Extent is the longest extent that starts at off, of at most n bytes: what a
// guest reads there comes from one layer, or is zero. It may end before the next
// one begins to differ. What no layer has is Absent, with Layer -1.
//
// Behind the end of a layer there are zeros, whatever lies below it.
func (c *Chain) Extent(off, n int64) (Extent, error) {
	return c.extentOf(off, n, func(i int, off, n int64) (Extent, error) { return c.layers[i].extent(off, n) })
}

// extentOf is Extent, with what a layer says from layer.
func (c *Chain) extentOf(off, n int64, layer func(i int, off, n int64) (Extent, error)) (Extent, error) {
	if off < 0 || n < 0 {
		return Extent{}, fmt.Errorf("%d bytes at %d of the disk: %w", n, off, os.ErrInvalid)
	}
	for i, im := range c.layers {
		if off >= im.virtual {
			return Extent{Start: off, Length: n, Kind: Zero, Layer: i}, nil
		}
		n = min(n, im.virtual-off)
		e, err := layer(i, off, n)
		if err != nil {
			return e, fmt.Errorf("layer %d: %w", i, err)
		}
		n, e.Layer = e.Length, i
		if e.Kind != Absent {
			return e, nil
		}
	}
	return Extent{Start: off, Length: n, Layer: -1}, nil
}

// Map calls f with the extents from off on, n bytes in all, in order. Neighbours
// that are one run are one extent, unless it takes long to find its end: f, which
// may end the map, is called before.
func (c *Chain) Map(off, n int64, f func(Extent) error) error {
	var held Extent
	w, joined := newWalk(c), 0
	for end := off + min(n, math.MaxInt64-off); off < end; {
		e, err := w.extent(off, end-off)
		if err != nil {
			return err
		}
		off = e.End()
		if held.Length > 0 {
			if joined < maxJoined && held.join(e) {
				joined++
				continue
			}
			joined = 0
			if err := f(held); err != nil {
				return err
			}
		}
		held = e
	}
	if held.Length == 0 {
		return nil
	}
	return f(held)
}

// maxJoined is how many extents Map makes one of.
const maxJoined = 16

// ReadAt reads as the guest would. Behind the end of the disk there are zeros:
// this is how a layer above sees it.
func (c *Chain) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		e, err := c.Extent(off+int64(done), int64(len(p)-done))
		if err != nil {
			return done, err
		}
		if err := c.readExtent(p[done:done+int(e.Length)], e); err != nil {
			return done, fmt.Errorf("layer %d: %w", e.Layer, err)
		}
		done += int(e.Length)
	}
	return done, nil
}

// readExtent fills p, which is as long as e.
func (c *Chain) readExtent(p []byte, e Extent) error {
	switch e.Kind {
	case Data:
		return c.layers[e.Layer].readData(p, e.Host)
	case Compressed:
		data, err := c.inflated.cluster(c.layers[e.Layer], e.Host, e.Packed)
		if err != nil {
			return err
		}
		copy(p, data[e.Start%int64(len(data)):])
		return nil
	}
	clear(p)
	return nil
}
