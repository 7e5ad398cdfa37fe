//go:build !engine

package qcow2

import (
	"errors"
	"io"
	"testing"
)

// This stands in for engine_test.go where there is no engine yet. When it comes,
// this file goes, and the other one's build tag.

var errNoEngine = errors.New("not there yet")

func needEngine(t testing.TB) {
	t.Helper()
	t.Skip("the native engine is not there yet: build with -tags engine when it is")
}

func engineOpen(...testLayer) (io.ReaderAt, error) { return nil, errNoEngine }

func engineAbsorb(testJob) error { return errNoEngine }

func engineCheck(Source) (corruptions []string, leaks int64, err error) { return nil, 0, errNoEngine }

func engineReclaim(File, int64) error { return errNoEngine }

func fellBack(error) bool { return false }

func lostSync(error) bool { return false }
