package store

import (
	"errors"

	"github.com/chainfs/chainfs/chain"
)

// maxHistory is how many operations are kept.
const maxHistory = 10_000

// loadHistory counts operations and drops plans that a crash left without one.
func (s *Store) loadHistory() error {
	known := map[uint64]bool{}
	err := s.keys(opPrefix, func(key string) {
		if id, err := keyID(key); err == nil { // otherwise Check reports it
			known[id] = true
		}
	})
	if err != nil {
		return err
	}
	s.kept = len(known)
	var orphans []change
	err = s.keys(planPrefix, func(key string) {
		if len(key) >= len(planPrefix)+8 {
			if id, err := keyID(key[:len(planPrefix)+8]); err == nil && !known[id] {
				orphans = append(orphans, change{key: key})
			}
		}
	})
	if err != nil || len(orphans) == 0 {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.commit(orphans)
}

// pruned is what goes to make room for newer operations.
type pruned struct {
	changes []change
	n       int
	oldest  uint64
}

// errEnough ends an iteration.
var errEnough = errors.New("enough")

// prune picks the n oldest operations that have ended. It starts where the last
// one ended: before that are only running ones, and the tombstones of all that
// was pruned before.
func (s *Store) prune(n int) (pruned, error) {
	p := pruned{oldest: s.oldest}
	var heads []operationRecord
	passed := false // a running operation, which must be looked at again
	err := s.each(opPrefix, string(idKey(opPrefix, s.oldest)), func(key string, value []byte) error {
		if len(heads) == n {
			return errEnough
		}
		rec, err := decodeHead(key, value)
		if err != nil {
			return err
		}
		if passed = passed || rec.State.Running(); !passed {
			p.oldest = uint64(rec.ID) + 1
		}
		if !rec.State.Running() {
			heads = append(heads, rec)
		}
		return nil
	})
	if err != nil && err != errEnough {
		return p, err
	}
	for _, rec := range heads {
		p.changes = append(p.changes, change{key: opKey(rec.ID)})
		if p.changes, err = s.dropPlan(p.changes, rec.ID, rec.Sum); err != nil {
			return p, err
		}
	}
	p.n = len(heads)
	return p, nil
}

// dropped notes that what prune picked is gone.
func (s *Store) dropped(p pruned) {
	s.kept -= p.n
	s.oldest = max(s.oldest, p.oldest)
}

// dropPlan adds the deletion of a plan's pieces to changes.
func (s *Store) dropPlan(changes []change, id chain.OpID, sum planSum) ([]change, error) {
	err := s.keys(planKey(id, sum), func(key string) {
		changes = append(changes, change{key: key})
	})
	return changes, err
}
