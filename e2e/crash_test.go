package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// labels are the steps of an operation, as the binary names them.
func labels(t *testing.T) []string {
	t.Helper()
	all := strings.Fields(command(t, chainfs, "labels").out)
	if len(all) < 10 {
		t.Fatalf("chainfs labels: %q", all)
	}
	return all
}

// deleteAndDie deletes the middle of a branched chain with a daemon that ends
// at the given step, and wants rm to fail.
func (s *site) deleteAndDie(name string) {
	s.t.Helper()
	pid := s.pid()
	err := exec.Command("rm", "-f", filepath.Join(s.mnt, name)).Run()
	s.waitGone(pid)
	unix.Unmount(s.mnt, unix.MNT_DETACH)
	if err == nil {
		s.t.Errorf("rm ended well although the daemon died under it")
	}
}

// branched is a chain whose second image has two children and grandchildren.
func (s *site) branched() {
	s.line(4, "vm/T%d/r.qcow2")
	s.image("vm/B2/r.qcow2", "vm/T1/r.qcow2")
	s.image("vm/B3/r.qcow2", "vm/B2/r.qcow2")
}

// settled mounts again and wants the deletion finished or undone, and the rest whole.
func (s *site) settled(doomed string) (finished bool) {
	s.t.Helper()
	s.fail = ""
	s.intact() // on the NAS, before anything is recovered
	s.mount()
	if _, err := os.Lstat(filepath.Join(s.tree, doomed)); os.IsNotExist(err) {
		s.gone(doomed)
		finished = true
	} else {
		s.want[doomed] = s.refs + "/doomed"
	}
	s.intact()
	s.intactIn(s.mnt)
	s.clean()
	return finished
}

const doomed = "vm/T1/r.qcow2"

// TestE2EKilledAtEveryStep kills the daemon with SIGKILL at every labelled step
// of the deletion of an image with two children.
func TestE2EKilledAtEveryStep(t *testing.T) {
	finished := 0
	for _, label := range labels(t) {
		for _, nth := range []int{1, 2} {
			if nth == 2 && !strings.HasPrefix(label, "REBASE:") {
				continue // a deletion passes it once
			}
			t.Run(fmt.Sprintf("%s:%d", label, nth), func(t *testing.T) {
				s := newSite(t)
				s.branched()
				s.fail = fmt.Sprintf("%s:%d=kill", label, nth)
				s.killAndSettle(&finished)
			})
		}
	}
	if finished == 0 {
		t.Errorf("no deletion was finished by recovery")
	}
}

func (s *site) killAndSettle(finished *int) {
	s.t.Helper()
	s.keepDoomed()
	s.mount()
	s.deleteAndDie(doomed)
	if s.settled(doomed) {
		*finished++
	}
	s.umount()
}

// keepDoomed takes the image that is to be deleted out of what must be there.
func (s *site) keepDoomed() {
	mustDo(s.t, os.Rename(s.want[doomed], s.refs+"/doomed"))
	delete(s.want, doomed)
}

// TestE2EPowerCut shuts the tree's file system down at every labelled step, so
// that nothing more reaches the disk, and kills the daemon. What was not
// fsynced is lost then.
func TestE2EPowerCut(t *testing.T) {
	for _, fstype := range []string{"ext4", "xfs"} {
		finished := 0
		for _, label := range labels(t) {
			t.Run(fstype+"/"+label, func(t *testing.T) {
				disk := newDisk(t, fstype, 512)
				s := newSiteAt(t, disk.dir)
				s.branched()
				unix.Sync()
				s.fail = fmt.Sprintf("%s=shutdown:%s", label, disk.dir)
				s.keepDoomed()
				s.mount()
				s.deleteAndDie(doomed)
				disk.restart()
				if s.settled(doomed) {
					finished++
				}
				s.umount()
			})
		}
		if finished == 0 {
			t.Errorf("%s: no deletion was finished by recovery", fstype)
		}
	}
}

// disk is a file system of its own on a loop device.
type disk struct {
	t     *testing.T
	image string
	dir   string
}

func newDisk(t *testing.T, fstype string, mib int64) *disk {
	t.Helper()
	d := &disk{t: t, image: filepath.Join(t.TempDir(), "disk"), dir: t.TempDir()}
	f, err := os.Create(d.image)
	mustDo(t, err)
	mustDo(t, f.Truncate(mib<<20))
	mustDo(t, f.Close())
	args := map[string][]string{"ext4": {"-q", "-F"}, "xfs": {"-q"}}[fstype]
	must(t, "mkfs."+fstype, append(args, d.image)...)
	d.mount()
	t.Cleanup(d.unmount)
	return d
}

func (d *disk) mount() {
	d.t.Helper()
	must(d.t, "mount", "-o", "loop", d.image, d.dir)
}

func (d *disk) unmount() {
	for range 100 {
		err := unix.Unmount(d.dir, 0)
		if err == nil || err == unix.EINVAL {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	d.t.Errorf("%s stays busy", d.dir)
	unix.Unmount(d.dir, unix.MNT_DETACH)
}

// restart is what follows a power cut: the file system is mounted afresh.
func (d *disk) restart() {
	d.t.Helper()
	d.unmount()
	d.mount()
}
