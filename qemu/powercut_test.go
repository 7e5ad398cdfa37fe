package qemu

import (
	"os"
	"testing"
	"unsafe"

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

func (tr *tree) remount() {
	tr.t.Helper()
	if err := unix.Unmount(tr.dir, 0); err != nil {
		tr.t.Fatal(err)
	}
	(&tree{t: tr.t, dir: os.TempDir()}).qemu("mount", tr.loop, tr.dir)
}

// A power cut at any step: the child reads as before, a new run completes the
// job, and what was reported done is done.
func TestRebaseThroughPowerCut(t *testing.T) {
	needQemu(t)
	for name, make := range map[string]func(*testing.T) *tree{
		"xfs":  newXFS,
		"ext4": func(t *testing.T) *tree { return newExt4(t, 128<<20) },
	} {
		for _, label := range Labels {
			t.Run(name+" "+label, func(t *testing.T) {
				tr := make(t)
				tr.chain()
				before := tr.guest("2/b")
				job := tr.job()
				unix.Sync()
				err := NewRebaser(tr, Options{Step: func(l string) {
					if l == label {
						tr.cut()
					}
				}}).Rebase(t.Context(), job, nil)
				last := label == Labels[len(Labels)-1]
				if (err == nil) != last {
					t.Errorf("got error %v", err)
				}
				tr.remount()
				if got := tr.guest("2/b"); got != before {
					t.Fatalf("after the cut the guest reads %s, read %s", got, before)
				}
				if h := tr.header("2/b"); last && h.Backing != "../0/full" {
					t.Errorf("it was reported done, and is %+v", h)
				}
				if err := NewRebaser(tr, Options{}).Rebase(t.Context(), job, nil); err != nil {
					t.Fatal(err)
				}
				tr.cut()
				tr.remount()
				checkRebased(t, tr, before)
			})
		}
	}
}

// After a directory could not be synced nothing is believed any more.
func TestRebaseStopsAfterFailedSync(t *testing.T) {
	needQemu(t)
	tr := newExt4(t, 128<<20)
	tr.chain()
	r := NewRebaser(tr, Options{Step: func(l string) {
		if l == "REBASE:RENAMED" {
			tr.cut()
		}
	}})
	job := tr.job()
	unix.Sync()
	for range 2 {
		if err := r.Rebase(t.Context(), job, nil); err == nil {
			t.Error("it was done")
		}
		tr.remount()
	}
	if err := NewRebaser(tr, Options{}).Rebase(t.Context(), job, nil); err != nil {
		t.Errorf("a new one: %v", err)
	}
}
