package source

import (
	"bufio"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/chainfs/chainfs/chain"
)

// TestMain lets tests run this binary again as another process.
func TestMain(m *testing.M) {
	switch os.Getenv("SOURCE_TEST_CHILD") {
	case "own":
		ownUntilEOF(os.Getenv("SOURCE_TEST_DIR"))
	case "walk":
		walkAsChild(os.Getenv("SOURCE_TEST_DIR"))
	default:
		os.Exit(m.Run())
	}
}

// child is this test binary, playing the given part on dir.
func child(t *testing.T, part, dir string) *exec.Cmd {
	exe, err := os.Executable()
	must(t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), "SOURCE_TEST_CHILD="+part, "SOURCE_TEST_DIR="+dir)
	cmd.Stderr = os.Stderr
	return cmd
}

// startOwner runs a process that owns the tree until stop.
func startOwner(t *testing.T, dir string) (stop func()) {
	cmd := child(t, "own", dir)
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "owned\n" {
		t.Fatalf("child said %q, %v", line, err)
	}
	return func() { in.Close(); must(t, cmd.Wait()) }
}

func ownUntilEOF(dir string) {
	tree, err := Open(dir, Options{Mountpoint: "/mnt/other"})
	if err != nil {
		println(err.Error())
		os.Exit(1)
	}
	os.Stdout.WriteString("owned\n")
	io.Copy(io.Discard, os.Stdin)
	tree.Close()
	os.Exit(0)
}

func openTree(t testing.TB, dir string) *Tree {
	t.Helper()
	tree, err := Open(dir, Options{})
	must(t, err)
	t.Cleanup(func() { tree.Close() })
	return tree
}

// build makes files below dir: a name ending in / is a directory, "a -> b" a
// symbolic link, anything else a file that holds its own name.
func build(t testing.TB, dir string, names ...string) {
	t.Helper()
	for _, name := range names {
		link, target, isLink := cut(name)
		full := filepath.Join(dir, link)
		must(t, os.MkdirAll(filepath.Dir(full), 0o755))
		switch {
		case isLink:
			must(t, os.Symlink(target, full))
		case name[len(name)-1] == '/':
			must(t, os.MkdirAll(full, 0o755))
		default:
			must(t, os.WriteFile(full, []byte(name), 0o644))
		}
	}
}

func cut(name string) (link, target string, ok bool) {
	for i := 0; i+4 <= len(name); i++ {
		if name[i:i+4] == " -> " {
			return name[:i], name[i+4:], true
		}
	}
	return name, "", false
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestHostileLinksAreNotFollowed(t *testing.T) {
	dir := t.TempDir()
	build(t, dir, "d/file", "up -> ../../../../../../etc", "abs -> /etc", "in -> d", "loop -> loop", "magic -> /proc/self/root/etc")
	tree := openTree(t, dir)
	for _, link := range []chain.Path{"up", "abs", "in", "loop", "magic"} {
		for _, p := range []chain.Path{link, link + "/passwd", link + "/file"} {
			if f, err := tree.Open(p); err == nil {
				f.Close()
				t.Errorf("Open(%s) succeeded", p)
			}
			if p == link {
				continue
			}
			if _, err := tree.Stat(p); err == nil || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Stat(%s): got %v, want an error that does not say it is missing", p, err)
			}
			if err := tree.Unlink(p); err == nil {
				t.Errorf("Unlink(%s) succeeded", p)
			}
		}
		if e, err := tree.Stat(link); err != nil || e.Type != chain.Symlink {
			t.Errorf("Stat(%s): got %v, %v, want a symbolic link", link, e.Type, err)
		}
		if _, err := tree.OpenDir(link); err == nil {
			t.Errorf("OpenDir(%s) succeeded", link)
		}
	}
	for _, p := range []chain.Path{"..", "../x", "d/../../x"} {
		if _, err := tree.Stat(p); err == nil {
			t.Errorf("Stat(%s) left the tree", p)
		}
	}
}

// What is hidden is nothing that its user still has.
func TestOnlyHidden(t *testing.T) {
	dir := t.TempDir()
	build(t, dir, "a/.chainfs-7-r", "a/.chainfs-8-T1/r", "b/.chainfs-7-r", "b/x", "empty/")
	tree := openTree(t, dir)
	for name, want := range map[chain.Path]bool{"a": true, "b": false, "empty": true} {
		if got, err := tree.OnlyHidden(name); err != nil || got != want {
			t.Errorf("OnlyHidden(%s) = %v, %v, want %v", name, got, err, want)
		}
	}
	if _, err := tree.OnlyHidden("gone"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("OnlyHidden of nothing: %v", err)
	}
	dirs, err := tree.Directories(t.Context(), []chain.Path{"a", "b"})
	if err != nil || len(dirs) != 2 {
		t.Errorf("Directories = %v, %v", dirs, err)
	}
}
