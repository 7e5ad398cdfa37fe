package chain

import (
	"errors"
	"fmt"
)

// RefusedError is a decision against an act. Nothing was changed. At the edges
// it is EBUSY, exit status 3, HTTP 409.
type RefusedError struct {
	Refusals []Refusal // at least one
}

func (e *RefusedError) Error() string {
	r := e.Refusals[0]
	if len(e.Refusals) == 1 {
		return r.Reason
	}
	return fmt.Sprintf("%s (and %d more)", r.Reason, len(e.Refusals)-1)
}

// Refuse is a RefusedError for one path.
func Refuse(p Path, format string, args ...any) error {
	return &RefusedError{Refusals: []Refusal{{Path: p, Reason: fmt.Sprintf(format, args...)}}}
}

// Reasons that a caller may want to tell apart.
var (
	// ErrTreeGone: the tree's file system went away or another is in its place.
	// At the edges it is EIO.
	ErrTreeGone = errors.New("the tree is not there")

	// ErrChanged: a file was changed by somebody else while it was being worked
	// on. What was asked for was not done; asking again is safe.
	ErrChanged = errors.New("the file was changed meanwhile")

	// ErrVerify: a rebased copy did not read as the original does. The copy is
	// thrown away.
	ErrVerify = errors.New("the rebased copy does not read as the original")
)
