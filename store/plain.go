package store

import (
	"fmt"

	"github.com/chainfs/chainfs/chain"
)

const markSize = len(chain.Mark{})

// Plain returns the marks of files that were read and found to be no image.
func (s *Store) Plain() (map[chain.Mark]struct{}, error) {
	marks := map[chain.Mark]struct{}{}
	err := s.each(plainPrefix, "", func(key string, value []byte) error {
		if len(value)%markSize != 0 {
			return damaged(s.dir, fmt.Errorf("%d bytes of marks under key %q", len(value), key))
		}
		for ; len(value) > 0; value = value[markSize:] {
			marks[chain.Mark(value[:markSize])] = struct{}{}
		}
		return nil
	})
	return marks, err
}

// SetPlain replaces the marks. A crash may leave some of the old ones beside
// the new: each still says something true about one file as it once was.
func (s *Store) SetPlain(marks map[chain.Mark]struct{}) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	changes := plainChanges(marks)
	next := pieceKey(plainPrefix, len(changes))
	err := s.keys(plainPrefix, func(key string) {
		if key >= next {
			changes = append(changes, change{key: key})
		}
	})
	if err == nil && len(changes) > 0 {
		err = s.commit(changes)
	}
	if err != nil {
		return fmt.Errorf("store %d marks of plain files: %w", len(marks), err)
	}
	return nil
}

func plainChanges(marks map[chain.Mark]struct{}) []change {
	var changes []change
	var piece []byte
	flush := func() {
		changes = append(changes, change{pieceKey(plainPrefix, len(changes)), piece})
		piece = nil
	}
	for m := range marks {
		if piece = append(piece, m[:]...); len(piece) == maxPiece {
			flush()
		}
	}
	if len(piece) > 0 {
		flush()
	}
	return changes
}
