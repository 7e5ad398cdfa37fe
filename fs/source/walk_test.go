package source

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
)

// collect walks with one walker, so that the order is the same each time, and
// returns what it saw, sorted and each path once.
func collect(tree *Tree, visit func(chain.Entry)) (paths []string, unreadable []string, rounds int, err error) {
	w := newWalk(tree, chain.Walker{
		Visit: func(e chain.Entry) error {
			paths = append(paths, string(e.Path))
			if visit != nil {
				visit(e)
			}
			return nil
		},
		Unreadable: func(p chain.Path, err error) { unreadable = append(unreadable, fmt.Sprintf("%s: %v", string(p), err)) },
	}, 1)
	err = w.all(context.Background())
	slices.Sort(paths)
	return slices.Compact(paths), unreadable, w.rounds, err
}

func TestWalkSeesEverythingButItsOwn(t *testing.T) {
	dir := t.TempDir()
	long, raw := strings.Repeat("ä", 127)+"x", "caf\xe9\n\x01"
	build(t, dir, "a/b/c", "a/.chainfs/x", "a/.chainfs-scratch-7-c", "a/.chainfs-9-d", "empty/", "l -> a", long, raw+"/"+raw)
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	tree := openTree(t, dir)

	types := map[string]chain.FileType{}
	got, unreadable, _, err := collect(tree, func(e chain.Entry) { types[string(e.Path)] = e.Type })
	want := []string{"a", "a/.chainfs", "a/.chainfs-9-d", "a/.chainfs-scratch-7-c", "a/.chainfs/x", "a/b", "a/b/c",
		"empty", "fifo", "l", long, raw, raw + "/" + raw}
	slices.Sort(want)
	if err != nil || !slices.Equal(got, want) || len(unreadable) != 0 {
		t.Errorf("got %q, %q, %v\nwant %q", got, unreadable, err, want)
	}
	for p, want := range map[string]chain.FileType{"a": chain.Directory, "l": chain.Symlink, "fifo": chain.Other, long: chain.Regular, raw + "/" + raw: chain.Regular} {
		if types[p] != want {
			t.Errorf("type of %q: got %v, want %v", p, types[p], want)
		}
	}
	for _, p := range []chain.Path{chain.Path(long), chain.Path(raw + "/" + raw)} {
		if f, err := tree.Open(p); err != nil {
			t.Error(err)
		} else {
			f.Close()
		}
	}
	if _, err := tree.Open("fifo"); err == nil {
		t.Error("a FIFO was opened")
	}
}

// A walk and a stat must agree, or every image would look changed.
func TestWalkAndStatAgree(t *testing.T) {
	dir := t.TempDir()
	build(t, dir, "a/b", "l -> a")
	tree := openTree(t, dir)
	err := tree.Walk(context.Background(), chain.Walker{Visit: func(walked chain.Entry) error {
		if stat, err := tree.Stat(walked.Path); err != nil || stat != walked {
			t.Errorf("stat %v, %v, walk %v", stat, err, walked)
		}
		return nil
	}})
	must(t, err)
}

func TestWalkListsAgainWhatChanges(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(dir string) error
		old    bool // directories' times are old, as in a tree at rest
	}{
		{"a file is moved between directories", func(d string) error { return os.Rename(d+"/a/x", d+"/b/x") }, true},
		{"a file is moved back", func(d string) error { return os.Rename(d+"/b/y", d+"/a/y") }, true},
		{"a file appears", func(d string) error { return os.WriteFile(d+"/a/new", nil, 0o600) }, true},
		{"a directory is moved", func(d string) error { return os.Rename(d+"/a", d+"/b/a") }, true},
		{"a directory becomes a link", func(d string) error {
			return errors.Join(os.Rename(d+"/a", d+"/c"), os.Symlink("c", d+"/a"))
		}, true},
		{"a file goes within the clock's tick", func(d string) error {
			var st syscall.Stat_t
			if err := syscall.Lstat(d+"/a", &st); err != nil {
				return err
			}
			return errors.Join(os.Remove(d+"/a/x"), os.Chtimes(d+"/a", time.Unix(st.Atim.Unix()), time.Unix(st.Mtim.Unix())))
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			build(t, dir, "a/x", "b/y", "z")
			tree := openTree(t, dir)
			done := false
			got, unreadable, rounds, err := collect(tree, func(e chain.Entry) {
				if !done && e.Path.Dir() != "" {
					done = true
					must(t, c.change(dir))
				}
			})
			want, _, _, wantErr := collect(tree, nil)
			if err != nil || wantErr != nil || rounds == 0 || len(unreadable) != 0 || !holds(got, want) {
				t.Errorf("got %q after %d rounds, unreadable %q, %v; want %q after at least one, %v", got, rounds, unreadable, err, want, wantErr)
			}
		})
	}
}

