package source

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
)

// collect walks and returns what the last try saw, sorted.
func collect(tree *Tree, visit func(chain.Entry)) (paths []string, unreadable []string, restarts int, err error) {
	err = tree.Walk(context.Background(), chain.Walker{
		Visit: func(e chain.Entry) error {
			paths = append(paths, string(e.Path))
			if visit != nil {
				visit(e)
			}
			return nil
		},
		Unreadable: func(p chain.Path, err error) { unreadable = append(unreadable, fmt.Sprintf("%s: %v", string(p), err)) },
		Restart:    func() { paths, unreadable = nil, nil; restarts++ },
	})
	slices.Sort(paths)
	return paths, unreadable, restarts, err
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

func TestWalkStartsAgainWhenADirectoryChanges(t *testing.T) {
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
			changed := false
			got, _, restarts, err := collect(tree, func(e chain.Entry) {
				if !changed && e.Path.Dir() != "" {
					changed = true
					must(t, c.change(dir))
				}
			})
			want, _, _, wantErr := collect(tree, nil)
			if err != nil || wantErr != nil || restarts == 0 || !slices.Equal(got, want) {
				t.Errorf("got %q after %d restarts, %v; want %q after at least one, %v", got, restarts, err, want, wantErr)
			}
		})
	}
}

// Two changes within one tick of a coarse clock leave a directory's times as
// they were: then only its listing tells.
func TestYoungDirectoryIsListedAgain(t *testing.T) {
	dir := t.TempDir()
	build(t, dir, "a/x", "a/y")
	tree := openTree(t, dir)
	w := &walk{tree: tree, to: chain.Walker{Visit: func(chain.Entry) error { return nil }}}
	must(t, w.all(context.Background()))
	must(t, os.Remove(filepath.Join(dir, "a/x")))
	for i := range w.seen {
		s := &w.seen[i]
		e, err := tree.Stat(s.path)
		must(t, err)
		s.mtime, s.ctime = e.Identity.MTime, e.Identity.CTime
		if !s.young {
			t.Errorf("%s is not young", s.path)
		}
		if want := s.path != "a"; w.still(*s) != want {
			t.Errorf("still(%s): got %v, want %v", s.path, !want, want)
		}
	}
}

func TestWalkGivesUpOnATreeThatKeepsChanging(t *testing.T) {
	dir := t.TempDir()
	build(t, dir, "a/x")
	tree := openTree(t, dir)
	n := 0
	_, _, restarts, err := collect(tree, func(chain.Entry) {
		n++
		build(t, dir, fmt.Sprintf("new%d", n))
	})
	if err == nil || !strings.Contains(err.Error(), "keep changing") || restarts != maxWalks-1 {
		t.Errorf("got %v after %d restarts", err, restarts)
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

func BenchmarkWalk(b *testing.B) {
	for _, perDir := range []int{4, 100} {
		b.Run(fmt.Sprintf("10000files/%dperDir", perDir), func(b *testing.B) {
			dir := b.TempDir()
			for i := range 10000 {
				build(b, dir, fmt.Sprintf("vm%d/b%d/disk%d", i/perDir%50, i/perDir, i))
			}
			tree := openTree(b, dir)
			b.ReportAllocs()
			for b.Loop() {
				n := 0
				must(b, tree.Walk(context.Background(), chain.Walker{Visit: func(chain.Entry) error { n++; return nil }}))
			}
		})
	}
}
