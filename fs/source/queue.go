package source

import (
	"errors"
	"sync"
)

// errLeft: a worker ended in the middle of its work, as a test that fails does.
var errLeft = errors.New("a worker left its work undone")

// queue is work for a few workers, who find more of it while they work.
type queue[T any] struct {
	mu    sync.Mutex
	more  sync.Cond // there is work, or none is to come
	items []T       // guarded by mu
	busy  int       // guarded by mu; workers that may still find work
	err   error     // guarded by mu; the first error: nothing is begun after it
}

// drain runs do on all items and on what do pushes, with one listing for each
// of the workers, and returns the first error.
func (q *queue[T]) drain(workers int, do func(*listing, T) error) error {
	q.more.L = &q.mu
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			list := new(listing)
			for {
				item, ok := q.pop()
				if !ok {
					return
				}
				q.one(list, item, do)
			}
		})
	}
	wg.Wait()
	return q.err
}

func (q *queue[T]) push(item T) {
	q.mu.Lock()
	q.items = append(q.items, item)
	q.mu.Unlock()
	q.more.Signal()
}

// pop takes the last item: so few are waiting at any time.
func (q *queue[T]) pop() (item T, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.items) == 0 && q.busy > 0 && q.err == nil {
		q.more.Wait()
	}
	if len(q.items) == 0 || q.err != nil {
		return item, false
	}
	item = q.items[len(q.items)-1]
	q.items = q.items[:len(q.items)-1]
	q.busy++
	return item, true
}

// one does one item. The others learn of its end however it comes, or they
// would wait for ever.
func (q *queue[T]) one(list *listing, item T, do func(*listing, T) error) {
	err := errLeft
	defer func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.busy--
		if q.err == nil {
			q.err = err
		}
		if q.err != nil || q.busy == 0 && len(q.items) == 0 {
			q.more.Broadcast()
		}
	}()
	err = do(list, item)
}
