package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chainfs/chainfs/chain"
)

// thick is a full, an image of so many MiB of data and a child of it that lacks
// them. The child's disk is larger, so that the child must absorb.
func (s *site) thick(dir string, mib string) (parent, child string) {
	s.t.Helper()
	names := []string{dir + "/T0.qcow2", dir + "/T1.qcow2", dir + "/T2.qcow2"}
	mustDo(s.t, os.MkdirAll(filepath.Join(s.tree, dir), 0o755))
	for i, name := range names {
		args := []string{"create", "-q", "-f", "qcow2"}
		if i > 0 {
			args = append(args, "-b", filepath.Base(names[i-1]), "-F", "qcow2")
		}
		s.run("qemu-img", append(args, filepath.Join(s.tree, name), []string{"64M", "64M", "65M"}[i])...)
		if i == 1 {
			s.run("qemu-io", "-f", "qcow2", "-c", "write -q -P 7 4M "+mib+"M", filepath.Join(s.tree, name))
		}
		s.remember(name)
	}
	return names[1], names[2]
}

// A full disk: what was deleted stays, every chain reads as before, and the
// reclaimer goes on by itself when there is room.
func TestE2EReclaimOnFullDisk(t *testing.T) {
	disk := newDisk(t, "ext4", 96)
	s := newSiteAt(t, disk.dir)
	parent, _ := s.thick("vm", "24")
	s.run("sh", "-c", "cat /dev/zero > "+s.tree+"/plain 2> /dev/null; truncate -s -1M "+s.tree+"/plain")
	s.mount("--inline-limit", "0", "--settle", "0s")
	s.sh("rm " + parent)
	s.gone(parent)
	s.until("the operation has failed for want of space", func() bool {
		p := s.current()
		return p != nil && p.Status == chain.Failing && strings.Contains(p.Reason, "no space left")
	})
	s.cli(1, "wait", s.mnt)
	s.intact()
	s.intactIn(s.mnt)
	if len(s.hidden()) == 0 {
		t.Errorf("the condemned image is gone")
	}
	s.sh("rm plain")
	s.until("it is done", func() bool { return command(t, chainfs, "wait", s.mnt).code == 0 })
	s.intact()
	s.clean()
	s.umount()
}

// A reader of what a merge has to change makes that wait, and no other.
func TestE2EReclaimerWaitsForReaders(t *testing.T) {
	s := newSite(t)
	a, child := s.thick("a", "8")
	b, _ := s.thick("b", "8")
	s.mount("--inline-limit", "0", "--settle", "1s")
	s.sh("rm " + a + " " + b)
	release := s.hold(child)
	s.gone(a, b)
	s.cli(0, "wait", s.mnt+"/b")
	s.until("it waits for the reader", func() bool {
		p := s.current()
		return p != nil && p.Status == chain.Waiting && strings.Contains(p.Reason, child)
	})
	t.Logf("waits: %s", s.current().Reason)
	if left := s.hidden(); len(left) != 1 || !strings.HasPrefix(left[0], "a/") {
		t.Errorf("left are %q", left)
	}
	s.intact()
	release()
	s.cli(0, "wait", s.mnt)
	s.intact()
	s.clean()
}

// What was cancelled is left alone until its user says retry.
func TestE2ECancelAndRetry(t *testing.T) {
	s := newSite(t)
	parent, _ := s.thick("vm", "40")
	s.mount("--inline-limit", "0", "--settle", "0s", "--limit-rate", "4M")
	s.sh("rm " + parent)
	s.gone(parent)
	s.until("it runs", func() bool { p := s.current(); return p != nil && p.Status == chain.Running })
	id := s.current().Op.String()
	s.cli(0, "ops", "cancel", id, s.mnt)
	s.until("it is cancelled", func() bool { p := s.current(); return p != nil && p.Status == chain.Cancelled })
	s.cli(1, "wait", s.mnt)
	time.Sleep(1500 * time.Millisecond) // longer than the first pause
	if p := s.current(); p == nil || p.Status != chain.Cancelled {
		t.Errorf("after a while it is %+v", p)
	}
	s.intact()
	s.intactIn(s.mnt)
	s.cli(0, "ops", "retry", id, s.mnt)
	s.cli(0, "wait", s.mnt)
	s.intact()
	s.clean()
}

func TestE2ERemoveAndWait(t *testing.T) {
	s := newSite(t)
	parent, _ := s.thick("vm", "20")
	s.mount("--inline-limit", "0", "--settle", "100ms")
	s.cli(0, "rm", "--wait", filepath.Join(s.mnt, parent))
	s.gone(parent)
	s.noLeftovers()
	s.intact()
	s.clean()
}

// An unmount does not wait for a merge, and the next mount goes on with it.
func TestE2EUnmountDuringMerge(t *testing.T) {
	s := newSite(t)
	parent, _ := s.thick("vm", "40")
	s.mount("--inline-limit", "0", "--settle", "0s", "--limit-rate", "1M")
	s.sh("rm " + parent)
	s.gone(parent)
	s.until("it copies", func() bool { p := s.current(); return p != nil && p.Done > 0 })
	s.umount()
	if len(s.hidden()) != 1 {
		t.Errorf("left are %q, want the condemned image: the unmount waited for the merge", s.hidden())
	}
	s.leaks = true // until the merge is done
	s.intact()
	s.mount("--settle", "0s")
	s.intact()
	s.cli(0, "wait", s.mnt)
	s.leaks = false
	s.intact()
	s.clean()
}

// The hidden directory of an image that was merged downwards goes with it.
func TestE2EMergedOutOfHiddenDirectory(t *testing.T) {
	s := newSite(t)
	s.stacked()
	s.mount("--inline-limit", "0", "--settle", "300ms")
	s.sh("rm -r vm/T1")
	s.gone(doomed, "vm/T1")
	s.cli(0, "wait", s.mnt)
	if ops := s.cli(0, "ops", "--json", s.mnt).out; !strings.Contains(ops, string(chain.MergeDown)) {
		t.Errorf("nothing was merged downwards: %s", ops)
	}
	s.intact()
	s.clean()
}
