package qcow2

import (
	"bytes"
	"fmt"
	"slices"
)

// testLayer is an image under the child.
type testLayer struct {
	src Source
	raw bool
}

// testJob is what tests ask of the engine, in words of their own: only
// engine_test.go knows how to say it.
type testJob struct {
	child        File
	away, below  []testLayer // the top first
	name, format string
	verify       bool
	batch        int64 // see Moving
}

// sees compares what a guest sees of a chain with what it has to.
func sees(want []byte, layers ...testLayer) error {
	chain, err := engineOpen(layers...)
	if err != nil {
		return err
	}
	got := make([]byte, len(want))
	if _, err := chain.ReadAt(got, 0); err != nil {
		return err
	}
	return firstDifference(got, want)
}

func firstDifference(got, want []byte) error {
	if len(got) != len(want) {
		return fmt.Errorf("%d bytes, want %d", len(got), len(want))
	}
	if bytes.Equal(got, want) {
		return nil
	}
	n := min(len(got), len(want))
	i := 0
	for i < n && got[i] == want[i] {
		i++
	}
	return fmt.Errorf("differs from byte %d on (%#x): got %q, want %q", i, i, got[i:min(i+40, n)], want[i:min(i+40, n)])
}

// checked is nil when the engine finds no corruption. Leaks are no corruption.
func checked(src Source) (leaks int64, err error) {
	bad, leaks, err := engineCheck(src)
	if err == nil && len(bad) > 0 {
		err = fmt.Errorf("corrupt: %s (%d in all)", bad[0], len(bad))
	}
	return leaks, err
}

func concat(top testLayer, rest ...[]testLayer) []testLayer {
	return append([]testLayer{top}, slices.Concat(rest...)...)
}
