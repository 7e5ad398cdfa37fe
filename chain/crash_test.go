package chain_test

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/chainfs/chainfs/chain"
)

var (
	seed   = flag.Uint64("seed", 0, "seed of the random test, 0 for a new one")
	rounds = flag.Int("rounds", 300, "rounds of the random test")
)

// TestKilledAtEveryStep kills a deletion of every kind at every step it has.
// After the restart it is finished or undone, every other image reads as
// before, and nothing is left over.
func TestKilledAtEveryStep(t *testing.T) {
	for _, c := range []struct {
		name   string
		delete []chain.Path
		force  bool
	}{
		{"tail", []chain.Path{"T3/r"}, false},
		{"middle", []chain.Path{"T1/r"}, false},
		{"branch point", []chain.Path{"T2/r"}, false},
		{"run", []chain.Path{"T1/r", "T2/r"}, false},
		{"forced full", []chain.Path{"T0/r"}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			for n := 1; ; n++ {
				if !killAt(t, n, c.delete, c.force) {
					if n < 4 {
						t.Fatalf("only %d steps were seen", n)
					}
					return
				}
			}
		})
	}
}

// killAt reports whether the deletion had an n-th step to be killed at.
func killAt(t *testing.T, n int, paths []chain.Path, force bool) bool {
	w := newWorld(t)
	rng := rand.New(rand.NewPCG(1, 2))
	parent := chain.Path("")
	for i := range 4 {
		p := chain.Path(fmt.Sprintf("T%d/r", i))
		w.write(p, parent, rng)
		parent = p
	}
	w.write("B3/r", "T2/r", rng)
	w.write("B4/r", "B3/r", rng)
	before := maps.Clone(w.want)
	doomed := slices.Clone(paths)
	if force {
		doomed = slices.Collect(maps.Keys(before))
	}
	err, dead := w.run(n, func() error {
		return w.tree.Delete(context.Background(), paths, chain.DeleteOptions{Force: force}, nil)
	})
	if !dead && err != nil {
		t.Fatal(err)
	}
	forget(w, doomed)
	w.mount()
	gone := 0
	for _, p := range doomed {
		if _, err := os.Stat(w.path(p)); err == nil {
			w.want[p] = before[p]
		} else {
			gone++
		}
	}
	if gone != 0 && gone != len(doomed) {
		t.Errorf("killed at step %d: %d of %d images were deleted", n, gone, len(doomed))
	}
	w.checkClean()
	return dead
}

func forget(w *world, paths []chain.Path) {
	for _, p := range paths {
		delete(w.want, p)
	}
}

// TestRandom plays random trees, deletions, renames, new backups behind the
// mount and kills against the model.
func TestRandom(t *testing.T) {
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d: go test ./chain -run TestRandom -seed %[1]d", *seed)
	rng := rand.New(rand.NewPCG(*seed, 0))
	w := newWorld(t)
	g := &game{w, rng, 0}
	for round := range *rounds {
		g.play()
		w.check()
		if round%20 == 19 {
			w.checkClean()
		}
	}
	w.mount()
	w.checkClean()
	t.Logf("%d images at the end", len(w.want))
}

type game struct {
	*world
	rng   *rand.Rand
	names int
}

func (g *game) play() {
	switch k := g.rng.IntN(20); {
	case k < 7 || len(g.want) < 5:
		g.backup()
	case k < 14:
		g.deletion()
	case k < 17:
		g.renaming()
	case k < 18:
		g.rebasing()
	default:
		g.mount()
	}
}

func (g *game) pick() chain.Path {
	all := slices.Sorted(maps.Keys(g.want))
	return all[g.rng.IntN(len(all))]
}

func (g *game) newName() chain.Path {
	g.names++
	return chain.Path(fmt.Sprintf("vm%d/T%d/r", g.rng.IntN(3), g.names))
}

func (g *game) backup() {
	var parent chain.Path
	if len(g.want) > 0 && g.rng.IntN(4) > 0 {
		parent = g.pick()
	}
	p := g.newName()
	if g.rng.IntN(3) == 0 {
		p = p.Dir().Dir().Join(fmt.Sprintf("flat%d", g.names))
	}
	g.write(p, parent, g.rng)
	if g.rng.IntN(2) == 0 {
		if err := g.tree.Changed(p); err != nil {
			g.t.Fatal(err)
		}
	}
}

// above are the images that stand on p, directly or not.
func (g *game) above(p chain.Path) []chain.Path {
	var all []chain.Path
	if _, err := g.tree.Scan(context.Background()); err != nil {
		g.t.Fatal(err)
	}
	g.tree.View(func(gr *chain.Graph) {
		for _, im := range gr.Descendants(p) {
			all = append(all, im.Path)
		}
	})
	return all
}

func (g *game) deletion() {
	paths := []chain.Path{g.pick()}
	if g.rng.IntN(3) == 0 {
		paths = append(paths, g.pick())
	}
	slices.Sort(paths)
	paths = slices.Compact(paths)
	doomed := slices.Clone(paths)
	opt := chain.DeleteOptions{Force: g.rng.IntN(10) == 0}
	if opt.Force {
		for _, p := range paths {
			doomed = append(doomed, g.above(p)...)
		}
	}
	kill := 0
	if g.rng.IntN(3) == 0 {
		kill = 1 + g.rng.IntN(12)
	}
	err, dead := g.run(kill, func() error { return g.tree.Delete(context.Background(), paths, opt, nil) })
	switch {
	case dead:
		g.mount()
		g.forgetGone(doomed)
	case err == nil:
		forget(g.world, doomed)
	case !refused(err):
		g.t.Fatalf("delete %v: %v", paths, err)
	}
}

// forgetGone takes those that a killed deletion deleted from the model; that
// nothing else is missing is check's to see.
func (g *game) forgetGone(paths []chain.Path) {
	for _, p := range paths {
		if _, err := os.Stat(g.path(p)); os.IsNotExist(err) {
			delete(g.want, p)
		}
	}
}

func (g *game) renaming() {
	from, to := g.pick(), g.newName()
	if g.rng.IntN(3) == 0 {
		from, to = from.Dir(), chain.Path(fmt.Sprintf("vm%d/T%d", g.rng.IntN(3), g.names))
	}
	if from == "" {
		return
	}
	if err := os.MkdirAll(g.path(to.Dir()), 0o755); err != nil {
		g.t.Fatal(err)
	}
	err := g.tree.Rename(context.Background(), from, to, 0)
	if err != nil {
		return // refused, or not possible: nothing may have changed, which check sees
	}
	for p, content := range maps.Clone(g.want) {
		if p.Within(from) {
			delete(g.want, p)
			g.want[p.Moved(from, to)] = content
		}
	}
}

func (g *game) rebasing() {
	p := g.pick()
	var line []chain.Path
	g.above(p) // surveys
	g.tree.View(func(gr *chain.Graph) {
		if im := gr.At(p); im != nil {
			below, _ := gr.Below(im)
			for _, b := range below {
				line = append(line, b.Path)
			}
		}
	})
	line = append(line, "")
	to := line[g.rng.IntN(len(line))]
	if err := g.tree.Rebase(context.Background(), p, to, nil); err != nil && !refused(err) {
		g.t.Fatalf("rebase %s onto %s: %v", p, to, err)
	}
}
