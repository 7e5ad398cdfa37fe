package qemu

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chainfs/chainfs/chain"
	"golang.org/x/sys/unix"
)

// newLoopTree is a tree on a file system of its own. CHAINFS_TEST_LOOP names the
// loop device to use where not every free one may be taken.
func newLoopTree(t *testing.T, size int64, mkfs ...string) *tree {
	needRoot(t)
	if _, err := exec.LookPath(mkfs[0]); err != nil {
		t.Skip("needs a file system: ", err)
	}
	tr := newTree(t)
	image := filepath.Join(t.TempDir(), "image")
	run := func(args ...string) string {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, size); err != nil {
		t.Fatal(err)
	}
	run(append(mkfs, image)...)
	loop := os.Getenv("CHAINFS_TEST_LOOP")
	if loop == "" {
		loop = run("losetup", "-f", "--show", image)
	} else {
		run("losetup", loop, image)
	}
	t.Cleanup(func() { run("losetup", "-d", loop) })
	tr.loop = loop
	run("mount", loop, tr.dir)
	t.Cleanup(func() { run("umount", tr.dir) })
	return tr
}

func newXFS(t *testing.T) *tree { return newLoopTree(t, 300<<20, "mkfs.xfs", "-q", "-m", "reflink=1") }

func newExt4(t *testing.T, size int64) *tree {
	return newLoopTree(t, size, "mkfs.ext4", "-q", "-m", "0")
}

