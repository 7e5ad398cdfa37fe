package chain_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
)

var (
	seed   = flag.Uint64("seed", 1, "seed of the random tests; 0 takes one from the clock. It is logged")
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
	defer w.end()
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
	play(t, "TestRandom", nil, false)
}

// TestRandomLater is TestRandom with merges that are left for later, images that
// are brought back, directories that go and come, and the reclaimer at work.
func TestRandomLater(t *testing.T) {
	for _, noLinks := range []bool{false, true} {
		t.Run(fmt.Sprint("links ", !noLinks), func(t *testing.T) {
			play(t, "TestRandomLater", &chain.Deferral{}, noLinks)
		})
	}
}

func play(t *testing.T, name string, deferral *chain.Deferral, noLinks bool) {
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d: go test ./chain -run %s -seed %[1]d", *seed, name)
	rng := rand.New(rand.NewPCG(*seed, 0))
	w := newWorld(t)
	w.deferral, w.noLinks = deferral, noLinks
	w.mount()
	g := &game{world: w, rng: rng, trash: map[chain.Path]map[string]string{}}
	for round := range *rounds {
		g.play()
		w.check()
		if round%20 == 19 {
			w.checkClean()
		}
	}
	w.mount()
	w.checkClean()
	if deferral != nil {
		w.deferral = later()
		w.mount()
		w.reclaimed()
	}
	t.Logf("%d images at the end; %v", len(w.want), g.count)
}

type game struct {
	*world
	rng   *rand.Rand
	names int
	trash map[chain.Path]map[string]string // what was deleted last under each name
	told  bool                             // the last call answered without an error
	count map[string]int                   // what happened
}

func (g *game) play() {
	if g.count == nil {
		g.count = map[string]int{}
	}
	switch k := g.rng.IntN(20); {
	case k < 7 || len(g.want) < 5:
		g.backup()
	case k < 13:
		g.deletion()
	case k < 15:
		g.renaming()
	case k < 16:
		g.rebasing()
	case g.deferral == nil:
		g.mount()
	case g.rng.IntN(4) == 0:
		g.linking()
	case k < 17:
		g.bringingBack()
	case k < 18:
		g.removing()
	case k < 19:
		g.reclaiming()
	default:
		g.deferral = &chain.Deferral{InlineLimit: []int64{0, 0, 1 << 20, -1}[g.rng.IntN(4)], Keep: time.Duration(g.rng.IntN(2)) * time.Hour}
		if g.rng.IntN(3) == 0 {
			g.loseStore()
		}
		g.mount()
	}
}

// run is world.run in which a call may fail, too. dead is then that the tree has to
// be opened again.
func (g *game) run(n int, f func() error) (err error, dead bool) {
	if g.deferral != nil && g.rng.IntN(4) == 0 {
		*g.faults = faults{at: 1 + g.rng.IntN(12), more: g.rng.IntN(3) == 0, after: g.rng.IntN(3) == 0, tree: g.rng.IntN(2) == 0}
	}
	err, dead = g.world.run(n, f)
	g.told = err == nil && !dead
	if g.faults.what != "" {
		g.logger().Debug("failed", "calls", g.faults.what, "err", err)
		g.count["failed calls"]++
		dead = true
	}
	*g.faults = faults{}
	return err, dead
}

// linking gives an image a second name, or puts an image on one by way of a symbolic
// link.
func (g *game) linking() {
	p := g.pick()
	g.names++
	name := p.Dir().Join(fmt.Sprintf("l%d", g.names))
	if g.rng.IntN(2) == 0 {
		do(g.t, os.Link(g.path(p), g.path(name)))
		g.want[name] = g.want[p]
		g.count["hard links"]++
		return
	}
	do(g.t, os.Symlink(p.Base(), g.path(name)))
	g.want[name] = g.want[p]
	g.write(g.newName(), name, g.rng)
	delete(g.want, name)
	g.count["symbolic links"]++
}

