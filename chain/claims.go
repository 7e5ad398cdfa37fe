package chain

import (
	"context"
	"sync"
)

// claims lets one operation at a time work on a chain, and any number on
// different chains.
type claims struct {
	mu    sync.Mutex
	held  map[ImageID]bool // guarded by mu
	freed chan struct{}    // closed, and replaced, when claims are given back; guarded by mu
}

// acquire waits until no chain of ids is claimed and claims them all at once,
// so that two operations on several chains cannot wait for each other.
func (c *claims) acquire(ctx context.Context, ids []ImageID) error {
	for {
		freed, ok := c.try(ids)
		if ok {
			return nil
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// try claims all of ids or none; when none, freed tells when to try again.
func (c *claims) try(ids []ImageID) (freed <-chan struct{}, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held == nil {
		c.held, c.freed = map[ImageID]bool{}, make(chan struct{})
	}
	for _, id := range ids {
		if c.held[id] {
			return c.freed, false
		}
	}
	for _, id := range ids {
		c.held[id] = true
	}
	return nil, true
}

func (c *claims) release(ids []ImageID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range ids {
		delete(c.held, id)
	}
	close(c.freed)
	c.freed = make(chan struct{})
}

func (c *claims) isHeld(id ImageID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.held[id]
}

// gate is a mutex whose Lock can be given up.
type gate chan struct{}

func newGate() gate { return make(gate, 1) }

func (g gate) lock(ctx context.Context) error {
	select {
	case g <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (g gate) unlock() { <-g }
