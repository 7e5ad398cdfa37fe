package chain

import (
	"context"
	"errors"
	"sync"
)

// claims lets one operation at a time work on a chain, and any number on
// different chains. Who waits for what the reclaimer works on has it stop: a user
// must not wait for a merge, and in an unlink holds a directory's lock meanwhile.
type claims struct {
	mu    sync.Mutex
	held  map[ImageID]*claimant // guarded by mu
	users map[ImageID]int       // how many users' operations wait for a chain; guarded by mu
	freed chan struct{}         // closed, and replaced, when claims are given back; guarded by mu
}

// claimant is who claims. The zero claimant is a user's operation.
type claimant struct {
	// giveWay has it give its claims back soon; nil for a user's operation, which
	// is waited for.
	giveWay func()
}

// acquire waits until no chain of ids is claimed and claims them all at once,
// so that two operations on several chains cannot wait for each other. The
// reclaimer does not wait: it is errClaimed.
func (c *claims) acquire(ctx context.Context, who claimant, ids []ImageID) error {
	freed, holders := c.try(who, ids)
	if holders == nil {
		return nil
	}
	if who.giveWay != nil {
		return errClaimed // it has other chains to work on
	}
	c.wait(ids, 1)
	defer c.wait(ids, -1)
	for ; holders != nil; freed, holders = c.try(who, ids) {
		giveWay(holders)
		select {
		case <-freed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// wait notes that n more users' operations wait for chains, which the reclaimer does
// not claim meanwhile.
func (c *claims) wait(ids []ImageID, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.users == nil {
		c.users = map[ImageID]int{}
	}
	for _, id := range ids {
		if c.users[id] += n; c.users[id] == 0 {
			delete(c.users, id)
		}
	}
}

var errClaimed = errors.New("another operation works on its chain")

// giveWay asks those of holders that are not users' to stop, and reports whether
// all were asked.
func giveWay(holders []*claimant) (all bool) {
	all = true
	for _, h := range holders {
		if h.giveWay == nil {
			all = false
			continue
		}
		h.giveWay()
	}
	return all
}

// try claims all of ids or none; when none, these hold some, and freed tells when
// to try again.
func (c *claims) try(who claimant, ids []ImageID) (freed <-chan struct{}, holders []*claimant) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held == nil {
		c.held, c.freed = map[ImageID]*claimant{}, make(chan struct{})
	}
	for _, id := range ids {
		if h := c.held[id]; h != nil {
			holders = append(holders, h)
		} else if who.giveWay != nil && c.users[id] > 0 {
			holders = append(holders, &claimant{}) // it is as good as held
		}
	}
	if len(holders) > 0 {
		return c.freed, holders
	}
	for _, id := range ids {
		c.held[id] = &who
	}
	return nil, nil
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

// isHeld reports whether somebody works on the chain, and whether that is a user.
func (c *claims) isHeld(id ImageID) (held, byUser bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.held[id]
	return h != nil, h != nil && h.giveWay == nil
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
