package store

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime/debug"

	"github.com/chainfs/chainfs/chain"
)

// Images calls f for every stored image, in the order of their ids. A record
// that cannot be read is an error, not a missing image.
func (s *Store) Images(ctx context.Context, f func(chain.Image) error) error {
	// All of the index is read once, at start, and is garbage after it.
	defer s.releaseTables()
	defer debug.FreeOSMemory()
	var b imageBatch
	err := s.each(imagePrefix, "", func(key string, value []byte) error {
		if b.add(key, value); !b.full() {
			return nil
		}
		return b.pass(ctx, s.dir, f)
	})
	if err != nil {
		return err
	}
	return b.pass(ctx, s.dir, f)
}

func decodeImage(key string, value []byte) (chain.Image, error) {
	id, err := keyID(key)
	if err != nil {
		return chain.Image{}, err
	}
	var r imageRecord
	if err := json.Unmarshal(value, &r); err != nil {
		return chain.Image{}, fmt.Errorf("image %s: %w", chain.ImageID(id), err)
	}
	if r.ID != chain.ImageID(id) || id == 0 {
		return chain.Image{}, fmt.Errorf("image %s is stored as %s", r.ID, chain.ImageID(id))
	}
	if r.Kind == 0 {
		return chain.Image{}, fmt.Errorf("image %s is stored without a kind", r.ID)
	}
	return r.image(), nil
}

// Update stores and removes images, in one transaction where they are not too
// many for one, see commit.
func (s *Store) Update(put []chain.Image, remove []chain.ImageID) error {
	changes, err := imageChanges(put, remove)
	if err != nil {
		return err
	}
	if len(changes) == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.commit(changes); err != nil {
		return fmt.Errorf("store %d images: %w", len(changes), err)
	}
	return nil
}

// imageChanges removes before it puts, so that an id that is in both stays.
func imageChanges(put []chain.Image, remove []chain.ImageID) ([]change, error) {
	changes := make([]change, 0, len(put)+len(remove))
	for _, id := range remove {
		changes = append(changes, change{key: imageKey(id)})
	}
	for _, im := range put {
		value, err := json.Marshal(labelledRecord(im))
		if err != nil {
			return nil, fmt.Errorf("store image %s: %w", im.Path, err)
		}
		changes = append(changes, change{imageKey(im.ID), value})
	}
	return changes, nil
}