// holds reports whether all of want were visited: a walk may visit more.
func holds(got, want []string) bool {
	return !slices.ContainsFunc(want, func(p string) bool { return !slices.Contains(got, p) })
}

// mover is the worst there can be: in every pass it renames one thing, from a
// directory that the pass has not yet come to into one that it is just reading.
// So that the pass comes to the latter first, it changed that one before.
type mover struct {
	t     *testing.T
	walk  *walk
	dir   string
	what  string
	dirs  []*dir // in the order of a verification; they are listed from the end
	moves int    // to be made, one in a pass
	made  int
}

func (m *mover) visited(e chain.Entry) {
	n := m.walk.rounds
	if n >= m.moves || n != m.made || e.Path != m.dirs[n+1].path.Join("mark") {
		return
	}
	at := func(i int, name string) string { return filepath.Join(m.dir, string(m.dirs[i].path), name) }
	must(m.t, os.Rename(at(n, m.what), at(n+1, m.what)))
	must(m.t, os.WriteFile(at(n+2, "noise"), nil, 0o600))
	m.made++
}

// A file, or a directory above it, that is moved ahead of the walk again and
// again is found as long as it is moved less often than there are passes.
func TestNothingIsMissedThatIsMoved(t *testing.T) {
	for _, c := range []struct{ what, below string }{
		{"file", ""}, {"directory", "/image"}, {"high", "/directory/image"},
	} {
		for moves := range maxRounds + 2 {
			t.Run(fmt.Sprintf("%s moved %d times", c.what, moves), func(t *testing.T) {
				dir := t.TempDir()
				build(t, dir, "a/mark", "b/mark", "c/mark", "d/mark", "e/mark", "f/mark", "g/mark")
				tree := openTree(t, dir)
				m := &mover{t: t, dir: dir, what: c.what, moves: moves}
				found, ino := false, uint64(0)
				w := newWalk(tree, chain.Walker{Visit: func(e chain.Entry) error {
					found = found || e.Identity.Inode == ino
					if m.walk != nil {
						m.visited(e)
					}
					return nil
				}}, 1)
				must(t, w.all(context.Background()))
				m.dirs = w.root.subs

				first := filepath.Join(string(m.dirs[0].path), c.what+c.below)
				build(t, dir, first)
				e, err := tree.Stat(chain.Path(first))
				must(t, err)
				m.walk, found, ino = newWalk(tree, w.to, 1), false, e.Identity.Inode
				err = m.walk.all(context.Background())
				if want := moves <= maxRounds; err != nil || m.made != moves || found != want {
					t.Errorf("found %v, want %v; %d moves of %d, %v", found, want, m.made, moves, err)
				}
			})
		}
	}
}

// A directory that is not where it was leads to the one that lost it, even when
// that one had been compared before.
func TestVanishedDirectoryRepeatsItsParent(t *testing.T) {
	dir := t.TempDir()
	build(t, dir, "a/x", "b/y")
	tree := openTree(t, dir)
	w := newWalk(tree, chain.Walker{Visit: func(chain.Entry) error { return nil }}, 1)
	must(t, w.all(context.Background()))
	w.root.subs[0].stamp.inode++
	checkHidden(t, w, "")
}

// A new directory under a known name is walked at once, not a round later.
func TestReplacedDirectoryIsWalked(t *testing.T) {
	top := t.TempDir()
	build(t, top, "a/s/old", "b/t/x")
	tree := openTree(t, top)
	met := map[string]bool{}
	w := newWalk(tree, chain.Walker{Visit: func(e chain.Entry) error { met[string(e.Path)] = true; return nil }}, 1)
	must(t, w.all(context.Background()))
	must(t, os.Rename(top+"/a", top+"/c"))
	build(t, top, "a/s/new")
	clear(met)
	must(t, w.listAll(context.Background(), []*dir{w.root}))
	for p, want := range map[string]bool{"a/s/new": true, "c/s/old": true, "b": true, "b/t/x": false} {
		if met[p] != want {
			t.Errorf("visited %s: got %v, want %v", p, met[p], want)
		}
	}
}

// Two files that change places leave a directory with the names it had.
func TestExchangedFilesAreFound(t *testing.T) {
	dir := t.TempDir()
	build(t, dir, "a/x", "b/x")
	tree := openTree(t, dir)
	w := newWalk(tree, chain.Walker{Visit: func(chain.Entry) error { return nil }}, 1)
	must(t, w.all(context.Background()))
	must(t, unix.Renameat2(unix.AT_FDCWD, dir+"/a/x", unix.AT_FDCWD, dir+"/b/x", unix.RENAME_EXCHANGE))
	checkHidden(t, w, "a", "b")
}

