package e2e

import (
	"encoding/json"
	"flag"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
)

var laterMoves = flag.Int("later-moves", 60, "moves of the random test of deferred deletion")

// TestE2ERandomLater plays random moves while the reclaimer works: deletions that
// are left to it, undelete, new backups and directories under names that were
// deleted, daemons that are killed at a random step or at any time, remounts with
// other options and lost stores. The model knows what each name must read as, and
// what each deleted one was; whose parent is whose is read from the tree, because
// the reclaimer changes it at any time.
func TestE2ERandomLater(t *testing.T) {
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	t.Logf("again: go test ./e2e -run 'TestE2ERandomLater$' -seed %d -later-moves %d", *seed, *laterMoves)
	g := newLaterGame(t, *seed)
	for n := range *laterMoves {
		g.play()
		g.look()
		if n%20 == 19 {
			g.quiet()
		}
		if t.Failed() {
			t.Fatalf("stopped after move %d", n)
		}
	}
	g.quiet()
	g.umount()
	g.offline(0, "check", g.tree)
	t.Logf("%d images at the end; %v", len(g.want), g.count)
}

// laterGame is a game in which images stay for a while after they were deleted.
type laterGame struct {
	*game
	deleted map[string]string // path to what the image that was deleted last there read as
	settle  string            // of the mount
}

func newLaterGame(t *testing.T, seed uint64) *laterGame {
	g := &laterGame{game: newGame(t, seed), deleted: map[string]string{}}
	g.umount()
	g.remount()
	return g
}

func (g *laterGame) play() {
	g.t.Helper()
	g.adopt()
	switch k := g.rng.IntN(100); {
	case k < 28 || len(g.want) < 8:
		g.backup()
	case k < 40:
		g.removeMiddle()
	case k < 50:
		g.removeDirectory()
	case k < 62:
		g.undelete()
	case k < 72:
		g.useNameAgain()
	case k < 90:
		g.armed()
	case k < 94:
		g.wait()
	case k < 97:
		g.umount()
		g.remount()
	default:
		g.umount()
		g.loseStore()
		g.count["stores lost"]++
		g.remount()
	}
}

// remount mounts with options that are drawn anew.
func (g *laterGame) remount() {
	g.t.Helper()
	g.settle = pick(g.game, []string{"0s", "100ms", "500ms", forEver})
	options := []string{
		"--inline-limit", pick(g.game, []string{"0", "0", "0", "300k"}), "--workers", pick(g.game, []string{"1", "3"}),
		"--settle", g.settle,
	}
	if g.one(6) {
		options = append(options, "--keep", "2s")
	}
	g.log("mount %q, CHAINFS_FAIL=%s", options, g.fail)
	g.mount(options...)
}

// forEver is longer than the game.
const forEver = "1h"

func (g *laterGame) wait() {
	g.t.Helper()
	if g.settle != forEver {
		g.attempt(chainfs, "wait", g.mnt)
	}
}

// adopt takes whose parent is whose from the tree. Who stands on a condemned image
// stands, for its user, on the nearest one below that is not.
func (g *laterGame) adopt() {
	g.t.Helper()
	for p := range g.want {
		g.parents[p] = g.nearest(p)
	}
	maps.DeleteFunc(g.parents, func(p, _ string) bool { return g.want[p] == "" })
}

func (g *laterGame) nearest(p string) string {
	for at := p; ; {
		parent, err := g.parentOf(at)
		if os.IsNotExist(err) {
			time.Sleep(time.Millisecond) // it was absorbed just now
			at = p
			continue
		}
		mustDo(g.t, err)
		if parent == "" || !chain.InHidden(chain.Path(parent)) {
			return parent
		}
		at = parent
	}
}

func (g *laterGame) parentOf(p string) (string, error) {
	if _, err := os.Lstat(filepath.Join(g.tree, p)); err != nil {
		return "", err
	}
	name, err := backingNameOf(filepath.Join(g.tree, p))
	if err != nil || name == "" {
		return "", err
	}
	return resolve(g.tree, p, name), nil
}

func (g *laterGame) removeMiddle() {
	g.t.Helper()
	if middles := g.middles(); len(middles) > 0 && !g.one(4) {
		g.unlink(pick(g.game, middles))
		return
	}
	g.unlink(pick(g.game, g.images()))
}

