package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
	s.leaks = true
	s.intact() // on the NAS, before anything is recovered
	s.leaks = false
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

// stacked is a line whose second image has far more in it than its one child.
func (s *site) stacked() {
	s.line(2, "vm/T%d/r.qcow2")
	s.run("qemu-io", "-f", "qcow2", "-c", "write -q -P 99 20M 5M", filepath.Join(s.tree, doomed))
	s.remember(doomed)
	s.image("vm/T2/r.qcow2", doomed)
	s.image("vm/T3/r.qcow2", "vm/T2/r.qcow2")
}

// ways are the ways of a deletion, with the labels that each must pass.
var ways = []struct {
	name    string
	build   func(*site)
	byCopy  bool
	passes  string // prefixes of labels
	sharing bool   // also where the file system shares extents
}{
	{"in place", (*site).branched, false, "DELETE: ABSORB:", true},
	{"by a copy", (*site).branched, true, "REBASE:", true},
	{"downwards", (*site).stacked, false, "DELETE:COMMITTED MERGE: ABSORB:STORE ABSORB:LINK REBASE:VERIFIED REBASE:RENAME", false},
}

// eachStep calls f for each way and each label of it.
func eachStep(t *testing.T, f func(t *testing.T, way int, label string)) {
	met := map[string]bool{}
	for n, way := range ways {
		for _, label := range labels(t) {
			if slices.ContainsFunc(strings.Fields(way.passes), func(p string) bool { return strings.HasPrefix(label, p) }) {
				met[label] = true
				t.Run(way.name+"/"+label, func(t *testing.T) { f(t, n, label) })
			}
		}
	}
	for _, label := range labels(t) {
		if !met[label] {
			t.Errorf("no way passes %s", label)
		}
	}
}

// TestE2EKilledAtEveryStep kills the daemon with SIGKILL at every labelled step
// of a deletion, in each way it can go.
func TestE2EKilledAtEveryStep(t *testing.T) {
	finished := 0
	eachStep(t, func(t *testing.T, way int, label string) {
		for _, nth := range []int{1, 2} {
			if nth == 2 && (strings.HasPrefix(label, "DELETE:") || ways[way].name == "downwards") {
				continue // a deletion passes it once
			}
			s := newSite(t)
			ways[way].build(s)
			s.byCopy = ways[way].byCopy
			s.fail = fmt.Sprintf("%s:%d=kill", label, nth)
			s.killAndSettle(&finished)
		}
	})
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
		t.Run(fstype, func(t *testing.T) {
			finished := 0
			eachStep(t, func(t *testing.T, way int, label string) {
				if fstype == "xfs" && !ways[way].sharing {
					return // never chosen there
				}
				disk := newDisk(t, fstype, 512)
				s := newSiteAt(t, disk.dir)
				ways[way].build(s)
				s.byCopy = ways[way].byCopy
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
			if finished == 0 {
				t.Errorf("no deletion was finished by recovery")
			}
		})
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
