package chain

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// deletions are the rows of the decision table, and what lies between them.
var deletions = []struct {
	name   string
	graph  string
	delete string
	force  bool
}{
	{"plain file", "full <- a", "notes.txt", false},
	{"lone full", "full", "full", false},
	{"tail", "full <- a <- b", "b", false},
	{"middle", "full <- a <- b", "a", false},
	{"first incremental", "T0/r <- T1/r <- T2/r", "T1/r", false},
	{"branches", "full <- a <- b, a <- c", "a", false},
	{"full with children", "full <- a, full <- b", "full", false},
	{"full with many children", "full <- a, full <- b, full <- c, full <- d, full <- e", "full", false},
	{"run of incrementals", "full <- a <- b <- c <- d", "a b c", false},
	{"whole chain", "full <- a <- b", "full a b", false},
	{"all but a branch", "full <- a <- b, a <- c", "full a b", false},
	{"forced full", "full <- a <- b, a <- c", "full", true},
	{"forced middle", "full <- a <- b, a <- c", "a", true},
	{"raw base", "disk[raw] <- a <- b", "disk", false},
	{"onto a raw base", "disk[raw] <- a <- b", "a", false},
	{"set with two disks", "T0/root <- T1/root <- T2/root, T0/data <- T1/data <- T2/data", "T1/root T1/data T1/vm.xml", false},
	{"one disk of a set", "T0/root <- T1/root <- T2/root, T0/data <- T1/data <- T2/data", "T1/root", false},
	{"sidecar of a refused set", "T0/root <- T1/root, T0/data", "T0/vm.xml", false},
	{"other file of a refused set", "T0/root <- T1/root, T0/data", "T0/notes.txt", false},
	{"lone disk of a refused set", "T0/root <- T1/root, T0/data", "T0/data", false},
	{"tail disk of a set whose other disk is a full with children", "T0/data <- T1/data, T1/root <- T2/root", "T1/data", false},
	{"sidecar in a flat directory", "full <- a", "vm.xml", false},
	{"missing parent, with children", "gone[missing] <- a <- b", "a", false},
	{"missing parent, without", "gone[missing] <- a", "a", false},
	{"external parent, with children", "a[external] <- b", "a", false},
	{"external parent, without", "a[external]", "a", false},
	{"broken further down", "gone[missing] <- a <- b <- c", "b", false},
	{"child with trouble", "full <- a <- b[bad]", "a", false},
	{"pinned child", "full <- a <- b[pinned]", "a", false},
	{"pinned parent", "full <- a[pinned] <- b", "a", false},
	{"trouble in the full", "full[bad] <- a <- b", "a", false},
	{"loop", "a <- b <- a", "a", false},
	{"loop, both", "a <- b <- a", "a b", false},
	{"something unreadable", "full <- a, x[unreadable]", "a", false},
	{"the unreadable file itself", "full <- a, x[unreadable]", "x", false},
	{"plain file while something is unreadable", "full <- a, x[unreadable]", "notes.txt", false},
	{"different directories", "vm/2024/T0/r <- vm/2025/T1/r <- other/T2/r", "vm/2025/T1/r", false},
	{"below a condemned image", "T0/r <- T1/r <- T2/.chainfs-1-r <- T3/r", "T1/r", false},
	{"above a condemned image", "T0/r <- T1/.chainfs-1-r <- T2/r <- T3/r", "T2/r", false},
	{"tail above condemned images", "T0/r <- T1/.chainfs-1-r <- T2/.chainfs-2-r <- T3/r", "T3/r", false},
	{"full below a condemned tail", "T0/r <- T1/.chainfs-1-r", "T0/r", false},
	{"full below a condemned image that is needed", "T0/r <- T1/.chainfs-1-r <- T2/r", "T0/r", false},
	{"full below a condemned branch point", "T0/r <- T1/.chainfs-1-r <- T2/r, T1/.chainfs-1-r <- T3/.chainfs-2-r", "T0/r", false},
	{"child that cannot absorb, above a condemned image", "T0/r <- T1/r <- T2/.chainfs-1-r <- T3/r[pinned]", "T1/r", false},
	{"set of which a disk is condemned", "T0/root <- T1/.chainfs-1-root <- T2/root, T0/data <- T1/data <- T2/data", "T1/data T1/vm.xml", false},
	{"set whose condemned disk nobody stands on", "T0/root <- T1/.chainfs-1-root, T0/data", "T0/data", false},
	{"beside a condemned parent in a flat directory", "full <- .chainfs-1-a <- b, full <- c", "b", false},
	{"name with a colon", "a:0 <- b:1 <- c:2", "b:1", false},
}

