package store

import (
	"fmt"
	"strings"

	"github.com/chainfs/chainfs/chain"
)

// Check reads everything in the store and returns what is wrong with it, a
// sentence each. The error is for a store that cannot be read at all.
//
// Each invariant of stored state has its line here: every key is known and
// every record decodes; a record's id is its key's, and below the next to be
// handed out; no two images have the same path; a plan is there in full, and
// belongs to an operation.
func (s *Store) Check() ([]string, error) {
	c := check{store: s, paths: map[chain.Path]chain.ImageID{}, plans: map[string]bool{}}
	for _, part := range []func() error{c.images, c.operations, c.pieces, c.others} {
		if err := part(); err != nil {
			return nil, err
		}
	}
	return c.findings, nil
}

type check struct {
	store    *Store
	findings []string
	paths    map[chain.Path]chain.ImageID
	plans    map[string]bool // key prefixes of plans that an operation names
}

func (c *check) found(format string, args ...any) {
	c.findings = append(c.findings, fmt.Sprintf(format, args...))
}

func (c *check) images() error {
	end, err := c.store.leased(nextImageKey)
	if err != nil {
		return err
	}
	return c.store.each(imagePrefix, "", func(key string, value []byte) error {
		im, err := decodeImage(key, value)
		if err != nil {
			c.found("%v", err)
			return nil
		}
		if uint64(im.ID) >= end {
			c.found("image %s has an id that was never handed out", im.ID)
		}
		if other, ok := c.paths[im.Path]; ok {
			c.found("images %s and %s have the same path %s", other, im.ID, im.Path)
		}
		c.paths[im.Path] = im.ID
		return nil
	})
}

func (c *check) operations() error {
	end, err := c.store.leased(nextOpKey)
	if err != nil {
		return err
	}
	return c.store.each(opPrefix, "", func(key string, value []byte) error {
		rec, err := decodeHead(key, value)
		if err != nil {
			c.found("%v", err)
			return nil
		}
		if uint64(rec.ID) >= end {
			c.found("operation %s has an id that was never handed out", rec.ID)
		}
		if _, err := c.store.plan(rec.ID, rec.Sum); err != nil {
			c.found("%v", err)
		}
		c.plans[planKey(rec.ID, rec.Sum)] = true
		return nil
	})
}

func (c *check) pieces() error {
	return c.store.keys(planPrefix, func(key string) {
		if len(key) != len(planPrefix)+8+8+4 || !c.plans[key[:len(key)-4]] {
			c.found("key %q is a piece of a plan that no operation names", key)
		}
	})
}

func (c *check) others() error {
	return c.store.each("", "", func(key string, value []byte) error {
		switch {
		case strings.HasPrefix(key, imagePrefix), strings.HasPrefix(key, opPrefix), strings.HasPrefix(key, planPrefix):
		case strings.HasPrefix(key, plainPrefix):
			if len(value)%markSize != 0 || len(value) > maxPiece {
				c.found("key %q has %d bytes of marks", key, len(value))
			}
		case key == schemaKey, key == treeKey, key == mountpointKey, key == nextImageKey, key == nextOpKey:
		default:
			c.found("key %q is unknown", key)
		}
		return nil
	})
}
