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

// OperationsRequest asks for the operations of a tree.
type OperationsRequest struct {
	Last int `json:"last,omitempty"` // at most so many past ones; 0 for all
}

// OperationRequest asks for something to be done about an operation.
type OperationRequest struct {
	ID chain.OpID `json:"id"`
}

// WaitRequest asks for the end of what is pending for the chains of what is, or
// was, at or below the paths.
type WaitRequest struct {
	Paths []chain.Path `json:"paths"`
}

// UndeleteRequest asks for what was deleted at a path. With As one image gets
// that name.
type UndeleteRequest struct {
	Path chain.Path `json:"path"`
	As   chain.Path `json:"as,omitempty"`
}

// Description describes a file, or the images at or below a directory.
type Description struct {
	Directory bool         `json:"directory"`
	Tree      *Summary     `json:"tree,omitempty"` // of the tree's root
	Images    []chain.Info `json:"images"`         // for a file, that file, be it an image or not
}

// Verdict is what deleting a path would do, in one sentence.
type Verdict struct {
	Path     chain.Path     `json:"path"`
	Decision chain.Decision `json:"decision"`
	Reason   string         `json:"reason"`
}

// Summary is a tree in a few numbers, and what its file system can do.
type Summary struct {
	ID string `json:"id"`
	chain.Summary
	Copying Copying `json:"copying"`
}

// Copying is what the tree's file system can do to spare copying.
type Copying struct {
	FileSystem string `json:"file_system"`
	Shares     bool   `json:"shares"` // files can share extents
	Server     bool   `json:"server"` // the server copies by itself
	Links      bool   `json:"links"`  // files can have several names
	Says       string `json:"says"`   // the same in a sentence, or why it is not known
}

// Operations are the operations of a tree, each list the oldest first.
type Operations struct {
	Pending []chain.Progress  `json:"pending"` // what waits, has failed and is tried again, or was cancelled
	Running []chain.Progress  `json:"running"`
	Past    []chain.Operation `json:"past"` // with those that were interrupted and wait for the next mount
}

// Result is what a stream ends with when all went well.
type Result struct {
	Freed  int64         `json:"freed,omitempty"`  // bytes, by the plan
	Copied int64         `json:"copied,omitempty"` // bytes at most, by the plan
	Files  int           `json:"files,omitempty"`  // deleted
	Later  *Later        `json:"later,omitempty"`  // what of a deletion is left to be done
	Report *chain.Report `json:"report,omitempty"` // of a scan

	Images *chain.ImagesChecked `json:"images,omitempty"` // of a check of images
}

// Later is what was deleted and is still on the NAS.
type Later struct {
	Images int   `json:"images"`
	Bytes  int64 `json:"bytes"` // that they hold
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
