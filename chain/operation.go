package chain

import (
	"strconv"
	"time"
)

// OpID names an operation, within one store.
type OpID uint64

func (id OpID) String() string { return strconv.FormatUint(uint64(id), 10) }

// State is how far an operation got.
type State string

// The states of an operation. Prepared and Committed are running ones, and
// recovery undoes the former and completes the latter.
const (
	Prepared  State = "prepared"  // children may be absorbing; nothing was deleted
	Committed State = "committed" // every child is durable; files are being unlinked
	Done      State = "done"
	Undone    State = "undone" // ended before anything was deleted
	Failed    State = "failed" // was committed, and could not be completed
)

// Running reports whether recovery has to look at the operation.
func (s State) Running() bool { return s == Prepared || s == Committed }

// Operation is a plan being carried out, as the journal has it.
type Operation struct {
	ID      OpID      `json:"id"`
	Act     Act       `json:"act"`
	State   State     `json:"state"`
	Plan    Plan      `json:"plan"`
	Started time.Time `json:"started"`
	// KeptUntil is before what time nothing that it condemned is absorbed.
	KeptUntil time.Time `json:"kept_until,omitzero"`
	Ended     time.Time `json:"ended,omitzero"`
	Error     string    `json:"error,omitempty"` // why it was undone or failed
}
