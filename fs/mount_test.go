package fs

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/fs/source"
	"github.com/chainfs/chainfs/qemu"
	"github.com/chainfs/chainfs/store"
)

// mounted is a mount in this process over a temporary tree.
type mounted struct {
	t     *testing.T
	tree  string // the tree's directory
	dir   string // the mountpoint
	chain *chain.Tree
	log   *logText
	hook  atomic.Pointer[hook]
}

// hook stops the rebaser at a step: it tells the label and waits for the gate.
type hook struct {
	labels chan string
	gate   chan struct{}
}

// logText is a log that can be read while it is written.
type logText struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logText) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// mountTree mounts a tree that prepare fills first. Everything is undone at the
// end of the test, whatever happened in it.
func mountTree(t *testing.T, prepare func(tree string)) *mounted {
	t.Helper()
	return mountTreeWith(t, prepare, qemu.Options{})
}

// mountWith is mountTree with options of the mount.
func mountWith(t *testing.T, prepare func(tree string), change func(*Options)) *mounted {
	t.Helper()
	return mountTreeWith(t, prepare, qemu.Options{}, change)
}

// mountTreeWith is mountTree with options of the rebaser.
func mountTreeWith(t *testing.T, prepare func(tree string), opts qemu.Options, change ...func(*Options)) *mounted {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	m := &mounted{t: t, tree: t.TempDir(), dir: t.TempDir(), log: &logText{}}
	if prepare != nil {
		prepare(m.tree)
	}
	src, err := source.Open(m.tree, source.Options{Mountpoint: m.dir})
	must(t, err)
	t.Cleanup(func() { src.Close() })
	st, err := store.OpenInMemory(store.Options{TreeID: src.ID()})
	must(t, err)
	t.Cleanup(func() { st.Close() })
	opts.Mountpoint, opts.Source, opts.Step = m.dir, m.tree, m.step
	m.chain, err = chain.Open(context.Background(), chain.Config{
		Files: src, Inspector: qemu.Inspector{}, Index: st, Journal: st,
		Rebaser:  qemu.NewRebaser(src, opts),
		Watchers: []chain.Watcher{qemu.NewLocks(src)},
		Log:      slog.New(slog.NewTextHandler(m.log, nil)),
	})
	must(t, err)
	options := Options{
		Source: src, Tree: m.chain, Mountpoint: m.dir, TreeID: src.ID(), FsName: m.tree,
		AllowOther: true, Log: slog.New(slog.NewTextHandler(m.log, nil)),
	}
	for _, f := range change {
		f(&options)
	}
	server, err := Mount(options)
	must(t, err)
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			unix.Unmount(m.dir, unix.MNT_DETACH)
			t.Errorf("the mount was busy at the end: %v", err)
		}
		server.Wait()
	})
	return m
}

func (m *mounted) step(label string) {
	if h := m.hook.Load(); h != nil {
		h.labels <- label
		<-h.gate
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// makeChain makes full <- a <- b with a cluster of data of its own in each.
func makeChain(t *testing.T, tree string, names ...string) {
	t.Helper()
	for i, name := range names {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(tree, name)), 0o755))
		if i == 0 {
			run(t, tree, "qemu-img", "create", "-q", "-f", "qcow2", "./"+name, "16M")
		} else {
			back, err := filepath.Rel(filepath.Dir(name), names[i-1])
			must(t, err)
			run(t, tree, "qemu-img", "create", "-q", "-f", "qcow2", "-b", back, "-F", "qcow2", "./"+name)
		}
		run(t, tree, "qemu-io", "-f", "qcow2", "-c", "write -q -P "+string(rune('1'+i))+" "+string(rune('0'+i))+"M 1M", "./"+name)
	}
}

func flat(t *testing.T, file string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "raw")
	run(t, "/", "qemu-img", "convert", "-f", "qcow2", "-O", "raw", file, out)
	return run(t, "/", "sha256sum", out)[:64]
}

func wantErrno(t *testing.T, err error, want syscall.Errno) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
}

func TestUnlinkMiddle(t *testing.T) {
	m := mountTree(t, func(tree string) { makeChain(t, tree, "vm/T0/r", "vm/T1/r", "vm/T2/r") })
	before := flat(t, m.tree+"/vm/T2/r")
	must(t, os.Remove(m.dir+"/vm/T1/r"))
	if _, err := os.Stat(m.tree + "/vm/T1/r"); !os.IsNotExist(err) {
		t.Errorf("the file is still in the tree: %v", err)
	}
	for _, at := range []string{m.tree, m.dir} {
		if got := flat(t, at+"/vm/T2/r"); got != before {
			t.Errorf("the child reads differently in %s", at)
		}
	}
	if got := run(t, m.dir, "getfattr", "--only-values", "-n", "user.chainfs.parent", "vm/T2/r"); got != "vm/T0/r" {
		t.Errorf("the child's parent is %q", got)
	}
}

