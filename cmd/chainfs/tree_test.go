package main

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/chainfs/chainfs/chain"
)

func TestDrawTree(t *testing.T) {
	infos := []chain.Info{
		{Path: "a", Kind: chain.Full, Children: []chain.Path{"b", "d"}, Decision: chain.Refused},
		{Path: "b", Kind: chain.Incremental, Parent: "a", Position: 1, Children: []chain.Path{"c", "x/.chainfs-7-g"}},
		{Path: "c", Kind: chain.Incremental, Parent: "b", Position: 2},
		{Path: "x/.chainfs-7-g", Kind: chain.Incremental, Parent: "b", Position: 2, Decision: chain.Refused, Reason: "no"},
		{Path: "d", Kind: chain.Incremental, Parent: "a", Position: 1},
		{Path: "e", Kind: chain.Incremental, Parent: "gone", Problem: "e names a parent that is missing (gone)"},
		{Path: "f", Kind: chain.Full, Decision: chain.Refused, Reason: "f is in use by qemu; wait until that has ended"},
	}
	var b strings.Builder
	drawTree(&b, infos, 0)
	want := `IMAGE                  KIND         POS  VIRTUAL  ALLOCATED  WRITTEN  IN THE WAY OF ITS DELETION
a                      full           0      0 B        0 B           2 images stand on it
├── b                  incremental    1      0 B        0 B
│   ├── c              incremental    2      0 B        0 B
│   └── x/g (deleted)  incremental    2      0 B        0 B
└── d                  incremental    1      0 B        0 B
e                      incremental    0      0 B        0 B           e names a parent that is missing (gone)
f                      full           0      0 B        0 B           f is in use by qemu
`
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
}

// TestDrawTreeFits: on a terminal every row is one line, however deep and long.
func TestDrawTreeFits(t *testing.T) {
	var infos []chain.Info
	parent := chain.Path("")
	for i := range 40 {
		p := chain.Path(strings.Repeat("long", 30)).Join(strings.Repeat("x", i+1))
		infos = append(infos, chain.Info{Path: p, Kind: chain.Incremental, Parent: parent, Written: time.Now()})
		parent = p
	}
	for _, width := range []int{40, 80, 120} {
		var b strings.Builder
		drawTree(&b, infos, width)
		for _, line := range strings.Split(b.String(), "\n") {
			if n := utf8.RuneCountInString(line); n > width {
				t.Errorf("width %d: a line of %d: %s", width, n, line)
			}
		}
	}
}
