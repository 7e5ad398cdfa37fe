package chain

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// reclaims are batches of condemned images: as the components are found, and what
// is done for each.
var reclaims = []struct {
	name  string
	graph string
	kept  string // condemned images that --keep holds back
}{
	{"one", "F <- .chainfs-1-a <- b", ""},
	{"a run", "F <- .chainfs-1-a <- .chainfs-2-b <- .chainfs-3-c <- d <- e", ""},
	{"without survivors", "F <- .chainfs-1-a <- .chainfs-2-b", ""},
	{"a branch without survivors", "F <- .chainfs-1-a <- b, .chainfs-1-a <- .chainfs-2-c", ""},
	{"branches", "F <- .chainfs-1-a <- b, .chainfs-1-a <- .chainfs-2-c <- d, .chainfs-2-c <- e", ""},
	{"two runs in a chain", "F <- .chainfs-1-a <- b <- .chainfs-2-c <- d", ""},
	{"two chains", "F <- .chainfs-1-a <- b, G <- .chainfs-2-c <- d", ""},
	{"a whole chain", ".chainfs-1-F <- .chainfs-2-a", ""},
	{"a kept one in a run", "F <- .chainfs-1-a <- .chainfs-2-b <- .chainfs-3-c <- d", ".chainfs-2-b"},
	{"a kept full", ".chainfs-1-F <- .chainfs-2-a", ".chainfs-1-F"},
	{"below a kept one", "F <- .chainfs-1-a <- .chainfs-2-b", ".chainfs-2-b"},
	{"a child that cannot absorb", "F <- .chainfs-1-a <- b[pinned]", ""},
	{"in hidden directories", "vm/T0/r <- vm/.chainfs-3-T1/.chainfs-1-r <- vm/.chainfs-4-T2/.chainfs-2-r <- vm/T3/r", ""},
}

// TestPlanReclaim compares each batch with testdata/reclaim.golden.
func TestPlanReclaim(t *testing.T) {
	var b strings.Builder
	for _, c := range reclaims {
		g := parse(t, c.graph)
		kept := paths(c.kept)
		fmt.Fprintf(&b, "# %s\n# %s", c.name, c.graph)
		if c.kept != "" {
			fmt.Fprintf(&b, "; kept %s", c.kept)
		}
		b.WriteString("\n")
		for _, images := range g.components(func(im *Image) bool { return !slices.Contains(kept, im.Path) }) {
			plan := g.PlanReclaim(pathsOf(images))
			fmt.Fprintf(&b, "batch %v\n%s", pathsOf(images), &plan)
		}
		b.WriteString("\n")
	}
	golden(t, "reclaim.golden", b.String())
}

func TestCondemnedName(t *testing.T) {
	long := strings.Repeat("x", 240) + ".qcow2"
	for _, c := range []struct {
		base  string
		whole bool
	}{{"r", true}, {"-", true}, {"~a", true}, {"5-a", true}, {long, false}, {"a\xff\n", true}, {".chainfs", true}} {
		name := CondemnedName(12, c.base)
		op, base, whole, ok := ParseCondemned(name)
		if !ok || op != 12 || whole != c.whole || !strings.HasSuffix(c.base, base) && whole || len(name) > maxName {
			t.Errorf("%q is named %q, which says %v %q %v %v", c.base, name, op, base, whole, ok)
		}
		if whole && base != c.base || IsScratch(name) || !IsHidden(name) {
			t.Errorf("%q is named %q, which says it was %q", c.base, name, base)
		}
	}
	for _, name := range []string{"", ".chainfs", ".chainfs-", ".chainfs-scratch-5-a", ".chainfs-5", ".chainfs-5-", ".chainfs--5-a", ".chainfs-+5-a", ".chainfs-5a-b", "chainfs-5-a", ".chainfs-99999999999999999999-a"} {
		if IsCondemned(name) {
			t.Errorf("%q is taken for a condemned name", name)
		}
	}
	if got := Shown("a/.chainfs-2-T1/.chainfs-1-r"); got != "a/T1/r" {
		t.Errorf("it is shown as %q", got)
	}
}

// TestCondemnedNeverStrand: whatever of a branched graph is condemned and whatever
// is then deleted, or absorbed, no image that stays loses its parent.
func TestCondemnedNeverStrand(t *testing.T) {
	names := strings.Fields("f a b c d e")
	for condemned := range 1 << len(names) {
		called := map[string]Path{}
		for i, n := range names {
			called[n] = Path(n)
			if condemned>>i&1 == 1 {
				called[n] = Path(CondemnedName(1, n))
			}
		}
		text := notation(called)
		for deleted := range 1 << len(names) {
			var del []Path
			for i, n := range names {
				if deleted>>i&1 == 1 {
					del = append(del, called[n])
				}
			}
			for _, opt := range []DeleteOptions{{}, {begun: true, only: true}} {
				g := parse(t, text)
				plan := g.PlanDelete(del, opt)
				if err := carryOut(g, plan); err != nil {
					t.Fatalf("%s: delete %v (%+v): %v\n%s", text, del, opt, err, &plan)
				}
			}
		}
	}
}

func notation(called map[string]Path) string {
	return fmt.Sprintf("%[1]s <- %[2]s <- %[3]s <- %[4]s, %[2]s <- %[5]s <- %[6]s",
		called["f"], called["a"], called["b"], called["c"], called["d"], called["e"])
}
