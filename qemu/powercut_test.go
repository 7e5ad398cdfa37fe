package qemu

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"unsafe"

	"github.com/chainfs/chainfs/qemu/qcow2"
	"golang.org/x/sys/unix"
)

// cut stops the tree's file system as a power cut does: nothing that was not
// synced reaches the device any more, the journal's last entries included.
func (tr *tree) cut() {
	const shutdown, noLogFlush = 0x8004587d, 2 // EXT4_IOC_SHUTDOWN, XFS_IOC_GOINGDOWN
	f, err := os.Open(tr.dir)
	if err != nil {
		tr.t.Fatal(err)
	}
	defer f.Close()
	how := uint32(noLogFlush)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), shutdown, uintptr(unsafe.Pointer(&how))); e != 0 {
		tr.t.Fatal(e)
	}
}

// sync is of this file system alone: others' dirty pages take their time.
func (tr *tree) sync() {
	f, err := os.Open(tr.dir)
	if err != nil {
		tr.t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		tr.t.Fatal(err)
	}
}

func (tr *tree) remount() {
	tr.t.Helper()
	if err := unix.Unmount(tr.dir, 0); err != nil {
		tr.t.Fatal(err)
	}
	(&tree{t: tr.t, dir: os.TempDir()}).qemu("mount", tr.loop, tr.dir)
}

// A power cut at any step: the child reads as before, what it had taken in is
// given back, a new run completes the job, and what was reported done is done.
func TestRebaseThroughPowerCut(t *testing.T) {
	needQemu(t)
	for name, make := range map[string]func(*testing.T) *tree{
		"xfs":  newXFS,
		"ext4": func(t *testing.T) *tree { return newExt4(t, 128<<20) },
	} {
		for _, way := range ways {
			for _, label := range way.labels {
				t.Run(name+" "+label, func(t *testing.T) { testPowerCut(t, make(t), way, label) })
			}
		}
	}
}

func testPowerCut(t *testing.T, tr *tree, way way, label string) {
	tr.chain()
	before := tr.guest("2/b")
	job := tr.job()
	tr.sync()
	err := NewRebaser(tr, way.stepping(func(l string) {
		if l == label {
			tr.cut()
		}
	})).Rebase(t.Context(), job, nil)
	last := label == "REBASE:SYNCED"
	if (err == nil) != last {
		t.Errorf("got error %v", err)
	}
	tr.remount()
	if h := tr.header("2/b"); (last || label == "ABSORB:DONE") && h.Backing != "../0/full" {
		t.Errorf("it was done, and is %+v", h)
	}
	checkRecovers(t, tr, way, job.Identity, before)
	tr.cut()
	tr.remount()
	checkRebased(t, tr, before)
}

// After a sync failed nothing is believed any more.
func TestRebaseStopsAfterFailedSync(t *testing.T) {
	needQemu(t)
	tr := newExt4(t, 128<<20)
	tr.chain()
	before := tr.guest("2/b")
	r := NewRebaser(tr, Options{ByCopy: true, Step: func(l string) {
		if l == "REBASE:RENAMED" {
			tr.cut()
		}
	}})
	job := tr.job()
	tr.sync()
	for range 2 {
		if err := r.Rebase(t.Context(), job, nil); err == nil {
			t.Error("it was done")
		}
		tr.remount()
	}
	if err := r.Recover(t.Context(), "2/b", job.Identity); err == nil {
		t.Error("it went on")
	}
	checkRecovers(t, tr, ways[1], job.Identity, before)
}

// In place it is package qcow2 that tells of it.
func TestRebaseStopsAfterFailedSyncInPlace(t *testing.T) {
	needQemu(t)
	tr := newTree(t)
	tr.chain()
	before := tr.guest("2/b")
	r := NewRebaser(tr, Options{})
	if err := r.newRebase(tr.job(), nil).failed(fmt.Errorf("%w: %w", qcow2.ErrSync, unix.EIO)); !errors.Is(err, unix.EIO) {
		t.Errorf("got error %v", err)
	}
	if err := r.Rebase(t.Context(), tr.job(), nil); !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), "could not be synced before") {
		t.Errorf("got error %v", err)
	}
	if err := r.Recover(t.Context(), "2/b", tr.job().Identity); !errors.Is(err, unix.EIO) {
		t.Errorf("got error %v", err)
	}
	checkRecovers(t, tr, ways[0], tr.job().Identity, before)
}