// Two changes within one tick of a coarse clock leave a directory's times as
// they were: then only its listing tells.
func TestYoungDirectoryIsListedAgain(t *testing.T) {
	dir := t.TempDir()
	build(t, dir, "a/x", "a/y", "b/z")
	tree := openTree(t, dir)
	w := newWalk(tree, chain.Walker{Visit: func(chain.Entry) error { return nil }}, 1)
	must(t, w.all(context.Background()))
	must(t, os.Remove(filepath.Join(dir, "a/x")))
	checkHidden(t, w, "a")
}

// checkHidden makes the times of all directories what they were and expects
// that those that changed are noticed all the same.
func checkHidden(t *testing.T, w *walk, want ...string) {
	t.Helper()
	for _, d := range append([]*dir{w.root}, w.root.subs...) {
		e, err := w.tree.Stat(d.path)
		must(t, err)
		d.stamp.mtime, d.stamp.ctime = e.Identity.MTime, e.Identity.CTime
		if !d.stamp.young {
			t.Errorf("%s is not young", d.path)
		}
	}
	again, err := w.verify(context.Background())
	must(t, err)
	var got []string
	for _, d := range again {
		got = append(got, string(d.path))
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("to be listed again: got %q, want %q", got, want)
	}
}

func TestWalkAcceptsATreeThatKeepsChanging(t *testing.T) {
	dir := t.TempDir()
	build(t, dir, "a/x", "b/y")
	tree := openTree(t, dir)
	n := 0
	got, _, rounds, err := collect(tree, func(chain.Entry) {
		n++
		build(t, dir, fmt.Sprintf("a/new%d", n%7), fmt.Sprintf("new%d", n%7))
		os.Remove(fmt.Sprintf("%s/a/new%d", dir, (n+3)%7))
	})
	if err != nil || rounds != maxRounds || !holds(got, []string{"a", "a/x", "b", "b/y"}) {
		t.Errorf("got %q after %d rounds, %v", got, rounds, err)
	}
}

// On a busy NAS something is always being renamed.
func TestWalkOfABusyTree(t *testing.T) {
	dir := t.TempDir()
	inodes := map[uint64]string{}
	for i := range 600 {
		name := fmt.Sprintf("vm%d/b%d/disk%d", i%10, i%60, i)
		build(t, dir, name)
		var st unix.Stat_t
		must(t, unix.Stat(filepath.Join(dir, name), &st))
		inodes[st.Ino] = name
	}
	tree := openTree(t, dir)
	ctx, stop := context.WithCancel(context.Background())
	renamed := make(chan int)
	go func() { renamed <- renameAlways(ctx, dir) }()
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		met := map[uint64]bool{}
		err := tree.Walk(context.Background(), chain.Walker{
			Visit:      func(e chain.Entry) error { met[e.Identity.Inode] = true; return nil },
			Unreadable: func(p chain.Path, err error) { t.Errorf("%s: %v", p, err) },
		})
		if err != nil {
			t.Error(err)
		}
		for ino, name := range inodes {
			if !met[ino] {
				t.Errorf("%s was missed", name)
			}
		}
	}
	stop()
	t.Logf("%d renames", <-renamed)
}

// renameAlways moves a file, or a whole directory, each millisecond.
func renameAlways(ctx context.Context, dir string) (n int) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for ; ctx.Err() == nil; <-tick.C {
		what := fmt.Sprintf("b%d", rand.IntN(60))
		from, to := fmt.Sprintf("%s/vm%d", dir, rand.IntN(10)), fmt.Sprintf("%s/vm%d", dir, rand.IntN(10))
		if rand.IntN(2) == 0 {
			what = fmt.Sprintf("disk%d", rand.IntN(600))
			from, to = fmt.Sprintf("%s/b%d", from, rand.IntN(60)), fmt.Sprintf("%s/b%d", to, rand.IntN(60))
		}
		if os.Rename(from+"/"+what, to+"/"+what) == nil {
			n++
		}
	}
	return n
}

// A name that leads nowhere although its directory did not change is no move.
func TestWhatIsMissingForNoReasonIsReported(t *testing.T) {
	dir := t.TempDir()
	build(t, dir, "a/x", "b/y")
	tree := openTree(t, dir)
	var got []string
	w := newWalk(tree, chain.Walker{
		Visit:      func(chain.Entry) error { return nil },
		Unreadable: func(p chain.Path, err error) { got = append(got, string(p)) },
	}, 1)
	must(t, w.all(context.Background()))
	for _, d := range w.root.subs {
		d.missing = []missing{{d.path.Join("lost"), unix.ENOENT}}
	}
	must(t, os.Remove(filepath.Join(dir, "a/x")))
	must(t, w.unexplained(w.root))
	if !slices.Equal(got, []string{"b/lost"}) {
		t.Errorf("unreadable: got %q, want b/lost alone", got)
	}
}

