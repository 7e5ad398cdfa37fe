package store

import (
	"fmt"
	"strconv"

	"github.com/chainfs/chainfs/chain"
)

// lease is a block of ids that is durably marked as handed out before the first
// of them is. A crash loses what is left of a block, and never repeats an id.
type lease struct {
	key   string
	block uint64
	next  uint64 // the next id to hand out
	end   uint64 // the first id not leased, as the store has it
}

func (s *Store) loadLeases() error {
	s.images = lease{key: nextImageKey, block: 1024}
	s.ops = lease{key: nextOpKey, block: 16} // few, so that numbers that users see have small gaps
	for _, l := range []*lease{&s.images, &s.ops} {
		end, err := s.leased(l.key)
		if err != nil {
			return err
		}
		l.next, l.end = end, end
	}
	return nil
}

// leased reads the first id not leased. Ids start at 1; 0 is no image.
func (s *Store) leased(key string) (uint64, error) {
	value, err := s.get(key)
	if err != nil || value == nil {
		return 1, err
	}
	n, err := strconv.ParseUint(string(value), 10, 64)
	if err != nil || n == 0 {
		return 0, damaged(s.dir, fmt.Errorf("%s is %q", key, value))
	}
	return n, nil
}

func decimal(n uint64) []byte { return strconv.AppendUint(nil, n, 10) }

func (s *Store) take(l *lease) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.next == l.end {
		end := l.end + l.block
		if err := s.commit([]change{{l.key, decimal(end)}}); err != nil {
			return 0, err
		}
		l.end = end
	}
	l.next++
	return l.next - 1, nil
}

// returnLeases is for the last call before closing. Called with mu held.
func (s *Store) returnLeases() error {
	var changes []change
	for _, l := range []*lease{&s.images, &s.ops} {
		if l.next != l.end {
			changes = append(changes, change{l.key, decimal(l.next)})
		}
	}
	if len(changes) == 0 || s.broken != nil || s.room() != nil {
		return nil // what cannot be given back stays leased, which is harmless
	}
	return s.commit(changes)
}

// NewImageID hands out an id that was never handed out before.
func (s *Store) NewImageID() (chain.ImageID, error) {
	id, err := s.take(&s.images)
	if err != nil {
		return 0, fmt.Errorf("new image id: %w", err)
	}
	return chain.ImageID(id), nil
}

// NewOpID hands out an id that was never handed out before.
func (s *Store) NewOpID() (chain.OpID, error) {
	id, err := s.take(&s.ops)
	if err != nil {
		return 0, fmt.Errorf("new operation id: %w", err)
	}
	return chain.OpID(id), nil
}