func (g *laterGame) unlink(p string) {
	g.t.Helper()
	g.remove([]string{p}, "rm", "-v", g.in(p))
}

func (g *laterGame) removeDirectory() {
	g.t.Helper()
	dirs := g.directories(2)
	if g.one(4) || len(dirs) == 0 {
		dirs = g.directories(1)
	}
	if len(dirs) > 0 {
		dir := pick(g.game, dirs)
		g.remove(g.within(dir), "rm", "-rv", g.in(dir))
	}
}

// remove runs rm and holds what it did and said against the model.
func (g *laterGame) remove(files []string, name string, args ...string) {
	g.t.Helper()
	r, died := g.attempt(name, args...)
	gone, told := g.missing(files), g.acknowledged(r.out)
	switch {
	case died:
		for _, p := range told {
			if strings.Contains(p, ".qcow2") && !slices.Contains(gone, p) {
				g.t.Errorf("the deletion of %s was acknowledged and forgotten", p)
			}
		}
	case r.code == 0 && len(gone) != len(files):
		g.t.Errorf("%q succeeded, and of %q only %q are gone", args, files, gone)
	case r.code != 0 && g.refusing(files) == "":
		g.t.Errorf("the deletion of %q was refused without a reason: %s", files, r.err)
	case r.code != 0:
		g.count["refused"]++
		g.wantBusy(r)
	default:
		g.count["deleted"] += len(gone)
	}
	for _, p := range gone {
		if ref := g.want[p]; ref != "" {
			g.deleted[p] = ref
		}
		delete(g.want, p)
		delete(g.sidecars, p)
	}
	g.adopt()
}

// attempt runs a command in a mount whose daemon may die meanwhile.
func (g *laterGame) attempt(name string, args ...string) (r result, died bool) {
	g.t.Helper()
	r = command(g.t, "env", append([]string{"LC_ALL=C", name}, args...)...)
	g.log("%s %q: %d %s", filepath.Base(name), args, r.code, strings.TrimSpace(r.err))
	return r, g.recoverIfDead()
}

// recoverIfDead mounts again when the daemon has died by itself.
func (g *laterGame) recoverIfDead() bool {
	g.t.Helper()
	if pid := g.pid(); pid != 0 && !ended(pid) {
		return false
	}
	g.count["killed"]++
	g.again(g.one(4))
	return true
}

// again mounts after the daemon was killed.
func (g *laterGame) again(lose bool) {
	g.t.Helper()
	g.kill() // its last threads may be ending
	g.fail = ""
	unix.Unmount(g.mnt, unix.MNT_DETACH)
	for _, p := range g.images() {
		if len(g.missing([]string{p})) == 0 && g.one(3) {
			g.reads(filepath.Join(g.tree, p), g.want[p])
		}
	}
	if lose {
		g.loseStore()
		g.count["stores lost"]++
	}
	g.log("it was killed; mount again, without the store: %v", lose)
	g.remount()
}

// undelete brings back what was deleted at some path, or all of a directory.
func (g *laterGame) undelete() {
	g.t.Helper()
	all := slices.Sorted(maps.Keys(g.deleted))
	listed := g.listed()
	if len(listed) > 0 && !g.one(4) {
		all = []string{string(pick(g.game, listed).Path)}
	}
	if len(all) == 0 {
		return
	}
	p := pick(g.game, all)
	if dir := path.Dir(p); g.one(4) && dir != "." {
		p = dir
	}
	r, died := g.attempt(chainfs, "undelete", "--json", g.in(p))
	var back []string
	switch {
	case died:
		back = g.reappeared()
	case r.code == 0:
		mustDo(g.t, json.Unmarshal([]byte(r.out), &back))
	default:
		g.count["not undeleted"]++
		g.wantReason(p, listed, r)
		back = g.reappeared()
	}
	for _, b := range back {
		g.count["undeleted"]++
		if g.want[b] != "" || g.deleted[b] == "" {
			g.t.Errorf("%s was brought back, and was not deleted", b)
		}
		g.want[b] = g.deleted[b]
		delete(g.deleted, b)
	}
	g.adopt()
}

// listed is the trash. The daemon may die over it.
func (g *laterGame) listed() (all []chain.Condemned) {
	g.t.Helper()
	if r, died := g.attempt(chainfs, "trash", "--json", g.mnt); !died {
		mustDo(g.t, json.Unmarshal([]byte(r.out), &all))
	}
	return all
}

