package store

import (
	"fmt"
	"testing"

	"github.com/chainfs/chainfs/chain"
)

// An operation that is stored with another plan while operations are listed is
// listed with the one plan or the other.
func TestListedWhilePlansChange(t *testing.T) {
	s := memory(t)
	plan := func(n int) chain.Plan {
		return chain.Plan{Act: chain.ActDelete, Paths: []chain.Path{chain.Path(fmt.Sprint(n))}}
	}
	must(t, s.Record(chain.Operation{ID: 1, State: chain.Prepared, Plan: plan(0)}))
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		for n := 1; n < 2000; n++ {
			select {
			case <-stop:
				ended <- nil
				return
			default:
			}
			if err := s.Record(chain.Operation{ID: 1, State: chain.Prepared, Plan: plan(n)}); err != nil {
				ended <- err
				return
			}
		}
		ended <- nil
	}()
	for range 200 {
		ops, err := s.Operations(false)
		if err != nil || len(ops) != 1 || len(ops[0].Plan.Paths) != 1 {
			t.Errorf("listed are %v, %v", ops, err)
			break
		}
	}
	close(stop)
	must(t, <-ended)
	// The number was never handed out: that is what this test needs no store on disk for.
	must(t, s.commit([]change{{nextOpKey, []byte("2")}}))
}