// bringingBack undeletes something, and may be killed.
func (g *game) bringingBack() {
	trash, err := g.tree.Trash(bg, "")
	do(g.t, err)
	if len(trash) == 0 {
		return
	}
	p := trash[g.rng.IntN(len(trash))].Path
	as, to := chain.Path(""), p
	if g.exists(p) {
		g.names++
		as = p.Dir().Join(fmt.Sprintf("back%d", g.names))
		to = as
	}
	kill := g.rng.IntN(12)
	var back []chain.Path
	err, dead := g.run(max(kill-6, 0), func() (err error) {
		back, err = g.tree.Undelete(bg, p, as)
		return err
	})
	if dead {
		g.mount()
	} else if err != nil {
		if !refused(err) {
			g.t.Fatalf("undelete %s: %v", p, err)
		}
		return
	}
	if !dead && !g.exists(to) {
		g.t.Fatalf("undelete %s: it is not there", p)
	}
	for was, content := range g.trash { // with an image its full comes back
		at := was
		if was == p {
			at = to
		}
		if g.exists(at) && g.want[at] == nil && (at == to || dead || slices.Contains(back, at)) {
			g.count["brought back"]++
			g.want[at] = content
		}
	}
}

// removing removes a directory, as rm -r does when all in it is deleted.
func (g *game) removing() {
	dirs := map[chain.Path]bool{}
	for was := range g.hidden() {
		dirs[was.Dir()] = true
	}
	all := slices.Sorted(maps.Keys(dirs))
	if len(all) == 0 {
		return
	}
	dir := all[g.rng.IntN(len(all))]
	if !g.exists(dir) || dir == "" {
		return
	}
	kill := g.rng.IntN(12)
	err, dead := g.run(max(kill-6, 0), func() error { return g.rmdir(dir) })
	switch {
	case dead:
		g.mount()
	case err == nil:
		g.count["directories removed"]++
	case !refused(err) && !errors.Is(err, unix.ENOTEMPTY):
		g.t.Fatalf("rmdir %s: %v", dir, err)
	}
}

func (g *game) reclaiming() {
	kill := g.rng.IntN(20)
	err, dead := g.run(max(kill-10, 0), func() error { return g.tree.ReclaimNow(bg) })
	if dead {
		g.mount()
	} else if err != nil && !refused(err) {
		g.t.Fatalf("reclaim: %v", err)
	}
	g.count["reclaimed"]++
}

// deleted moves an image from the model to its trash.
func (g *game) deleted(paths []chain.Path) {
	for _, p := range paths {
		if g.want[p] != nil {
			g.trash[p] = g.want[p]
			delete(g.want, p)
			g.count["deleted"]++
		}
	}
}

func (g *game) pick() chain.Path {
	all := slices.Sorted(maps.Keys(g.want))
	return all[g.rng.IntN(len(all))]
}

func (g *game) newName() chain.Path {
	g.names++
	name := "r"
	if g.deferral != nil {
		switch g.rng.IntN(12) {
		case 0:
			name = fmt.Sprintf("%d", g.names) + strings.Repeat("é", 126)
		case 1:
			name = "~-\xff:\x01\\"
		}
	}
	return chain.Path(fmt.Sprintf("vm%d/T%d/%s", g.rng.IntN(3), g.names, name))
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
	if testing.Verbose() && os.Getenv("TRACE") != "" {
		defer func() { g.t.Logf("after: %v", slices.Sorted(maps.Keys(g.photo()))) }()
	}
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
		for _, p := range doomed {
			if g.told && g.want[p] != nil {
				g.t.Fatalf("the deletion of %s was acknowledged, and it is there", p)
			}
		}
	case err == nil:
		g.deleted(doomed)
	case !refused(err):
		g.t.Fatalf("delete %v: %v", paths, err)
	}
}

// forgetGone takes those that a killed deletion deleted from the model; that
// nothing else is missing is check's to see.
func (g *game) forgetGone(paths []chain.Path) {
	for _, p := range paths {
		if _, err := os.Stat(g.path(p)); os.IsNotExist(err) {
			g.deleted([]chain.Path{p})
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
	if other := g.pick(); g.deferral != nil && g.want[from] != nil && from != other && g.rng.IntN(4) == 0 {
		to = other // which it replaces
	}
	if err := os.MkdirAll(g.path(to.Dir()), 0o755); err != nil {
		g.t.Fatal(err)
	}
	err := g.tree.Rename(context.Background(), from, to, 0)
	if err != nil {
		return // refused, or not possible: nothing may have changed, which check sees
	}
	if g.exists(from) {
		return // both are names of one file: rename(2) does nothing then
	}
	for p, content := range maps.Clone(g.want) {
		if p.Within(from) {
			delete(g.want, p)
			g.want[p.Moved(from, to)] = content
		}
	}
	for p, content := range maps.Clone(g.trash) {
		if p.Within(from) && p != from { // its directory moved, and it with that
			g.trash[p.Moved(from, to)] = content
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