// What ends in the middle of a visit must not leave the walk waiting.
func TestWalkEndsWithItsVisitor(t *testing.T) {
	dir := t.TempDir()
	build(t, dir, "a/x", "b/y", "c/z")
	err := openTree(t, dir).Walk(context.Background(), chain.Walker{Visit: func(chain.Entry) error {
		runtime.Goexit()
		return nil
	}})
	if err != errLeft {
		t.Errorf("got %v, want %v", err, errLeft)
	}
}

func TestWalkStops(t *testing.T) {
	dir := t.TempDir()
	build(t, dir, "a/x", "b/y")
	tree := openTree(t, dir)
	mine := errors.New("mine")
	if err := tree.Walk(context.Background(), chain.Walker{Visit: func(chain.Entry) error { return mine }}); err != mine {
		t.Errorf("got %v, want the error of visit", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	visits := 0
	err := tree.Walk(ctx, chain.Walker{Visit: func(chain.Entry) error { cancel(); visits++; return nil }})
	if !errors.Is(err, context.Canceled) || visits != 1 {
		t.Errorf("got %v after %d visits, want a cancelled walk after 1", err, visits)
	}
}

func TestDepthBeyondPathMax(t *testing.T) {
	dir := t.TempDir()
	tree := openTree(t, dir)
	name, p := strings.Repeat("d", 250), chain.Path("")
	for range 40 {
		p = p.Join(name)
		at, base, release, err := tree.At(p)
		must(t, err)
		must(t, unix.Mkdirat(at, base, 0o755))
		release()
	}
	file := p.Join("file")
	at, base, release, err := tree.At(file)
	must(t, err)
	fd, err := OpenBeneath(at, base, unix.O_CREAT|unix.O_WRONLY, 0o644)
	must(t, err)
	unix.Close(fd)
	release()

	if got, _, _, err := collect(tree, nil); err != nil || len(got) != 41 {
		t.Errorf("walk: %d entries, %v, want 41", len(got), err)
	}
	must(t, tree.Rename(file, p.Join("file2"), unix.RENAME_NOREPLACE))
	must(t, tree.SyncDir(p))
	f, err := tree.Open(p.Join("file2"))
	must(t, err)
	f.Close()
	if r, err := tree.Resolve(p, "./file2"); err != nil || r.Path != p.Join("file2") {
		t.Errorf("Resolve: got a path of %d bytes, %v", len(r.Path), err)
	}
	must(t, tree.Unlink(p.Join("file2")))
}

// The child runs as nobody, for whom permissions count.
func TestWalkAsUnprivilegedUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("becoming another user needs root")
	}
	dir := t.TempDir()
	build(t, dir, "open/x", "shut/y", "blind/z")
	for p := dir; p != "/tmp" && p != "/"; p = filepath.Dir(p) {
		must(t, os.Chmod(p, 0o755))
	}
	must(t, os.Chmod(dir+"/shut", 0o700))
	must(t, os.Chmod(dir+"/blind", 0o744)) // can be listed, not searched
	exe, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	copied := dir + ".test"
	must(t, os.WriteFile(copied, exe, 0o755))
	defer os.Remove(copied)
	cmd := child(t, "walk", dir)
	cmd.Path = copied
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.Output()
	want := "[blind open open/x shut] [blind/z: walk blind/z: permission denied shut: walk shut: permission denied] <nil>\n"
	if err != nil || string(out) != want {
		t.Errorf("got  %s%v\nwant %s", out, err, want)
	}
}

func walkAsChild(dir string) {
	tree, err := Open(dir, Options{ReadOnly: true})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	paths, unreadable, _, err := collect(tree, nil)
	slices.Sort(unreadable)
	fmt.Println(paths, unreadable, err)
	os.Exit(0)
}

// Whether directories are young decides about a second listing of each. Their
// ctime cannot be set back, so the benchmark moves the bound instead.
func BenchmarkWalk(b *testing.B) {
	for _, perDir := range []int{1, 4, 100} {
		dir := b.TempDir()
		for i := range 10000 {
			build(b, dir, fmt.Sprintf("vm%d/b%d/disk%d", i/perDir%50, i/perDir, i))
		}
		tree := openTree(b, dir)
		for name, bound := range map[string]time.Duration{"young": time.Hour, "old": 0} {
			b.Run(fmt.Sprintf("10000files/%dperDir/%s", perDir, name), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					n := 0
					w := newWalk(tree, chain.Walker{Visit: func(chain.Entry) error { n++; return nil }}, walkers)
					w.young = bound
					must(b, w.all(context.Background()))
				}
			})
		}
	}
}
