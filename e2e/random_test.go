package e2e

import (
	"encoding/binary"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

var (
	seed  = flag.Uint64("seed", 1, "seed of the random tests; 0 takes one from the clock. It is logged")
	moves = flag.Int("moves", 100, "moves of the random test")
)

// TestE2ERandom plays random moves with the tools users have: new backups on the
// NAS and through the mount, rm, rm -r, mv, chainfs rm and rebase, remounts, a
// lost store, and daemons that are killed at a random step. The model is small:
// what each image must read as, and whose parent is whose.
func TestE2ERandom(t *testing.T) {
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	t.Logf("again: go test ./e2e -run 'TestE2ERandom$' -seed %d -moves %d", *seed, *moves)
	g := newGame(t, *seed)
	for n := range *moves {
		g.play()
		g.look()
		if n%20 == 19 {
			g.clean()
		}
		if t.Failed() {
			t.Fatalf("stopped after move %d", n)
		}
	}
	g.lookAtAll()
	t.Logf("%d images at the end; %v", len(g.want), g.count)
}

// game is a site, its model and the dice. Everything that is drawn is drawn from
// sorted lists, and outcomes hang on nothing but the seed.
type game struct {
	*site
	rng      *rand.Rand
	labels   []string
	parents  map[string]string // image to its parent; the keys are those of want
	sidecars map[string]bool
	named    int            // names are never used twice: the kernel remembers some for a second
	count    map[string]int // what happened, for the log
}

func newGame(t *testing.T, seed uint64) *game {
	g := &game{
		site: newSite(t), rng: rand.New(rand.NewPCG(seed, 0)), labels: labels(t),
		parents: map[string]string{}, sidecars: map[string]bool{}, count: map[string]int{},
	}
	for range 4 {
		g.backup()
	}
	g.mount()
	return g
}

func (g *game) play() {
	g.t.Helper()
	switch k := g.rng.IntN(100); {
	case k < 36 || len(g.want) < 9:
		g.backup()
	case k < 48:
		g.unlink()
	case k < 54:
		g.removeDirectory()
	case k < 64:
		g.command()
	case k < 75:
		g.rename()
	case k < 82:
		g.rebase()
	case k < 94:
		g.armed()
	case k < 97:
		g.remount(false)
	default:
		g.remount(true)
	}
}

func (g *game) log(format string, args ...any) {
	g.t.Helper()
	g.t.Logf(format, args...)
}

func (g *game) one(in int) bool { return g.rng.IntN(in) == 0 }

func pick[T any](g *game, of []T) T { return of[g.rng.IntN(len(of))] }

func (g *game) images() []string { return slices.Sorted(maps.Keys(g.want)) }

// files are all that must be in the tree.
func (g *game) files() []string {
	return slices.Sorted(slices.Values(append(g.images(), slices.Collect(maps.Keys(g.sidecars))...)))
}

func (g *game) within(dir string) (files []string) {
	for _, p := range g.files() {
		if strings.HasPrefix(p, dir+"/") {
			files = append(files, p)
		}
	}
	return files
}

// directories are those with an image in them, or with depth 1 their first component.
func (g *game) directories(depth int) (dirs []string) {
	for _, p := range g.images() {
		if parts := strings.Split(p, "/"); len(parts) > depth {
			dirs = append(dirs, path.Join(parts[:depth]...))
		}
	}
	return slices.Compact(dirs)
}

func (g *game) children(p string) (all []string) {
	for _, c := range g.images() {
		if g.parents[c] == p {
			all = append(all, c)
		}
	}
	return all
}

// line is p's parent, the parent's parent and so on.
func (g *game) line(p string) (all []string) {
	for p = g.parents[p]; p != ""; p = g.parents[p] {
		all = append(all, p)
	}
	return all
}

func (g *game) standsOn(p, below string) bool { return slices.Contains(g.line(p), below) }

// middles are the images whose deletion takes a rebase.
func (g *game) middles() (all []string) {
	for _, p := range g.images() {
		if g.parents[p] != "" && len(g.children(p)) > 0 {
			all = append(all, p)
		}
	}
	return all
}

// backup makes an image as a host does, on the NAS or through the mount, from
// which the daemon may be away.
func (g *game) backup() {
	g.t.Helper()
	name, parent, at := g.newImage(), "", g.tree
	if len(g.want) > 0 && !g.one(5) {
		parent = pick(g, g.images())
	}
	if g.pid() != 0 && g.one(2) {
		at = g.mnt
	}
	g.log("new %s on %q, through the mount: %v", name, parent, at == g.mnt)
	g.count["backups"]++
	file := filepath.Join(at, name)
	mustDo(g.t, os.MkdirAll(filepath.Dir(file), 0o755))
	size := pick(g, []int{16, 16, 16, 12, 20})
	options := pick(g, []string{"cluster_size=64k", "cluster_size=64k", "cluster_size=16k", "cluster_size=4k", "compat=0.10"})
	args := append([]string{"create", "-q", "-f", "qcow2", "-o", options}, g.backing(name, parent)...)
	g.run("qemu-img", append(args, file, fmt.Sprintf("%dM", size))...)
	g.run("qemu-io", append(g.writes(size), file)...)
	if path.Base(name) == "root.a.qcow2" && g.one(2) {
		sidecar := path.Join(path.Dir(name), "domain-config.xml")
		g.sidecar(sidecar)
		g.sidecars[sidecar] = true
	}
	g.parents[name] = parent
	g.keep(name)
}

// keep makes the flattened copy that an image is compared with.
func (g *game) keep(name string) {
	g.t.Helper()
	ref := filepath.Join(g.refs, fmt.Sprint(g.named))
	g.run("qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", filepath.Join(g.tree, name), ref)
	g.want[name] = ref
}

// newImage names one: a backup's root disk, a second disk beside one, or a file
// beside others.
func (g *game) newImage() string {
	g.named++
	k := g.rng.IntN(8)
	if dirs := g.directories(2); k == 0 && len(dirs) > 0 {
		return path.Join(pick(g, dirs), fmt.Sprintf("datadisk.%d.qcow2", g.named))
	}
	vm := g.someVM()
	if k == 1 {
		return fmt.Sprintf("%s/flat%d.qcow2", vm, g.named)
	}
	return fmt.Sprintf("%s/T%d/root.a.qcow2", vm, g.named)
}

func (g *game) someVM() string {
	if vms := g.directories(1); len(vms) > 0 && !g.one(5) {
		return pick(g, vms)
	}
	return fmt.Sprintf("vm%d", g.named)
}

func (g *game) backing(name, parent string) []string {
	if parent == "" {
		return nil
	}
	back, err := filepath.Rel(path.Dir(name), parent)
	mustDo(g.t, err)
	if g.one(6) {
		back = filepath.Join(g.tree, parent)
	}
	return []string{"-b", back, "-F", "qcow2", "-u"}
}

// writes are a few clusters: some of them lie over the parent's, some are zeroes.
func (g *game) writes(size int) []string {
	args := []string{"-f", "qcow2"}
	for range 2 + g.rng.IntN(3) {
		pattern := fmt.Sprintf("-P %d", 1+g.rng.IntN(250))
		if g.one(5) {
			pattern = "-z"
		}
		at, length := g.rng.IntN(size*256-64), 1+g.rng.IntN(64)
		args = append(args, "-c", fmt.Sprintf("write -q %s %dk %dk", pattern, 4*at, 4*length))
	}
	return args
}

func (g *game) unlink() {
	g.t.Helper()
	g.rm(pick(g, g.images()))
}

func (g *game) rm(p string) {
	g.t.Helper()
	g.remove(removal{files: []string{p}}, "env", "LC_ALL=C", "rm", "-v", g.in(p))
}

func (g *game) in(p string) string { return filepath.Join(g.mnt, p) }

func (g *game) removeDirectory() {
	g.t.Helper()
	dirs := g.directories(2)
	if g.one(10) || len(dirs) == 0 {
		dirs = g.directories(1)
	}
	dir := pick(g, dirs)
	g.remove(removal{files: g.within(dir)}, "env", "LC_ALL=C", "rm", "-rv", g.in(dir))
}

// command deletes several paths as one operation.
func (g *game) command() {
	g.t.Helper()
	force := g.one(6)
	args := []string{"rm"}
	if force {
		args = append(args, "--force")
	}
	var doomed []string
	for range 1 + g.rng.IntN(3) {
		p := pick(g, g.images())
		files := []string{p}
		if dir := path.Dir(p); g.one(4) && strings.Contains(dir, "/") {
			p, files = dir, g.within(dir)
		}
		args, doomed = append(args, g.in(p)), append(doomed, files...)
	}
	if force {
		doomed = append(doomed, g.above(doomed)...)
	}
	slices.Sort(doomed)
	g.remove(removal{files: slices.Compact(doomed), asOne: true}, chainfs, args...)
}

// above are all that stand on any of ps.
func (g *game) above(ps []string) (all []string) {
	for _, p := range g.images() {
		if slices.ContainsFunc(ps, func(below string) bool { return g.standsOn(p, below) }) {
			all = append(all, p)
		}
	}
	return all
}

// removal is what a command was to delete.
type removal struct {
	files []string
	asOne bool // one operation: all go or none
}

// remove runs a command that deletes, and holds what it did and said against
// the model.
func (g *game) remove(rm removal, name string, args ...string) {
	g.t.Helper()
	was := g.photo()
	r, died := g.try(name, args...)
	gone := g.missing(rm.files)
	told := g.acknowledged(r.out)
	switch {
	case died:
		g.checkKilled(rm, gone, told, r)
	case r.code == 0:
		g.count["deleted"] += len(gone)
		if len(gone) != len(rm.files) {
			g.t.Errorf("%q succeeded, and of %q only %q are gone", args, rm.files, gone)
		}
	default:
		g.count["refused"]++
		g.checkRefused(rm, gone, told, r)
		if len(gone) == 0 {
			g.unchanged(was)
		}
	}
	g.forget(gone)
	if died {
		g.adopt()
	}
}

// try runs a command. Where the daemon was killed under it, it is mounted again.
func (g *game) try(name string, args ...string) (r result, died bool) {
	g.t.Helper()
	pid := g.pid()
	r = command(g.t, name, args...)
	g.log("%s %q: %d %s", filepath.Base(name), args, r.code, r.err)
	if r.code == 0 || g.pid() == pid {
		return r, false
	}
	g.waitGone(pid)
	g.count["killed"]++
	g.readableAsIs()
	g.recover()
	return r, true
}

// readableAsIs wants what a killed daemon left to read as before, whatever of it
// is in the tree, for somebody who has the NAS and no chainfs.
func (g *game) readableAsIs() {
	g.t.Helper()
	for range 4 {
		if p := pick(g, g.images()); len(g.missing([]string{p})) == 0 {
			g.readsAsBefore(filepath.Join(g.tree, p), g.want[p])
		}
	}
}

// recover mounts again after a kill; that daemon may be killed while it
// recovers, and the store may be lost.
func (g *game) recover() {
	g.t.Helper()
	if g.one(3) {
		g.fail = g.someStep("DELETE:UNLINKED", "DELETE:SYNCED", "DELETE:FINISHED")
		if out, err := g.tryMount(); err != nil {
			g.log("killed while it recovered, %s: %s", g.fail, out)
			g.count["killed in recovery"]++
		} else {
			g.umount()
		}
		g.fail = ""
		g.mount()
	} else if g.fail = ""; g.one(6) {
		g.remount(true)
	} else {
		g.mount()
	}
	g.noLeftovers()
}

func (g *game) someStep(labels ...string) string {
	return fmt.Sprintf("%s:%d=kill", pick(g, labels), pick(g, []int{1, 1, 2, 3}))
}

// missing are those of files that are not in the tree.
func (g *game) missing(files []string) (gone []string) {
	for _, p := range files {
		if _, err := os.Lstat(filepath.Join(g.tree, p)); os.IsNotExist(err) {
			gone = append(gone, p)
		}
	}
	return gone
}

var removedLine = regexp.MustCompile(`(?m)^removed '(.*)'$`)

// acknowledged are the files that rm -v said it deleted.
func (g *game) acknowledged(out string) (files []string) {
	for _, m := range removedLine.FindAllStringSubmatch(out, -1) {
		files = append(files, strings.TrimPrefix(m[1], g.mnt+"/"))
	}
	slices.Sort(files)
	return files
}

// checkKilled: what was acknowledged is gone. Beyond that the one file at which
// the daemon died may be, or, of one operation, all or none.
func (g *game) checkKilled(rm removal, gone, told []string, r result) {
	g.t.Helper()
	for _, p := range told {
		if !slices.Contains(gone, p) {
			g.t.Errorf("the deletion of %s was acknowledged and forgotten", p)
		}
	}
	if !rm.asOne && len(gone) > len(told)+1 {
		g.t.Errorf("%q are gone, and only %q were acknowledged: %s", gone, told, r.err)
	}
	if rm.asOne && len(gone) != 0 && len(gone) != len(rm.files) && !g.lostStore() {
		g.t.Errorf("of %q only %q are gone after recovery", rm.files, gone)
	}
}

// lostStore reports whether the journal was lost since the last kill: then the
// rest of a deletion, which nobody was told is done, is forgotten with it.
func (g *game) lostStore() bool {
	return !strings.Contains(g.cli(0, "ops", "--json", g.mnt).out, `"id"`)
}

// checkRefused: only because an image in one of the directories is a full on
// which others stand, and nothing is gone that rm did not tell.
func (g *game) checkRefused(rm removal, gone, told []string, r result) {
	g.t.Helper()
	full := g.refusing(rm.files)
	if full == "" {
		g.t.Errorf("the deletion of %q was refused without a reason: %s", rm.files, r.err)
	}
	if rm.asOne && (r.code != 3 || len(gone) > 0) {
		g.t.Errorf("the refused deletion of %q ended with %d: %s; gone are %q", rm.files, r.code, r.err, gone)
	}
	if !rm.asOne {
		g.wantBusy(r)
	}
	if !slices.Equal(gone, told) {
		g.t.Errorf("gone are %q, and rm told of %q", gone, told)
	}
}

func (g *game) refusing(files []string) string {
	for _, p := range g.images() {
		beside := func(f string) bool { return path.Dir(f) == path.Dir(p) }
		if g.parents[p] == "" && len(g.children(p)) > 0 && slices.ContainsFunc(files, beside) {
			return p
		}
	}
	return ""
}

// wantBusy wants a tool to have failed with EBUSY and nothing else.
func (g *game) wantBusy(r result) {
	g.t.Helper()
	for _, line := range strings.Split(strings.TrimSpace(r.err), "\n") {
		if !strings.HasSuffix(line, "Device or resource busy") {
			g.t.Errorf("got %q, want Device or resource busy", line)
		}
	}
}

// forget takes files out of the model. Who stood on one of them stands on its
// nearest ancestor that is left.
func (g *game) forget(gone []string) {
	was := maps.Clone(g.parents)
	for _, p := range gone {
		delete(g.want, p)
		delete(g.parents, p)
		delete(g.sidecars, p)
	}
	for p, parent := range g.parents {
		for slices.Contains(gone, parent) {
			parent = was[parent]
		}
		g.parents[p] = parent
	}
}

// adopt takes the parents as they are after an operation was undone: a child
// that had absorbed stays where it is, on an ancestor.
func (g *game) adopt() {
	g.t.Helper()
	now := map[string]string{}
	for _, p := range g.images() {
		now[p] = g.parentInHeader(p)
		if now[p] != "" && !g.standsOn(p, now[p]) {
			g.t.Errorf("%s stood on %q and now on %q", p, g.parents[p], now[p])
		}
	}
	g.parents = now
}

func (g *game) rename() {
	g.t.Helper()
	from, to := g.newNames()
	if from == to {
		return
	}
	refuse, was := g.wouldBreak(from, to), g.photo()
	r, _ := g.try("env", "LC_ALL=C", "mv", "-f", "-T", g.in(from), g.in(to))
	if r.code == 0 {
		g.count["renamed"]++
		g.moved(from, to)
		return
	}
	g.count["refused"]++
	g.wantBusy(r)
	g.unchanged(was)
	if refuse == "" {
		g.t.Errorf("%s cannot become %s, and there is no reason: %s", from, to, r.err)
	}
}

// newNames draw what is renamed to what: an image within its directory, into
// another or over an image; a backup; a VM.
func (g *game) newNames() (from, to string) {
	g.named++
	from = pick(g, g.images())
	switch g.rng.IntN(6) {
	case 0:
		return from, pick(g, g.images())
	case 1:
		return from, path.Join(path.Dir(pick(g, g.images())), fmt.Sprintf("moved%d.qcow2", g.named))
	case 2, 3:
		if dirs := g.directories(2); len(dirs) > 0 {
			return pick(g, dirs), path.Join(pick(g, g.directories(1)), fmt.Sprintf("T%d", g.named))
		}
	case 4:
		return pick(g, g.directories(1)), fmt.Sprintf("vm%d", g.named)
	}
	return from, path.Join(path.Dir(from), fmt.Sprintf("moved%d.qcow2", g.named))
}

// wouldBreak names the image for whose sake a rename may be refused: one that
// would not find its parent, or one that would be replaced and is needed.
func (g *game) wouldBreak(from, to string) string {
	for _, p := range g.images() {
		parent := g.parents[p]
		if parent == "" {
			continue
		}
		leads := resolve(g.tree, renamed(p, from, to), g.backingName(p))
		if leads != renamed(parent, from, to) || parent == to {
			return p
		}
	}
	if g.want[to] != "" {
		return g.refusing([]string{to})
	}
	return ""
}

// renamed is p's name after the rename.
func renamed(p, from, to string) string {
	if p == from {
		return to
	}
	if rest, ok := strings.CutPrefix(p, from+"/"); ok {
		return path.Join(to, rest)
	}
	return p
}

func (g *game) moved(from, to string) {
	if g.want[to] != "" {
		g.forget([]string{to})
	}
	want, parents, sidecars := map[string]string{}, map[string]string{}, map[string]bool{}
	for p, ref := range g.want {
		want[renamed(p, from, to)] = ref
		parents[renamed(p, from, to)] = renamed(g.parents[p], from, to)
	}
	for p := range g.sidecars {
		sidecars[renamed(p, from, to)] = true
	}
	g.want, g.parents, g.sidecars = want, parents, sidecars
}

// rebase puts an image on an ancestor or nothing, or on any image: only one of
// its chain that does not stand on it will do.
func (g *game) rebase() {
	g.t.Helper()
	target := pick(g, g.images())
	onto := pick(g, append(g.line(target), ""))
	if g.one(3) {
		onto = pick(g, g.images())
	}
	can := onto == "" || onto != target && g.full(onto) == g.full(target) && !g.standsOn(onto, target)
	name := "none"
	if onto != "" {
		name = g.in(onto)
	}
	was := g.photo()
	r, died := g.try(chainfs, "rebase", g.in(target), name)
	switch {
	case died:
		if now := g.parentInHeader(target); now == onto {
			g.parents[target] = onto
		}
	case can && r.code == 0:
		g.count["rebased"]++
		g.parents[target] = onto
	case can || r.code != 3:
		g.t.Errorf("rebase %s onto %q: exit code %d: %s", target, onto, r.code, r.err)
	default:
		g.count["refused"]++
		g.unchanged(was)
	}
}

func (g *game) full(p string) string {
	if line := g.line(p); len(line) > 0 {
		return line[len(line)-1]
	}
	return p
}

// armed mounts a daemon that dies at some step and gives it something to do.
// Where that has no such step it dies in a later move.
func (g *game) armed() {
	g.t.Helper()
	g.umount()
	g.fail = g.someStep(g.labels...)
	g.log("armed: %s", g.fail)
	g.mount()
	switch middles := g.middles(); {
	case len(middles) == 0, g.one(3):
		g.command()
	case g.one(5):
		g.rebase()
	default:
		g.rm(pick(g, middles))
	}
}

func (g *game) remount(loseStore bool) {
	g.t.Helper()
	g.log("mount again, without the store: %v", loseStore)
	if g.pid() != 0 {
		g.umount()
	}
	if loseStore {
		g.count["stores lost"]++
		mustDo(g.t, os.RemoveAll(g.store))
		mustDo(g.t, os.Mkdir(g.store, 0o700))
	}
	g.fail = ""
	g.mount()
}

func (g *game) backingName(p string) string {
	g.t.Helper()
	name, err := backingNameOf(filepath.Join(g.tree, p))
	mustDo(g.t, err)
	return name
}

// backingNameOf is the backing name in an image's header (QEMU's
// docs/interop/qcow2.rst: offset at byte 8, length at byte 16).
func backingNameOf(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	header := make([]byte, 20)
	if _, err := f.ReadAt(header, 0); err != nil {
		return "", err
	}
	name := make([]byte, binary.BigEndian.Uint32(header[16:]))
	_, err = f.ReadAt(name, int64(binary.BigEndian.Uint64(header[8:])))
	return string(name), err
}

func (g *game) parentInHeader(p string) string {
	g.t.Helper()
	name := g.backingName(p)
	if name == "" {
		return ""
	}
	return resolve(g.tree, p, name)
}

// resolve is the image of the tree that a backing name in p means.
func resolve(tree, p, name string) string {
	if path.IsAbs(name) {
		return strings.TrimPrefix(name, tree+"/")
	}
	return path.Join(path.Dir(p), name)
}

// photo is what a command that was refused must not have changed.
func (s *site) photo() map[string]string {
	s.t.Helper()
	photo := map[string]string{}
	err := filepath.WalkDir(s.tree, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == s.tree {
			return err
		}
		if d.Name() == ".chainfs" {
			return fs.SkipDir
		}
		info, err := d.Info()
		if err == nil {
			photo[p] = fmt.Sprint(info.Sys().(*syscall.Stat_t).Ino, info.Mode(), info.ModTime())
			if !info.IsDir() {
				photo[p] += fmt.Sprint(" ", info.Size())
			}
		}
		return err
	})
	mustDo(s.t, err)
	return photo
}

