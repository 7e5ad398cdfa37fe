package fs

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chainfs/chainfs/qemu"
	"golang.org/x/sys/unix"
)

// A file system that does not tell the types of names in a listing, as NFS
// does for large directories, is listed as empty.
func TestListingWithoutTypes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	img, at := filepath.Join(dir, "img"), filepath.Join(dir, "at")
	must(t, os.Mkdir(at, 0o755))
	run(t, dir, "truncate", "-s", "32M", img)
	run(t, dir, "mkfs.ext4", "-q", "-O", "^filetype", img)
	run(t, dir, "mount", "-o", "loop", img, at)
	t.Cleanup(func() { unix.Unmount(at, unix.MNT_DETACH) })
	must(t, os.MkdirAll(at+"/vm/T0", 0o755))
	must(t, os.WriteFile(at+"/vm/T0/notes", []byte("x"), 0o644))
	m := mountTree(t, nil)
	// The tree of the harness is a temporary directory: show the file system in it.
	must(t, os.Mkdir(m.tree+"/nas", 0o755))
	must(t, unix.Mount(at, m.tree+"/nas", "", unix.MS_BIND, ""))
	t.Cleanup(func() { unix.Unmount(m.tree+"/nas", unix.MNT_DETACH) })
	if got := run(t, m.dir, "ls", "nas/vm"); strings.TrimSpace(got) != "T0" {
		t.Errorf("ls nas/vm = %q, the NAS has %q", got, run(t, m.tree, "ls", "nas/vm"))
	}
}

// A file that the kernel knows is replaced by a FIFO behind the mount. Opening a
// FIFO waits for a writer; what must not be is that no signal ends the wait.
func TestFIFOInPlaceOfFile(t *testing.T) {
	m := mountTree(t, func(tree string) { must(t, os.WriteFile(tree+"/x", []byte("x"), 0o644)) })
	_, err := os.Stat(m.dir + "/x")
	must(t, err)
	must(t, os.Remove(m.tree+"/x"))
	must(t, unix.Mkfifo(m.tree+"/x", 0o644))
	cat := exec.Command("cat", m.dir+"/x")
	must(t, cat.Start())
	time.Sleep(200 * time.Millisecond)
	must(t, cat.Process.Kill())
	done := make(chan error, 1)
	go func() { done <- cat.Wait() }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		// Let it go: a writer opens the FIFO.
		if fd, err := unix.Open(m.tree+"/x", unix.O_WRONLY|unix.O_NONBLOCK, 0); err == nil {
			unix.Close(fd)
		}
		t.Error("open hangs, and SIGKILL does not end it")
	}
}

// cp over a full whose child was pushed to the NAS directly.
func TestOverwriteParentOfUnseenChild(t *testing.T) {
	m := mountTree(t, func(tree string) { makeChain(t, tree, "vm/T0/r") })
	run(t, m.tree, "mkdir", "vm/T1")
	run(t, m.tree, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "../T0/r", "-F", "qcow2", "vm/T1/r")
	before := flat(t, m.tree+"/vm/T1/r")
	other := filepath.Join(t.TempDir(), "other")
	run(t, "/", "qemu-img", "create", "-q", "-f", "qcow2", other, "16M")
	out, err := exec.Command("cp", other, m.dir+"/vm/T0/r").CombinedOutput()
	if err == nil {
		if after := flat(t, m.tree+"/vm/T1/r"); after != before {
			t.Errorf("DATA LOSS: cp over a full was let through and its child reads differently %s", out)
		}
	}
}

// What the kernel knows of a file that was replaced behind it must not be mixed
// with the new file.
func TestStatAfterRebase(t *testing.T) {
	prepare := func(tree string) { makeChain(t, tree, "vm/T0/r", "vm/T1/r", "vm/T2/r") }
	m := mountTreeWith(t, prepare, qemu.Options{ByCopy: true})
	f, err := os.Open(m.dir + "/vm/T2/r")
	must(t, err)
	defer f.Close()
	before, err := f.Stat()
	must(t, err)
	must(t, os.Remove(m.dir+"/vm/T1/r"))
	for _, at := range []string{m.dir, m.tree} {
		time.Sleep(1100 * time.Millisecond)
		now, err := os.Stat(at + "/vm/T2/r")
		must(t, err)
		old, err := f.Stat()
		must(t, err)
		t.Logf("%s: open file has size %d, was %d; the path has %d", at, old.Size(), before.Size(), now.Size())
		if old.Size() != before.Size() {
			t.Error("fstat of the open file tells the new file's size")
		}
	}
	b, err := os.ReadFile(m.dir + "/vm/T2/r")
	must(t, err)
	want, err := os.ReadFile(m.tree + "/vm/T2/r")
	must(t, err)
	if string(b) != string(want) {
		t.Error("the mount reads other bytes than the tree")
	}
}

// A write to one of several hard links, by the other name, to a name of no image.
func TestWriteByHardLink(t *testing.T) {
	m := mountTree(t, func(tree string) {
		makeChain(t, tree, "vm/T0/r", "vm/T1/r")
	})
	must(t, os.Link(m.dir+"/vm/T0/r", m.dir+"/alias"))
	wantErrno(t, os.Truncate(m.dir+"/alias", 0), unix.EBUSY)
	must(t, os.Link(m.tree+"/vm/T0/r", m.tree+"/alias2")) // behind
	wantErrno(t, os.Truncate(m.dir+"/alias2", 0), unix.EBUSY)
	must(t, os.Symlink("vm/T0/r", m.dir+"/sym"))
	wantErrno(t, os.Truncate(m.dir+"/sym", 0), unix.EBUSY)
}

// The mode and owner of new files, as the tree itself would have them.
func TestCreateAsUser(t *testing.T) {
	m := mountTree(t, func(tree string) { must(t, os.Chmod(tree, 0o777)) })
	must(t, os.Chmod(m.tree, 0o777))
	must(t, os.Chmod(filepath.Dir(m.dir), 0o755))
	must(t, os.Chmod(filepath.Dir(filepath.Dir(m.dir)), 0o755))
	for _, dir := range []string{m.dir, m.tree} {
		cmd := exec.Command("setpriv", "--reuid=1234", "--regid=55", "--clear-groups", "sh", "-ec",
			`umask 027; cd "$0"; mkdir d; touch d/f; ln -s f d/s; mkfifo d/p; mkdir -m 2775 sg; touch sg/f; stat -c '%n %a %u %g' d d/f d/s d/p sg sg/f; rm -r d sg`, dir)
		out, err := cmd.CombinedOutput()
		t.Logf("%s: %v\n%s", dir, err, out)
	}
}
