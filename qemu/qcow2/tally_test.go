package qcow2

import (
	"context"
	"errors"
	"testing"
)

// Counts are right whatever they are made of, and where a page has no room for them.
func TestTallyCounts(t *testing.T) {
	for _, weights := range [][]uint64{
		{1}, {4093, 1, 1, 1, 1}, {4094}, {4095}, {4096, 1}, {4094, 4094}, {1, 1 << 33, 7}, {1 << 61, 1 << 60},
	} {
		tally, want := newTally(), uint64(0)
		tally.add(6, 1, markMeta)
		for _, n := range weights {
			tally.add(7, n, markCopied)
			want += n
		}
		if n, marks := tally.of(7); n != want || marks != markCopied || tally.full || tally.highest != 7 {
			t.Errorf("%v: got %d, %b, %v", weights, n, marks, tally.full)
		}
		if n, marks := tally.of(6); n != 1 || marks != markMeta {
			t.Errorf("%v: the neighbour has %d, %b", weights, n, marks)
		}
	}
	tally := newTally()
	tally.add(1, 1<<62, 0)
	if tally.add(1, 1<<62, 0); !tally.full {
		t.Error("a count that is too large is taken")
	}
}

// The tables that L1 tables name, and how often, are part of the memory bound.
func TestCensusOfTooManyTables(t *testing.T) {
	im, err := Open(newMemFile(hostileImages[0].bytes()))
	if err != nil {
		t.Fatal(err)
	}
	c := newCensus(context.Background(), im)
	n := int64(0)
	for ; n <= maxTally/l2TableUse && c.stop() == nil; n++ {
		c.name(n*512, "")
	}
	if err := c.stop(); !errors.Is(err, ErrFallback) || n <= maxTally/l2TableUse {
		t.Errorf("%d tables: got %v", n, err)
	}
	c = newCensus(context.Background(), im)
	c.tables[512] = l2Table{snapshots: 1<<32 - 1}
	if c.name(512, ""); c.stop() != nil || c.tables[512].names() != 1<<32 {
		t.Errorf("got %+v, %v", c.tables[512], c.stop())
	}
	if c.name(512, " of a snapshot"); !errors.Is(c.stop(), ErrFallback) {
		t.Errorf("got %+v, %v", c.tables[512], c.stop())
	}
}
