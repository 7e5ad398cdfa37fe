package chain

import (
	"fmt"
	"strconv"
	"strings"
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
	Ended   time.Time `json:"ended,omitzero"`
	Error   string    `json:"error,omitempty"` // why it was undone or failed
}

// Hidden files of chainfs all start with this prefix.
const hiddenPrefix = ".chainfs-"

// scratchPrefix starts the name of every scratch file: a copy of a child while
// it is being rebased. It differs from every other hidden name, because a stale
// scratch file is deleted without asking.
const scratchPrefix = hiddenPrefix + "scratch-"

// ControlName is the name of chainfs's own directory: at the root of the tree
// it holds the tree's id and the owner's lock.
const ControlName = ".chainfs"

const maxName = 255 // bytes, NAME_MAX of every file system we run on

// ScratchName is the name of the scratch file for the child named base.
func ScratchName(op OpID, base string) string {
	name := fmt.Sprintf("%s%s-%s", scratchPrefix, op, base)
	return name[:min(len(name), maxName)]
}

// IsScratch reports whether name is a scratch file's.
func IsScratch(name string) bool { return strings.HasPrefix(name, scratchPrefix) }

// IsHidden reports whether name belongs to chainfs and is left out of listings.
func IsHidden(name string) bool {
	return name == ControlName || strings.HasPrefix(name, hiddenPrefix)
}
