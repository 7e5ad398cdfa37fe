package store

import (
	"context"
	"runtime"
	"sync"

	"github.com/chainfs/chainfs/chain"
)

// imageBatch decodes records on all processors: JSON is nine tenths of the time
// that loading an index takes. Its buffers are used again for each batch.
type imageBatch struct {
	records [batchSize]encodedImage
	n       int
}

const batchSize = 1024

type encodedImage struct {
	key   string
	value []byte
	image chain.Image
	err   error
}

func (b *imageBatch) full() bool { return b.n == batchSize }

func (b *imageBatch) add(key string, value []byte) {
	r := &b.records[b.n]
	r.key, r.value = key, append(r.value[:0], value...)
	b.n++
}

// pass decodes the batch, gives it to f in order and empties it.
func (b *imageBatch) pass(ctx context.Context, dir string, f func(chain.Image) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	b.decode()
	for i := range b.records[:b.n] {
		r := &b.records[i]
		if r.err != nil {
			return damaged(dir, r.err)
		}
		if err := f(r.image); err != nil {
			return err
		}
	}
	b.n = 0
	return nil
}

func (b *imageBatch) decode() {
	workers := runtime.GOMAXPROCS(0)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := w; i < b.n; i += workers {
				r := &b.records[i]
				r.image, r.err = decodeImage(r.key, r.value)
			}
		})
	}
	wg.Wait()
}
