package store

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
)

// DamagedError is a store whose files cannot be read as what they should be.
type DamagedError struct {
	Dir string
	Err error
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("store %s is damaged (%v): delete the directory and rebuild it with `chainfs scan`; only the history is lost", e.Dir, e.Err)
}

func (e *DamagedError) Unwrap() error { return e.Err }

func damaged(dir string, err error) error { return &DamagedError{dir, err} }

// ErrInUse is a store that another process has open.
var ErrInUse = errors.New("the store is in use by another chainfs process")

// openError tells damage from what is no reason to delete a store: an answer of
// the operating system, or another process.
func openError(dir string, err error) error {
	switch {
	case strings.Contains(err.Error(), "Cannot acquire directory lock"):
		return fmt.Errorf("store %s: %w", dir, ErrInUse)
	case fromSystem(err):
		return fmt.Errorf("open store %s: %w", dir, err)
	}
	return damaged(dir, err)
}

// systemErrors are answers that say nothing about the store's content.
var systemErrors = []syscall.Errno{
	syscall.EACCES, syscall.EPERM, syscall.EROFS, syscall.EIO, syscall.ENOSPC, syscall.EDQUOT,
	syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOTDIR, syscall.ESTALE,
}

// fromSystem looks at the text as well: Badger does not wrap errors.
func fromSystem(err error) bool {
	for _, e := range systemErrors {
		if errors.Is(err, e) || strings.Contains(err.Error(), e.Error()) {
			return true
		}
	}
	return false
}
