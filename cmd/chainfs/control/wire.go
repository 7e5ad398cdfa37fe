package control

import (
	"time"

	"github.com/chainfs/chainfs/chain"
)

// Status says who answers.
type Status struct {
	PID        int       `json:"pid"`
	Version    string    `json:"version"`
	Tree       string    `json:"tree"` // its id
	Source     string    `json:"source"`
	Mountpoint string    `json:"mountpoint"`
	ReadOnly   bool      `json:"read_only"`
	Since      time.Time `json:"since"`
}

// PathRequest asks about one path.
type PathRequest struct {
	Path chain.Path `json:"path"`
}

// RemoveRequest asks for files, and directories with all that is in them, to be
// deleted as one operation.
type RemoveRequest struct {
	Paths []chain.Path `json:"paths"`
	Force bool         `json:"force,omitempty"` // with every descendant
}

// RebaseRequest asks for an image to be put on another parent; an empty one
// makes it a full.
type RebaseRequest struct {
	Target chain.Path `json:"target"`
	Parent chain.Path `json:"parent"`
}

// CheckImagesRequest asks for the inside of the images at or below a path to be
// checked.
type CheckImagesRequest struct {
	Path        chain.Path `json:"path"`
	RepairLeaks bool       `json:"repair_leaks,omitempty"`
}

// Description describes a file, or the images at or below a directory.
type Description struct {
	Directory bool         `json:"directory"`
	Images    []chain.Info `json:"images"` // for a file, that file, be it an image or not
}

// Verdict is what deleting a path would do, in one sentence.
type Verdict struct {
	Path     chain.Path     `json:"path"`
	Decision chain.Decision `json:"decision"`
	Reason   string         `json:"reason"`
}

// Operations are the operations of a tree, each list the oldest first.
type Operations struct {
	Running []chain.Progress  `json:"running"`
	Past    []chain.Operation `json:"past"` // with those that were interrupted and wait for the next mount
}

// Result is what a stream ends with when all went well.
type Result struct {
	Freed  int64         `json:"freed,omitempty"`  // bytes, by the plan
	Copied int64         `json:"copied,omitempty"` // bytes at most, by the plan
	Files  int           `json:"files,omitempty"`  // deleted
	Report *chain.Report `json:"report,omitempty"` // of a scan

	Images *chain.ImagesChecked `json:"images,omitempty"` // of a check of images
}

// Event is one line of a stream. One of its fields is set.
type Event struct {
	Progress *chain.Progress `json:"progress,omitempty"`
	Result   *Result         `json:"result,omitempty"`
	Error    *Failure        `json:"error,omitempty"`
}

// The classes of failure.
const (
	ClassRefused    = "refused"     // a decision: nothing was changed
	ClassNotFound   = "not found"   // there is no such file
	ClassBadRequest = "bad request" // the request makes no sense
	ClassError      = "error"
)

// Failure is an error on the wire. As an error it is what the daemon answered.
type Failure struct {
	Class    string          `json:"class"`
	Message  string          `json:"message"`
	Refusals []chain.Refusal `json:"refusals,omitempty"` // with ClassRefused
}

func (f *Failure) Error() string { return f.Message }