// reappeared are the deleted images that are there again. Of a directory some may
// be, and fulls elsewhere.
func (g *laterGame) reappeared() (back []string) {
	for _, p := range slices.Sorted(maps.Keys(g.deleted)) {
		if g.want[p] == "" && len(g.missing([]string{p})) == 0 {
			back = append(back, p)
		}
	}
	return back
}

// wantReason: an undelete may fail because a name is taken, or what is meant has
// been absorbed, or is being absorbed now.
func (g *laterGame) wantReason(p string, before []chain.Condemned, r result) {
	g.t.Helper()
	for _, reason := range []string{"is there;", "nothing that was deleted there", "cannot be brought back any more", "no directory any more"} {
		if strings.Contains(r.err, reason) {
			return
		}
	}
	g.t.Errorf("undelete %s failed without a reason: %s; there was %v", p, r.err, before)
}

// useNameAgain makes a backup, or a directory with a file, where one was deleted.
func (g *laterGame) useNameAgain() {
	g.t.Helper()
	names := slices.DeleteFunc(slices.Sorted(maps.Keys(g.deleted)), func(p string) bool { return g.want[p] != "" })
	if len(names) == 0 {
		return
	}
	name, parent := pick(g.game, names), ""
	if len(g.want) > 0 && !g.one(3) {
		parent = pick(g.game, g.images())
	}
	g.log("%s again, on %q", name, parent)
	g.count["names used again"]++
	mustDo(g.t, os.MkdirAll(filepath.Dir(g.in(name)), 0o755))
	args := append([]string{"create", "-q", "-f", "qcow2"}, g.backing(name, parent)...)
	g.run("qemu-img", append(args, g.in(name), "16M")...)
	g.run("qemu-io", append(g.writes(12), g.in(name))...)
	g.named++
	g.keep(name)
	g.adopt()
}

// armed mounts a daemon that dies at some step, and has it work.
func (g *laterGame) armed() {
	g.t.Helper()
	g.umount()
	g.fail = g.someStep(g.labels...)
	g.remount()
	for range 1 + g.rng.IntN(3) {
		switch g.rng.IntN(5) {
		case 0:
			g.undelete()
		case 1:
			g.removeDirectory()
		case 2:
			g.wait()
		default:
			g.removeMiddle()
		}
		if g.fail == "" {
			return // it has died
		}
	}
	if g.one(2) {
		g.kill() // at any time
		g.count["killed at any time"]++
		g.again(g.one(6))
		return
	}
	command(g.t, chainfs, "umount", g.mnt) // it may die even now
	g.kill()
	g.fail = ""
	g.remount()
}

// look compares the names in the tree and the mount with the model, and what a few
// images read as, deleted ones too.
func (g *laterGame) look() {
	g.t.Helper()
	for _, at := range []string{g.tree, g.mnt} {
		got := slices.DeleteFunc(g.listing(at), func(p string) bool { return chain.InHidden(chain.Path(p)) })
		if want := g.files(); !slices.Equal(got, want) {
			g.t.Fatalf("in %s are %q, want %q", at, got, want)
		}
	}
	for range min(3, len(g.want)) {
		p := pick(g.game, g.images())
		g.reads(filepath.Join(pick(g.game, []string{g.tree, g.mnt}), p), g.want[p])
	}
}

// quiet wants all to be as if nothing had been left for later.
func (g *laterGame) quiet() {
	g.t.Helper()
	g.umount()
	g.mount("--settle", "0s")
	g.until("nothing is left to be done", func() bool { return command(g.t, chainfs, "wait", g.mnt).code == 0 })
	g.leaks = g.count["stores lost"] > 0
	g.intact()
	g.intactIn(g.mnt)
	g.clean()
	if left := g.trash(""); len(left) > 0 {
		g.t.Errorf("left in the trash: %v", left)
	}
	g.umount()
	g.remount()
}

// reads wants an image to read as before. Who has read an image's header and opens
// what it names a moment later may find that absorbed: the header has another name
// then.
func (g *laterGame) reads(file, ref string) {
	g.t.Helper()
	for range 3 {
		r := command(g.t, "qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", file, ref)
		if r.code == 0 {
			return
		}
		if !strings.Contains(r.err, "No such file or directory") {
			break
		}
		g.count["opened too late"]++
	}
	g.readsAsBefore(file, ref)
}
