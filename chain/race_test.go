package chain_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/chainfs/chainfs/chain"
)

// quietRebaser is the toy rebaser without steps, for many goroutines.
type quietRebaser struct{ *toyRebaser }

func (r quietRebaser) Rebase(ctx context.Context, job chain.RebaseJob, _ func(done, total int64)) error {
	time.Sleep(time.Millisecond)
	n := *r.w
	return (&toyRebaser{&n}).Rebase(ctx, job, nil)
}

// Many callers at once delete members of the same and of other chains, rename,
// look and list. What was not deleted reads as before.
func TestConcurrent(t *testing.T) {
	w, rng := reviewWorld(t)
	var all []chain.Path
	for vm := range 4 {
		for i := range 12 {
			for _, d := range []string{"root", "data"} {
				p := chain.Path(fmt.Sprintf("vm%d/T%02d/%s", vm, i, d))
				var par chain.Path
				if i > 0 {
					par = chain.Path(fmt.Sprintf("vm%d/T%02d/%s", vm, i-1, d))
				}
				w.write(p, par, rng)
				all = append(all, p)
			}
		}
	}
	do(t, w.reopen(func(c *chain.Config) { c.Rebaser = quietRebaser{&toyRebaser{w}}; c.Step = nil }))
	w.put("q0", "x")
	w.put("q1", "x")
	var mu sync.Mutex
	deleted := map[chain.Path]bool{}
	odd := map[string]int{}
	ctx, stop := context.WithTimeout(bg, 6*time.Second)
	defer stop()
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), uint64(time.Now().UnixNano())))
			for ctx.Err() == nil {
				p := all[rng.IntN(len(all))]
				switch k := rng.IntN(10); {
				case k < 5:
					c, cancel := ctx, func() {}
					if rng.IntN(4) == 0 {
						c, cancel = context.WithTimeout(ctx, time.Duration(rng.IntN(30))*time.Millisecond)
					}
					err := w.tree.Delete(c, []chain.Path{p}, chain.DeleteOptions{}, nil)
					cancel()
					mu.Lock()
					switch {
					case err == nil:
						deleted[p] = true
					case refused(err), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), errors.Is(err, fs.ErrNotExist):
					default:
						odd[err.Error()]++
					}
					mu.Unlock()
				case k < 6:
					w.tree.Rename(ctx, "q"+chain.Path(fmt.Sprint(g%2)), "q"+chain.Path(fmt.Sprint(1-g%2)), 2)
				case k < 7:
					w.tree.Look(ctx, p)
				case k < 8:
					w.tree.Changed(p)
				case k < 9:
					w.tree.List(ctx, p.Dir())
				default:
					w.tree.CheckWrite(context.Background(), p, 1, 2, false)
				}
			}
		})
	}
	wg.Wait()
	for e, n := range odd {
		t.Logf("%d times: %s", n, e)
	}
	left := 0
	for p := range maps.Clone(w.want) {
		_, err := os.Stat(w.path(p))
		if err != nil && !deleted[p] {
			// A deletion may be cut off by its context only before it is committed.
			t.Errorf("%s is gone and nobody was told", p)
		}
		if err == nil && deleted[p] {
			t.Errorf("%s is there and was acknowledged as deleted", p)
		}
		if err != nil {
			delete(w.want, p)
		} else {
			left++
		}
	}
	t.Logf("%d deleted, %d left", len(deleted), left)
	os.Remove(w.path("q0"))
	os.Remove(w.path("q1"))
	w.checkClean()
}