func TestUnlinkFullIsRefused(t *testing.T) {
	m := mountTree(t, func(tree string) {
		makeChain(t, tree, "vm/T0/r", "vm/T1/r")
		must(t, os.WriteFile(tree+"/vm/T0/vm.xml", []byte("<domain/>"), 0o644))
	})
	wantErrno(t, unix.Unlink(m.dir+"/vm/T0/r"), unix.EBUSY)
	wantErrno(t, unix.Unlink(m.dir+"/vm/T0/vm.xml"), unix.EBUSY)
	why := run(t, m.dir, "getfattr", "--only-values", "-n", "user.chainfs.why", "vm/T0/r")
	if !strings.Contains(why, "vm/T1/r depends") {
		t.Errorf("why = %q", why)
	}
	if !strings.Contains(m.log.String(), "vm/T1/r depends") {
		t.Errorf("the log does not say why:\n%s", m.log)
	}
	wantErrno(t, os.WriteFile(m.dir+"/vm/T0/r", nil, 0o644), unix.EBUSY)
	wantErrno(t, os.Truncate(m.dir+"/vm/T0/r", 0), unix.EBUSY)
	must(t, os.WriteFile(m.dir+"/x", []byte("x"), 0o644))
	wantErrno(t, os.Rename(m.dir+"/x", m.dir+"/vm/T0/r"), unix.EBUSY)
	wantErrno(t, os.Rename(m.dir+"/vm/T0", m.dir+"/vm/T9"), unix.EBUSY)
	must(t, os.Rename(m.dir+"/vm", m.dir+"/vm2"))
	run(t, m.dir, "rm", "-r", "vm2/T1")
	run(t, m.dir, "rm", "-r", "vm2/T0")
}

func TestOpenForWritingIsInUse(t *testing.T) {
	m := mountTree(t, func(tree string) { makeChain(t, tree, "f", "a", "b") })
	tail, err := os.OpenFile(m.dir+"/b", os.O_RDWR, 0)
	must(t, err)
	wantErrno(t, unix.Unlink(m.dir+"/b"), unix.EBUSY)
	wantErrno(t, unix.Unlink(m.dir+"/a"), unix.EBUSY)
	must(t, tail.Close())
	retryBusy(t, func() error { return unix.Unlink(m.dir + "/a") })
	must(t, unix.Unlink(m.dir+"/b"))
}

// retryBusy waits for the release of a closed file, which the kernel sends
// after close has returned.
func retryBusy(t *testing.T, f func() error) {
	t.Helper()
	for range 200 {
		err := f()
		if err == nil {
			return
		}
		wantErrno(t, err, unix.EBUSY)
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("it stays busy")
}

func TestListingIsNewestFirst(t *testing.T) {
	m := mountTree(t, func(tree string) {
		makeChain(t, tree, "vm/T0/r", "vm/T1/r", "vm/T2/r")
		must(t, os.WriteFile(tree+"/vm/T0/vm.xml", nil, 0o644))
		must(t, os.WriteFile(tree+"/.chainfs-scratch-1-r", nil, 0o644))
	})
	if got := strings.Fields(run(t, m.dir, "ls", "-U", "vm")); !slices.Equal(got, []string{"T2", "T1", "T0"}) {
		t.Errorf("ls -U vm = %v", got)
	}
	if got := strings.Fields(run(t, m.dir, "ls", "-UA")); !slices.Equal(got, []string{"vm"}) {
		t.Errorf("ls -UA = %v", got)
	}
	wantErrno(t, os.Mkdir(m.dir+"/vm/.chainfs", 0o755), unix.EPERM)
	run(t, m.dir, "rm", "-rf", "vm")
	if strings.Contains(m.log.String(), "rebasing") {
		t.Errorf("rm -rf of a VM merged something:\n%s", m.log)
	}
}

// A directory that is not empty for its user is not removed, be there hidden
// names in it or not.
func TestRmdirNotEmpty(t *testing.T) {
	m := mountTree(t, func(tree string) {
		must(t, os.Mkdir(tree+"/d", 0o755))
		must(t, os.WriteFile(tree+"/d/.chainfs-7-r", nil, 0o644))
		must(t, os.WriteFile(tree+"/d/f", nil, 0o644))
	})
	wantErrno(t, unix.Rmdir(m.dir+"/d"), unix.ENOTEMPTY)
	must(t, os.Mkdir(m.dir+"/empty", 0o755))
	must(t, unix.Rmdir(m.dir+"/empty"))
	wantErrno(t, unix.Rmdir(m.dir+"/empty"), unix.ENOENT)
}

// An interrupted rm gets EINTR, and file and chain are whole.
func TestInterruptedUnlink(t *testing.T) {
	m := mountTree(t, func(tree string) { makeChain(t, tree, "f", "a", "b") })
	before := flat(t, m.tree+"/b")
	for _, sig := range []syscall.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGKILL} {
		h := &hook{make(chan string), make(chan struct{})}
		m.hook.Store(h)
		rm := exec.Command("rm", "-f", m.dir+"/a")
		must(t, rm.Start())
		if label := <-h.labels; label != "ABSORB:STORE" {
			t.Errorf("the first step is %s", label)
		}
		must(t, rm.Process.Signal(sig))
		// The kernel passes the signal on as an interrupt, which the daemon
		// must have met before the step goes on.
		time.Sleep(200 * time.Millisecond)
		m.hook.Store(nil)
		close(h.gate)
		if err := rm.Wait(); err == nil {
			t.Errorf("%v: rm ended well", sig)
		}
		if got := flat(t, m.tree+"/b"); got != before {
			t.Errorf("%v: the child reads differently", sig)
		}
		if _, err := os.Stat(m.tree + "/a"); err != nil {
			t.Errorf("%v: %v", sig, err)
		}
		findings, err := m.chain.Check(context.Background())
		if err != nil || len(findings) > 0 {
			t.Errorf("%v: check: %v, %v", sig, findings, err)
		}
	}
	must(t, os.Remove(m.dir+"/a"))
}

