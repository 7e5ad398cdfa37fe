package chain

import "time"

// Deferral says which deletions are left to the reclaimer, and how it works. An
// image that is left to it is condemned: for its user it is deleted, and its
// children absorb later what they need from it.
type Deferral struct {
	// InlineLimit is how many bytes a deletion may have to move and still be done
	// before Delete returns; below 0 there is no limit.
	InlineLimit int64

	// Keep is how long a deleted image can be brought back before anything is
	// absorbed. Above 0 every image that is deleted is condemned. Below 0 it is as
	// long as was said when it was deleted.
	Keep time.Duration

	// Grace is how long an image stays after those that stood on it have absorbed it:
	// who has read the header of one just before opens it by the name in there.
	Grace time.Duration

	Settle  time.Duration // how long a chain must be left alone before work on it begins
	Workers int           // how many chains are worked on at a time

	// Pauses are waited after the first, the second, ... failure; the last one
	// after each further one. Empty is what docs/DESIGN.md says.
	Pauses []time.Duration
}