// TestPlanDelete compares each plan with testdata/delete.golden.
func TestPlanDelete(t *testing.T) {
	var b strings.Builder
	for _, c := range deletions {
		g := parse(t, c.graph)
		plan := g.PlanDelete(paths(c.delete), DeleteOptions{Force: c.force})
		fmt.Fprintf(&b, "# %s\n# %s; delete %s", c.name, c.graph, c.delete)
		if c.force {
			b.WriteString(" (force)")
		}
		fmt.Fprintf(&b, "\n%s", &plan)
		for _, s := range plan.Steps {
			if s.NewName != "" {
				fmt.Fprintf(&b, "   backing name of %s: %s (%s)\n", s.Path, s.NewName, s.NewFormat)
			}
		}
		if len(plan.Idle) > 0 {
			fmt.Fprintf(&b, "   idle: %v\n", plan.Idle)
		}
		b.WriteString("\n")
	}
	golden(t, "delete.golden", b.String())
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; run go test -update and look at the change. got:\n%s", file, got)
	}
}

// TestPlanNeverStrands: no plan over any subset of a branched graph leaves an
// image whose parent is gone.
func TestPlanNeverStrands(t *testing.T) {
	const text = "f <- a <- b <- c, a <- d <- e, b <- g, h <- i, j[raw] <- k <- l"
	names := strings.Fields("f a b c d e g h i j k l")
	for bits := range 1 << len(names) {
		g := parse(t, text)
		var del []Path
		for i, n := range names {
			if bits>>i&1 == 1 {
				del = append(del, Path(n))
			}
		}
		plan := g.PlanDelete(del, DeleteOptions{})
		if len(plan.Refusals) > 0 && len(plan.Steps) > 0 {
			t.Fatalf("delete %v: a refused plan has steps", del)
		}
		if err := carryOut(g, plan); err != nil {
			t.Fatalf("delete %v: %v\n%s", del, err, &plan)
		}
	}
}

// carryOut applies a plan's steps to the graph one by one and checks after each
// that every image still finds its parent.
func carryOut(g *Graph, plan Plan) error {
	for _, s := range plan.Steps {
		im := g.At(s.Path)
		g.remove(im)
		if s.Verb == StepRebase {
			now := *im
			now.Target, now.Header.Backing, now.Header.BackingFormat = s.NewParent, s.NewName, s.NewFormat
			if s.NewParent == "" {
				now.Kind = Full
			}
			g.put(&now)
		}
		for _, im := range g.All() {
			if problem := g.Problem(im); problem != "" {
				return fmt.Errorf("after %s: %s", s, problem)
			}
		}
	}
	return nil
}

func TestPlanRebase(t *testing.T) {
	const text = "f <- a <- b <- c, a <- d, x <- y, p <- q[pinned]"
	for _, c := range []struct{ target, parent, want string }{
		{"c", "a", "1. rebase c onto a (copies at most 1.0 MiB)\n"},
		{"c", "f", "1. rebase c onto f (copies at most 2.0 MiB)\n"},
		{"c", "", "1. rebase c onto nothing: it becomes a full (copies at most 3.0 MiB)\n"},
		{"c", "b", ""},
		{"f", "", ""},
		{"c", "d", "1. rebase c onto d (copies at most 2.0 MiB)\n"},
		{"a", "c", "refuse a: c stands on a and cannot become its parent\n"},
		{"a", "a", "refuse a: a cannot stand on itself\n"},
		{"a", "x", "refuse a: x is of another chain than a; only an image of the same chain can become its parent\n"},
		{"a", "nowhere", "refuse a: nowhere is not an image that chainfs knows; run chainfs scan if it is new\n"},
		{"q", "", "refuse q: q cannot be rebased: q has internal snapshots\n"},
	} {
		plan := parse(t, text).PlanRebase(Path(c.target), Path(c.parent))
		if got := plan.String(); got != c.want {
			t.Errorf("rebase %s onto %q: got %q, want %q", c.target, c.parent, got, c.want)
		}
	}
}
