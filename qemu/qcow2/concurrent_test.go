package qcow2

import (
	"bytes"
	"math/rand/v2"
	"sync"
	"testing"
)

// Several goroutines read through the same images at once, as readers of a mount
// do. It is run with the race detector, which the long tests are too slow for.
func TestConcurrentReads(t *testing.T) {
	all := scenes(t, dice(t))
	for i := range all {
		s := &all[i]
		child, err := Open(&disk{data: s.child})
		if err != nil {
			t.Fatal(err)
		}
		chain := NewChain(append([]*Image{child}, s.below(t, 0)...)...)
		var group sync.WaitGroup
		for n := range 4 {
			rng := rand.New(rand.NewPCG(uint64(i), uint64(n)))
			group.Go(func() {
				for range 20 {
					off := rng.Int64N(int64(len(s.want)))
					p := make([]byte, min(rng.Int64N(100<<10)+1, int64(len(s.want))-off))
					if _, err := chain.ReadAt(p, off); err != nil {
						t.Errorf("%s: %v", s.name, err)
						return
					}
					if !bytes.Equal(p, s.want[off:off+int64(len(p))]) {
						t.Errorf("%s: %d bytes at %d differ", s.name, len(p), off)
					}
				}
			})
		}
		group.Wait()
	}
}
