package qcow2

import (
	"errors"
	"fmt"
)

// The groups of format errors. Every error of ReadHeader that is in none of
// them came from the reader.
var (
	// ErrNotQcow2: the file does not start with the magic. There is no Header.
	ErrNotQcow2 = errors.New("not a qcow2 image")

	// ErrTruncated: the file ends before something that its header promises.
	// It may be a copy that has not arrived in full yet.
	ErrTruncated = errors.New("truncated qcow2 image")

	// ErrCorrupt: the header contradicts itself or the specification.
	ErrCorrupt = errors.New("corrupt qcow2 header")

	// ErrUnsupported: the header may be sound, but asks for what is not known.
	ErrUnsupported = errors.New("unsupported qcow2 image")
)

// FormatError says what is wrong with a header. It wraps its group.
type FormatError struct {
	Group  error
	Reason string // a sentence about the header, without a subject: "the L1 table is not aligned"
}

func (e *FormatError) Error() string { return e.Group.Error() + ": " + e.Reason }

func (e *FormatError) Unwrap() error { return e.Group }

func corrupt(format string, args ...any) error {
	return &FormatError{ErrCorrupt, fmt.Sprintf(format, args...)}
}

func truncated(format string, args ...any) error {
	return &FormatError{ErrTruncated, fmt.Sprintf(format, args...)}
}

func unsupported(format string, args ...any) error {
	return &FormatError{ErrUnsupported, fmt.Sprintf(format, args...)}
}