// Two mounts of different trees live in one process.
func TestTwoMounts(t *testing.T) {
	one := mountTree(t, func(tree string) { makeChain(t, tree, "f", "a", "b") })
	two := mountTree(t, func(tree string) { makeChain(t, tree, "f", "a", "b") })
	for _, m := range []*mounted{one, two} {
		must(t, os.Remove(m.dir+"/a"))
		wantErrno(t, unix.Unlink(m.dir+"/f"), unix.EBUSY)
	}
}

// Ordinary operations do to the tree what they would do there themselves.
func TestPassThrough(t *testing.T) {
	m := mountTree(t, nil)
	run(t, m.dir, "sh", "-ec", `
		umask 022
		mkdir d; echo hello > d/f; cat d/f | grep -q hello; echo more >> d/f; [ $(wc -l < d/f) = 2 ]
		ln -s f d/s; [ "$(readlink d/s)" = f ]; cat d/s > /dev/null
		ln d/f d/h; [ d/f -ef d/h ]; [ $(stat -c %h d/f) = 2 ]
		chmod 4711 d/f; [ $(stat -c %a d/f) = 4711 ]; chown 12:34 d/f; [ $(stat -c %u:%g d/f) = 12:34 ]
		touch -d '2001-02-03 04:05:06.123456789 UTC' d/f; [ $(stat -c %y d/f | cut -c21-29) = 123456789 ]
		touch -h -d '2001-02-03 UTC' d/s; [ $(stat -c %Y d/s) = 981158400 ]
		setfattr -n user.x -v y d/f; [ "$(getfattr --only-values -n user.x d/f)" = y ]; setfattr -x user.x d/f
		truncate -s 1M d/t; fallocate -o 4096 -l 4096 d/t; fallocate -p -o 4096 -l 4096 d/t
		mkfifo d/p; [ -p d/p ]; mv d/f d/g; [ ! -e d/f ]; mv d e; rmdir e 2>/dev/null && exit 1
		sync e/g; df . > /dev/null; dd if=/dev/zero of=e/z bs=1M count=3 conv=fsync status=none; cmp -n 3145728 e/z /dev/zero
		mkdir sg; chgrp 55 sg; chmod 2775 sg; touch sg/x; [ $(stat -c %g sg/x) = 55 ]; mkdir sg/y; [ $(stat -c %a sg/y) = 2755 ]
		cp --reflink=auto e/z e/zz; cmp e/z e/zz; rm -r e sg`)
	name := strings.Repeat("\xff", 255)
	must(t, os.WriteFile(m.dir+"/"+name, []byte("x"), 0o600))
	must(t, os.Remove(m.dir+"/"+name))
	f, err := os.Create(m.dir + "/sparse")
	must(t, err)
	must(t, f.Truncate(1<<20))
	_, err = f.WriteAt([]byte("x"), 512<<10)
	must(t, err)
	if at, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA); err != nil || at == 0 {
		t.Errorf("SEEK_DATA = %d, %v", at, err)
	}
	must(t, os.Remove(m.dir+"/sparse"))
	if st, err := f.Stat(); err != nil || st.Size() != 1<<20 {
		t.Errorf("fstat of an unlinked open file: %v", err)
	}
	must(t, f.Close())
	_, err = unix.IoctlGetInt(mustOpen(t, m.dir), getVersion)
	wantErrno(t, err, unix.ENOTTY)
}

// getVersion is FS_IOC_GETVERSION of linux/fs.h, which ext4 answers: it must not
// reach the file system under the tree.
const getVersion = 0x80087601

func mustOpen(t *testing.T, p string) int {
	f, err := os.Open(p)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return int(f.Fd())
}