// fill leaves about rest bytes free.
func fill(t *testing.T, tr *tree, rest int64) {
	var fs unix.Statfs_t
	if err := unix.Statfs(tr.dir, &fs); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(tr.host("filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(fs.Bavail)*fs.Bsize-rest); err != nil {
		t.Fatal(err)
	}
}

// fillUp leaves nothing.
func fillUp(t *testing.T, tr *tree) {
	f, err := os.OpenFile(tr.host("filler"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
}

// heavy gives 2/b so many MiB of its own, and 1/a as many elsewhere.
func heavy(tr *tree, mib string) {
	tr.qemu("qemu-io", "-f", "qcow2", "-c", "write -P 7 32M "+mib, "1/a")
	tr.qemu("qemu-io", "-f", "qcow2", "-c", "write -P 8 0 "+mib, "2/b")
}

// With shared extents no copy of the child is needed, and none is made; what a
// parent has is shared as well when the native engine takes it.
func TestRebaseOnXFS(t *testing.T) {
	needQemu(t)
	for _, c := range []struct {
		way  way
		free int64
	}{{ways[0], 10 << 20}, {ways[1], 32 << 20}} {
		t.Run(string(c.way.name), func(t *testing.T) {
			tr := newXFS(t)
			tr.chain()
			heavy(tr, "20M")
			before := tr.guest("2/b")
			job := tr.job()
			job.Bytes = 22 << 20
			fill(t, tr, c.free)
			if err := NewRebaser(tr, c.way.opts).Rebase(t.Context(), job, nil); err != nil {
				t.Fatal(err)
			}
			checkRebased(t, tr, before)
		})
	}
}

func newSmallExt4(t *testing.T) *tree { return newExt4(t, 128<<20) }

// A full disk that is seen beforehand: nothing is begun.
func TestRebaseWithoutSpace(t *testing.T) {
	needQemu(t)
	for _, c := range []struct {
		name  string
		opts  Options
		make  func(t *testing.T) *tree
		bytes int64 // what the plan says; less than the truth makes qemu-img run into it
		free  int64
		text  string
	}{
		{"ext4, in place", Options{}, newSmallExt4, 0, 10 << 20, "needed in 2; make room"},
		{"xfs, in place", Options{}, newXFS, 0, 100 << 10, "needed in 2; make room"},
		{"ext4, foreseen", Options{ByCopy: true}, newSmallExt4, 22 << 20, 30 << 20, "needed in 2; make room"},
		{"ext4, not foreseen", Options{ByCopy: true}, newSmallExt4, 0, 30 << 20, "qemu-img rebase"},
		{"xfs, foreseen", Options{ByCopy: true}, newXFS, 22 << 20, 10 << 20, "needed in 2; make room"},
		{"xfs, not foreseen", Options{ByCopy: true}, newXFS, 0, 10 << 20, "qemu-img rebase"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr := c.make(t)
			tr.chain()
			heavy(tr, "20M")
			job := tr.job()
			job.Bytes = c.bytes
			fill(t, tr, c.free)
			before, guest := state(t, tr), tr.guest("2/b")
			err := NewRebaser(tr, c.opts).Rebase(t.Context(), job, nil)
			checkRefused(t, err, unix.ENOSPC, c.text)
			if state(t, tr) != before || tr.guest("2/b") != guest {
				t.Error("the child was changed")
			}
		})
	}
}

// A disk that gets full on the way: what was stored is given back.
func TestRebaseInPlaceRunsOutOfSpace(t *testing.T) {
	needQemu(t)
	for _, c := range []struct {
		name string
		make func(t *testing.T) *tree
		args []string
	}{
		{"ext4", newSmallExt4, nil},
		// Clusters that are smaller than the file system's blocks cannot be shared.
		{"xfs, copying", newXFS, []string{"-o", "cluster_size=1k"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr := c.make(t)
			tr.create("0/full", "")
			tr.create("1/a", "../0/full", c.args...)
			tr.create("2/b", "../1/a", c.args...)
			heavy(tr, "20M")
			job, before := tr.job(), tr.guest("2/b")
			err := NewRebaser(tr, Options{Step: func(l string) {
				if l == "ABSORB:STORE" {
					fill(t, tr, 1<<20)
					fillUp(t, tr)
				}
			}}).Rebase(t.Context(), job, nil)
			checkRefused(t, err, unix.ENOSPC, "rebase 2/b onto 0/full")
			checkGivenBack(t, tr, job.Identity, before)
			if err := os.Remove(tr.host("filler")); err != nil {
				t.Fatal(err)
			}
			checkRecovers(t, tr, ways[0], job.Identity, before)
			checkRebased(t, tr, before)
		})
	}
}

// checkGivenBack: a rebase in place of 2/b came to nothing and left nothing.
func checkGivenBack(t *testing.T, tr *tree, was chain.Identity, before string) {
	t.Helper()
	if h := tr.header("2/b"); h.Backing != "../1/a" {
		t.Errorf("got header %+v", h)
	}
	if e, err := tr.Stat("2/b"); err != nil || e.Identity.Size != was.Size || e.Identity.Inode != was.Inode {
		t.Errorf("got %+v, %v, was %+v", e.Identity, err, was)
	}
	if got := tr.guest("2/b"); got != before {
		t.Errorf("the guest reads %s, read %s", got, before)
	}
	tr.check("2/b")
}

func TestCopySparseKeepsHoles(t *testing.T) {
	tr := newTree(t)
	from, err := os.Create(tr.host("from"))
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	for _, off := range []int64{3 << 20, 40<<20 + 5} {
		if _, err := from.WriteAt([]byte("data"), off); err != nil {
			t.Fatal(err)
		}
	}
	if err := from.Truncate(60 << 20); err != nil {
		t.Fatal(err)
	}
	to, err := os.Create(tr.host("to"))
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	if err := copySparse(t.Context(), to, from, 60<<20); err != nil {
		t.Fatal(err)
	}
	a, _ := os.ReadFile(tr.host("from"))
	b, _ := os.ReadFile(tr.host("to"))
	if string(a) != string(b) {
		t.Error("the copy differs")
	}
	if st, err := stat(to); err != nil || st.Blocks*512 > 64<<10 {
		t.Errorf("the copy takes %d bytes (%v)", st.Blocks*512, err)
	}
}

func TestRebaseKeepsAttributes(t *testing.T) {
	needQemu(t)
	needRoot(t)
	eachWay(t, testAttributes)
}

func testAttributes(t *testing.T, way way) {
	tr := newTree(t)
	tr.chain()
	name := tr.host("2/b")
	// user::rw- user:1234:r-- group::r-- mask::r-- other::---
	acl := "\x02\x00\x00\x00" +
		"\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\xd2\x04\x00\x00" +
		"\x04\x00\x04\x00\xff\xff\xff\xff" + "\x10\x00\x04\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"
	want := map[string]string{"user.note": "kept", "user.empty": "", "trusted.t": "x", "system.posix_acl_access": acl}
	if err := os.Chown(name, 1001, 1002); err != nil {
		t.Fatal(err)
	}
	if err := unix.Chmod(name, 0o640); err != nil {
		t.Fatal(err)
	}
	for attr, value := range want {
		if err := unix.Setxattr(name, attr, []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	// What the directory gives to new files the child does not have.
	if err := unix.Setxattr(tr.host("2"), "system.posix_acl_default", []byte(acl), 0); err != nil {
		t.Fatal(err)
	}
	times := []unix.Timespec{{Sec: 1700000001, Nsec: 123456789}, {Sec: 1700000002, Nsec: 987654321}}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, name, times, 0); err != nil {
		t.Fatal(err)
	}
	// The child is read on the way, and that is not to be seen.
	var before, after unix.Stat_t
	if err := unix.Stat(name, &before); err != nil {
		t.Fatal(err)
	}
	job := tr.job() // reads the header, as a test must
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, name, times, 0); err != nil {
		t.Fatal(err)
	}
	if e, err := tr.Stat("2/b"); err != nil {
		t.Fatal(err)
	} else {
		job.Identity = e.Identity
	}
	if err := NewRebaser(tr, way.opts).Rebase(t.Context(), job, nil); err != nil {
		t.Fatal(err)
	}
	if err := unix.Stat(name, &after); err != nil {
		t.Fatal(err)
	}
	if after.Mode != before.Mode || after.Uid != 1001 || after.Gid != 1002 || after.Atim != times[0] {
		t.Errorf("got %+v, had %+v", after, before)
	}
	if moved := time.Duration(after.Mtim.Nano() - before.Mtim.Nano()); moved != mtimeStep {
		t.Errorf("the time moved by %v", moved)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	names, err := xattrNames(f)
	if err != nil || len(names) != len(want) {
		t.Errorf("got attributes %q, %v", names, err)
	}
	for attr, value := range want {
		if got, err := xattr(f, attr); err != nil || string(got) != value {
			t.Errorf("%s: got %q, %v, want %q", attr, got, err, value)
		}
	}
}

// The time never moves into the future, where "find -newer" would meet it for ever.
func TestRebaseOfNewFile(t *testing.T) {
	needQemu(t)
	eachWay(t, func(t *testing.T, way way) {
		tr := newTree(t)
		tr.chain()
		job := tr.job()
		if err := NewRebaser(tr, way.opts).Rebase(t.Context(), job, nil); err != nil {
			t.Fatal(err)
		}
		e, err := tr.Stat("2/b")
		if err != nil {
			t.Fatal(err)
		}
		if at := time.Unix(0, e.Identity.MTime); at.After(time.Now()) || e.Identity.MTime <= job.Identity.MTime {
			t.Errorf("got %v, was %v", at, time.Unix(0, job.Identity.MTime))
		}
	})
}

// A child without an access list gets none from its directory.
func TestRebaseDropsInheritedList(t *testing.T) {
	needQemu(t)
	tr := newTree(t)
	tr.chain()
	acl := "\x02\x00\x00\x00" +
		"\x01\x00\x07\x00\xff\xff\xff\xff" + "\x02\x00\x07\x00\xd2\x04\x00\x00" +
		"\x04\x00\x07\x00\xff\xff\xff\xff" + "\x10\x00\x07\x00\xff\xff\xff\xff" + "\x20\x00\x07\x00\xff\xff\xff\xff"
	if err := unix.Setxattr(tr.host("2"), "system.posix_acl_default", []byte(acl), 0); err != nil {
		t.Skip("needs access lists: ", err)
	}
	if err := NewRebaser(tr, Options{ByCopy: true}).Rebase(t.Context(), tr.job(), nil); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(tr.host("2/b"))
	if err != nil || fi.Mode() != 0o644 {
		t.Errorf("got mode %v, %v", fi.Mode(), err)
	}
	f, err := os.Open(tr.host("2/b"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if names, err := xattrNames(f); err != nil || len(names) != 0 {
		t.Errorf("got attributes %q, %v", names, err)
	}
}
