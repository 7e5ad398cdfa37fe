package source

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/e2e/cutfs"
)

func TestLink(t *testing.T) {
	dir := t.TempDir()
	build(t, dir, "a/x", "a/taken", "b/", "to-x -> a/x", "up -> ..")
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	tree := openTree(t, dir)
	must(t, tree.Link("a/x", "b/.chainfs-1-x"))
	x, err := tree.Stat("a/x")
	must(t, err)
	if y, err := tree.Stat("b/.chainfs-1-x"); err != nil || y.Identity.Inode != x.Identity.Inode {
		t.Errorf("got %+v, %v, want another name of %+v", y, err, x)
	}
	for _, c := range []struct {
		from, to chain.Path
		want     error
	}{
		{"a/x", "a/taken", fs.ErrExist},
		{"a/gone", "a/new", fs.ErrNotExist},
		{"a/x", "gone/new", fs.ErrNotExist},
		{"to-x", "new", errNotRegular},
		{"fifo", "new", errNotRegular},
		{"a", "new", errNotRegular},
		{"", "new", errNotRegular},
		{"a/x", "up/new", unix.ELOOP},
		{"up/x", "new", unix.ELOOP},
		{"a/x", "..", unix.EXDEV},
	} {
		err := tree.Link(c.from, c.to)
		if !errors.Is(err, c.want) || errors.Is(err, chain.ErrNoLinks) || !strings.Contains(err.Error(), string(c.to)) {
			t.Errorf("%s to %s: got %v, want %v", c.from, c.to, err, c.want)
		}
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 6 { // with .chainfs
		t.Errorf("got %v, %v", names, err)
	}
}

// A file that can have no second name: here one that must not be changed at all.
func TestLinkWhereThereIsNone(t *testing.T) {
	disk := cutfs.New(t, 32)
	build(t, disk.Dir, "x")
	f, err := os.Open(filepath.Join(disk.Dir, "x"))
	must(t, err)
	defer f.Close()
	tree := openTree(t, disk.Dir)
	const immutable = 0x10 // FS_IMMUTABLE_FL
	must(t, unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, immutable))
	err = tree.Link("x", "y")
	must(t, unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, 0))
	if !errors.Is(err, chain.ErrNoLinks) || !errors.Is(err, unix.EPERM) {
		t.Errorf("got %v", err)
	}
}

func TestReadDir(t *testing.T) {
	dir := t.TempDir()
	build(t, dir, "d/b", "d/.chainfs-3-a", "d/a/inner", "d/link -> b", "d/.chainfs/")
	tree := openTree(t, dir)
	for p, want := range map[chain.Path]string{
		"":    "d:2",
		"d":   "d/.chainfs:2 d/.chainfs-3-a:1 d/a:2 d/b:1 d/link:3",
		"d/a": "d/a/inner:1",
	} {
		entries, err := tree.ReadDir(p)
		must(t, err)
		var got []string
		for _, e := range entries {
			got = append(got, string(e.Path)+":"+string('0'+rune(e.Type)))
			if stat, err := tree.Stat(e.Path); err != nil || stat != e {
				t.Errorf("%s: got %+v, stat says %+v, %v", e.Path, e, stat, err)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: got %s, want %s", p, got, want)
		}
	}
	for _, p := range []chain.Path{"d/b", "d/link", "gone", ".."} {
		if got, err := tree.ReadDir(p); err == nil {
			t.Errorf("%s: got %v", p, got)
		}
	}
}

// user::rwx user:1234:r-x group::r-x mask::r-x other::---
const someACL = "\x02\x00\x00\x00" +
	"\x01\x00\x07\x00\xff\xff\xff\xff" + "\x02\x00\x05\x00\xd2\x04\x00\x00" +
	"\x04\x00\x05\x00\xff\xff\xff\xff" + "\x10\x00\x05\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"

func TestMkdirLike(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to give files away")
	}
	dir := t.TempDir()
	build(t, dir, "plain/", "rich/", "d/")
	rich := filepath.Join(dir, "rich")
	must(t, os.Chown(rich, 1001, 1002))
	attrs := map[string]string{"user.note": "kept", "trusted.t": "x", "system.posix_acl_access": someACL, "system.posix_acl_default": someACL}
	for attr, value := range attrs {
		if err := unix.Setxattr(rich, attr, []byte(value), 0); err != nil {
			t.Skip("needs extended attributes: ", err)
		}
	}
	must(t, unix.Chmod(rich, 0o3750))
	// What the parent hands down the model does not have.
	must(t, unix.Setxattr(filepath.Join(dir, "d"), "system.posix_acl_default", []byte(someACL), 0))
	must(t, unix.Chmod(filepath.Join(dir, "d"), 0o2777))
	for i, model := range []string{"rich", "plain"} {
		times := []unix.Timespec{{Sec: 1700000001, Nsec: int64(i)}, {Sec: 1700000002, Nsec: 987654321}}
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(dir, model), times, 0))
	}
	tree := openTree(t, dir)
	for _, model := range []chain.Path{"rich", "plain"} {
		for _, p := range []chain.Path{"of-" + model, "d/of-" + model} {
			must(t, tree.MkdirLike(p, model))
			checkLike(t, filepath.Join(dir, string(p)), filepath.Join(dir, string(model)))
		}
	}
	if err := tree.MkdirLike("of-rich", "plain"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a name that is taken: got %v", err)
	}
	checkLike(t, filepath.Join(dir, "of-rich"), rich)
	for _, like := range []chain.Path{"gone", "d/gone"} {
		if err := tree.MkdirLike("new", like); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("like %s: got %v", like, err)
		}
	}
	if _, err := tree.Stat("new"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it was made: %v", err)
	}
}

func checkLike(t *testing.T, got, want string) {
	t.Helper()
	var is, was unix.Stat_t
	must(t, unix.Stat(got, &is))
	must(t, unix.Stat(want, &was))
	if is.Mode != was.Mode || is.Uid != was.Uid || is.Gid != was.Gid || is.Mtim != was.Mtim || is.Atim != was.Atim {
		t.Errorf("%s is %+v, want as %+v", got, is, was)
	}
	var all [2]string
	for i, name := range []string{got, want} {
		f, err := os.Open(name)
		must(t, err)
		defer f.Close()
		attrs, err := xattrNames(int(f.Fd()))
		must(t, err)
		for _, attr := range attrs {
			value, err := xattr(int(f.Fd()), attr)
			must(t, err)
			all[i] += attr + "=" + string(value) + "\n"
		}
	}
	if len(all[0]) != len(all[1]) {
		t.Errorf("%s has %q, want %q", got, all[0], all[1])
	}
}

// An error behind the making leaves nothing.
func TestMkdirLikeUndoes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	build(t, dir, "model/")
	// The parent's control directory is in another tree: alive() fails once it is gone.
	tree := openTree(t, dir)
	must(t, tree.owner.file.Close())
	if err := tree.MkdirLike("new", "model"); err == nil {
		t.Error("it was made")
	}
	if _, err := os.Lstat(filepath.Join(dir, "new")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is there: %v", err)
	}
	tree.owner = nil
}

func TestMkdirLikeIsDurable(t *testing.T) {
	disk := cutfs.New(t, 32)
	build(t, disk.Dir, "model/", "d/")
	tree := openTree(t, disk.Dir)
	must(t, os.Chmod(filepath.Join(disk.Dir, "model"), 0o750))
	must(t, tree.MkdirLike("d/new", "model"))
	must(t, tree.Close())
	disk.Cut()
	disk.Restore()
	checkLike(t, filepath.Join(disk.Dir, "d/new"), filepath.Join(disk.Dir, "model"))
}