func (s *site) unchanged(was map[string]string) {
	s.t.Helper()
	if now := s.photo(); !maps.Equal(was, now) {
		s.t.Errorf("a refused command changed the tree from %q to %q", was, now)
	}
}

// look compares the names in the tree and everybody's parent with the model,
// and what a few images read as.
func (g *game) look() {
	g.t.Helper()
	if got, want := g.listing(g.tree), g.files(); !slices.Equal(got, want) {
		g.t.Fatalf("in the tree are %q, want %q", got, want)
	}
	for _, p := range g.images() {
		if got := g.parentInHeader(p); got != g.parents[p] {
			g.t.Errorf("%s stands on %q, want %q", p, got, g.parents[p])
		}
	}
	for range min(3, len(g.want)) {
		p := pick(g, g.images())
		g.readsAsBefore(filepath.Join(pick(g, []string{g.tree, g.mnt}), p), g.want[p])
	}
}

func (g *game) readsAsBefore(file, ref string) {
	g.t.Helper()
	if r := command(g.t, "qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", file, ref); r.code != 0 {
		g.t.Errorf("%s does not read as before: %s%s", file, r.out, r.err)
	}
}

// listing names all files, hidden ones too.
func (g *game) listing(root string) (files []string) {
	g.t.Helper()
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == ".chainfs" {
			return fs.SkipDir
		}
		if err == nil && !d.IsDir() {
			files = append(files, strings.TrimPrefix(p, root+"/"))
		}
		return err
	})
	mustDo(g.t, err)
	slices.Sort(files)
	return files
}

// lookAtAll is the end of the game.
func (g *game) lookAtAll() {
	g.t.Helper()
	g.remount(false)
	g.intact()
	g.intactIn(g.mnt)
	if got, want := g.listing(g.mnt), g.files(); !slices.Equal(got, want) {
		g.t.Errorf("in the mount are %q, want %q", got, want)
	}
	g.clean()
	g.umount()
	g.offline(0, "check", g.tree)
	g.noLeftovers()
}
