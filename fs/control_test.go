package fs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// TestControlDir: it is found by name alone, is not the tree's own, cannot be
// changed, and its file is one text from open to close.
func TestControlDir(t *testing.T) {
	var calls atomic.Int64
	m := mountWith(t, func(tree string) { must(t, os.WriteFile(tree+"/f", []byte("x"), 0o644)) }, func(o *Options) {
		o.Status = func() ([]byte, error) {
			return []byte(strings.Repeat(fmt.Sprintf("%09d\n", calls.Add(1)), 1000)), nil
		}
	})
	if got := run(t, m.dir, "ls", "-A"); got != "f\n" {
		t.Errorf("ls -A = %q", got)
	}
	if got := run(t, m.dir, "ls", "-A", ".chainfs"); got != "status.json\n" {
		t.Errorf("ls -A .chainfs = %q", got)
	}
	if got := run(t, m.dir, "stat", "-c", "%a %s %F", ".chainfs/status.json", ".chainfs"); got != "400 10000 regular file\n555 0 directory\n" {
		t.Errorf("stat says %q", got)
	}
	f, err := os.Open(m.dir + "/.chainfs/status.json")
	must(t, err)
	defer f.Close()
	first := make([]byte, 10)
	_, err = io.ReadFull(f, first)
	must(t, err)
	_, err = os.Stat(m.dir + "/.chainfs/status.json") // makes another text
	must(t, err)
	rest, err := io.ReadAll(f)
	must(t, err)
	if all := string(first) + string(rest); all != strings.Repeat(string(first), 1000) {
		t.Errorf("one open has read %d bytes of more than one text", len(all))
	}
	if again, err := os.ReadFile(m.dir + "/.chainfs/status.json"); err != nil || string(again[:10]) <= string(first) {
		t.Errorf("the next open reads %.10q, %v; the one before %q", again, err, first)
	}
	unchangedAt(t, m.dir+"/.chainfs", "status.json")
	if _, err := os.Stat(m.dir + "/.chainfs/tree.json"); !os.IsNotExist(err) {
		t.Errorf("the tree's own file is visible: %v", err)
	}
	if st, err := os.Stat(m.tree + "/.chainfs/tree.json"); err != nil || !st.Mode().IsRegular() {
		t.Errorf("the tree's own file: %v", err)
	}
}

// TestHiddenNames: what has a hidden name, or lies below one, can be read and
// not be changed.
func TestHiddenNames(t *testing.T) {
	m := mountTree(t, func(tree string) {
		must(t, os.MkdirAll(tree+"/vm/.chainfs-7-T1/sub", 0o755))
		for _, name := range []string{"vm/.chainfs-7-T1/sub/r", "vm/.chainfs-7-T1/r", "vm/.chainfs-8-r"} {
			must(t, os.WriteFile(tree+"/"+name, []byte("x"), 0o644))
		}
	})
	for _, name := range []string{"vm/.chainfs-7-T1/sub/r", "vm/.chainfs-7-T1/r", "vm/.chainfs-8-r"} {
		if text, err := os.ReadFile(m.dir + "/" + name); err != nil || string(text) != "x" {
			t.Errorf("read %s: %q, %v", name, text, err)
		}
	}
	if got := run(t, m.dir, "ls", "-A", "vm"); got != "" {
		t.Errorf("ls -A vm = %q", got)
	}
	unchangedAt(t, m.dir+"/vm/.chainfs-7-T1", "r")
	unchangedAt(t, m.dir+"/vm/.chainfs-7-T1/sub", "r")
	unchangedAt(t, m.dir+"/vm", ".chainfs-8-r")
	wantErrno(t, os.Mkdir(m.dir+"/vm/.chainfs-9-x", 0o755), unix.EPERM)
	wantErrno(t, unix.Rmdir(m.dir+"/vm/.chainfs-7-T1/sub"), unix.EPERM)
}

// unchangedAt wants EPERM for every change of the file name in dir, and for new
// names in dir where that is hidden itself.
func unchangedAt(t *testing.T, dir, name string) {
	t.Helper()
	file, other := dir+"/"+name, t.TempDir()+"/other"
	must(t, os.WriteFile(other, nil, 0o644))
	acts := map[string]error{
		"unlink":   unix.Unlink(file),
		"truncate": unix.Truncate(file, 0),
		"chmod":    unix.Chmod(file, 0o777),
		"utimes":   unix.Utimes(file, make([]unix.Timeval, 2)),
		"xattr":    unix.Setxattr(file, "user.x", []byte("y"), 0),
		"unxattr":  unix.Removexattr(file, "user.x"),
		"rename":   unix.Rename(file, dir+"/elsewhere"),
		"link":     unix.Link(file, dir+"/elsewhere"),
	}
	_, acts["write"] = os.OpenFile(file, os.O_WRONLY, 0)
	_, acts["append"] = os.OpenFile(file, os.O_RDWR|os.O_APPEND, 0)
	if !strings.HasPrefix(name, ".chainfs-") {
		acts["mkdir"] = os.Mkdir(dir+"/new", 0o755)
		acts["symlink"] = os.Symlink("x", dir+"/new")
		acts["mknod"] = unix.Mknod(dir+"/new", unix.S_IFIFO|0o644, 0)
		_, acts["create"] = os.Create(dir + "/new")
		acts["rmdir"] = unix.Rmdir(dir)
		acts["rename dir"] = unix.Rename(dir, dir+"2")
		acts["chmod dir"] = unix.Chmod(dir, 0o700)
	}
	for act, err := range acts {
		if !errors.Is(err, unix.EPERM) {
			t.Errorf("%s of %s: got %v, want EPERM", act, file, err)
		}
	}
	_, err := os.Lstat(file)
	must(t, err)
}
