package qemu

import (
	"slices"
	"testing"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/qemu/qcow2"
)

// way is a way to do a rebase, with what a test has to know of it.
type way struct {
	name   chain.Way
	opts   Options
	labels []string
}

var ways = []way{
	{chain.InPlace, Options{}, qcow2.Labels},
	{chain.ByCopy, Options{ByCopy: true}, CopyLabels},
}

func eachWay(t *testing.T, f func(t *testing.T, way way)) {
	for _, way := range ways {
		t.Run(string(way.name), func(t *testing.T) { f(t, way) })
	}
}

// stepping are the way's options with a step.
func (w way) stepping(step func(label string)) Options {
	opts := w.opts
	opts.Step = step
	return opts
}

// until is the number of labels before one; all where it has no such label.
func (w way) until(label string) int {
	if i := slices.Index(w.labels, label); i >= 0 {
		return i
	}
	return len(w.labels)
}
