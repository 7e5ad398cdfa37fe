package control

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"

	"github.com/chainfs/chainfs/chain"
)

// statuses is the HTTP status of each class.
var statuses = map[string]int{
	ClassRefused:    http.StatusConflict,
	ClassNotFound:   http.StatusNotFound,
	ClassBadRequest: http.StatusBadRequest,
	ClassError:      http.StatusInternalServerError,
}

// failureOf is err for the wire.
func failureOf(err error) *Failure {
	var known *Failure
	var refused *chain.RefusedError
	switch {
	case errors.As(err, &refused):
		return &Failure{ClassRefused, err.Error(), refused.Refusals}
	case errors.As(err, &known):
		return known
	case errors.Is(err, fs.ErrNotExist) && !errors.Is(err, chain.ErrTreeGone):
		return &Failure{ClassNotFound, err.Error(), nil}
	}
	return &Failure{ClassError, err.Error(), nil}
}

// BadRequest is a request that makes no sense.
func BadRequest(format string, args ...any) error {
	return &Failure{Class: ClassBadRequest, Message: fmt.Sprintf(format, args...)}
}

// restore is the error that failureOf was given, as far as it can be known.
func (f *Failure) restore() error {
	switch {
	case f.Class == ClassRefused && len(f.Refusals) > 0:
		return &chain.RefusedError{Refusals: f.Refusals}
	case f.Class == ClassNotFound:
		return &missing{f}
	}
	return f
}

// missing is a file that is not there, found by somebody else.
type missing struct{ *Failure }

func (*missing) Is(target error) bool { return target == fs.ErrNotExist }
