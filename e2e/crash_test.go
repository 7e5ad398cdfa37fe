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

// settled mounts again and wants the deletion finished or undone, and the rest
// whole, before and after what is left for later is done.
func (s *site) settled(doomed string) (finished bool) {
	s.t.Helper()
	s.fail = ""
	s.leaks = true
	s.intact() // on the NAS, before anything is recovered
	s.leaks = s.leaky
	s.mount("--settle", "1h")
	if _, err := os.Lstat(filepath.Join(s.tree, doomed)); os.IsNotExist(err) {
		s.gone(doomed)
		finished = true
	} else {
		s.want[doomed] = s.refs + "/doomed"
	}
	s.intact()
	s.intactIn(s.mnt)
	if s.hurry() {
		s.intact()
		s.intactIn(s.mnt)
	}
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

// way is a way of a deletion, or of taking one back.
type way struct {
	name    string
	build   func(*site)
	byCopy  bool
	options []string // of the mount
	// act does it with a daemon that ends at the label of fail. It reports whether
	// the deletion was acknowledged.
	act    func(s *site, w way, fail string) bool
	passes string // prefixes of labels
	// sharing: it is also gone where the file system shares extents.
	sharing bool
	// forgets: it needs no journal, so that the store may be lost in between.
	forgets bool
}

// ways are the ways with the labels that each must pass.
var ways = []way{
	{name: "in place", build: (*site).branched, act: (*site).deleting, passes: "DELETE: ABSORB:", sharing: true},
	{name: "by a copy", build: (*site).branched, byCopy: true, act: (*site).deleting, passes: "REBASE:", sharing: true},
	{
		name: "downwards", build: (*site).stacked, act: (*site).deleting,
		passes: "DELETE:COMMITTED MERGE: ABSORB:STORE ABSORB:LINK REBASE:VERIFIED REBASE:RENAME",
	},
	{
		name: "condemned", build: (*site).branched, options: later, act: (*site).deleting,
		passes: "CONDEMN: REPOINT:", sharing: true, forgets: true,
	},
	{
		name: "brought back", build: (*site).branched, options: later, act: (*site).bringingBack,
		passes: "UNDELETE: REPOINT:", sharing: true, forgets: true,
	},
	{
		name: "in the background", build: (*site).branched, options: soon, act: (*site).reclaiming,
		passes: "DELETE: ABSORB:", sharing: true, forgets: true,
	},
	{
		name: "in the background by a copy", build: (*site).branched, byCopy: true, options: soon, act: (*site).reclaiming,
		passes: "REBASE:", sharing: true,
	},
	{
		name: "in the background downwards", build: (*site).stacked, options: soon, act: (*site).reclaiming,
		passes: "DELETE:COMMITTED MERGE: ABSORB:STORE ABSORB:LINK REBASE:VERIFIED REBASE:RENAME",
	},
}

var (
	// later: deletions wait for the reclaimer, and that waits for ever.
	later = []string{"--inline-limit", "0", "--settle", "1h"}
	// soon: it begins when the caller has been answered.
	soon = []string{"--inline-limit", "0", "--settle", "300ms"}
)

// deleting has the daemon die under rm.
func (s *site) deleting(w way, fail string) bool {
	s.t.Helper()
	s.fail = fail
	s.mount(w.options...)
	s.deleteAndDie(doomed)
	return false
}

// bringingBack has it die under chainfs undelete.
func (s *site) bringingBack(w way, fail string) bool {
	s.t.Helper()
	s.mount(w.options...)
	s.sh("rm " + doomed)
	s.umount()
	unix.Sync()
	s.fail = fail
	s.mount(w.options...)
	pid := s.pid()
	s.cli(1, "undelete", filepath.Join(s.mnt, doomed))
	s.waitGone(pid)
	unix.Unmount(s.mnt, unix.MNT_DETACH)
	return false
}

// reclaiming has it die by itself when rm is done.
func (s *site) reclaiming(w way, fail string) bool {
	s.t.Helper()
	s.fail = fail
	s.mount(w.options...)
	pid := s.pid()
	err := exec.Command("rm", filepath.Join(s.mnt, doomed)).Run()
	s.waitGone(pid)
	unix.Unmount(s.mnt, unix.MNT_DETACH)
	return err == nil
}

// eachStep calls f for each way and each label of it.
func eachStep(t *testing.T, f func(t *testing.T, w way, label string)) {
	met := map[string]bool{}
	for _, way := range ways {
		for _, label := range labels(t) {
			if slices.ContainsFunc(strings.Fields(way.passes), func(p string) bool { return strings.HasPrefix(label, p) }) {
				met[label] = true
				t.Run(way.name+"/"+label, func(t *testing.T) { f(t, way, label) })
			}
		}
	}
	for _, label := range labels(t) {
		if !met[label] {
			t.Errorf("no way passes %s", label)
		}
	}
}

// passesTwice reports whether a deletion on which two images stand passes a label
// of it twice.
func (w way) passesTwice(label string) bool {
	each := slices.ContainsFunc([]string{"ABSORB:", "REBASE:", "REPOINT:"}, func(p string) bool { return strings.HasPrefix(label, p) })
	return each && !strings.HasSuffix(w.name, "downwards")
}

// TestE2EKilledAtEveryStep kills the daemon with SIGKILL at every labelled step
// of a deletion, in each way it can go.
func TestE2EKilledAtEveryStep(t *testing.T) {
	finished := 0
	eachStep(t, func(t *testing.T, w way, label string) {
		for _, nth := range []int{1, 2} {
			if nth == 2 && !w.passesTwice(label) {
				continue
			}
			for _, lost := range []bool{false, true} {
				if lost && (nth == 2 || !w.forgets) {
					continue
				}
				s := newSite(t)
				w.build(s)
				s.killAndSettle(w, fmt.Sprintf("%s:%d=kill", label, nth), lost, &finished)
			}
		}
	})
	if finished == 0 {
		t.Errorf("no deletion was finished by recovery")
	}
}

func (s *site) killAndSettle(w way, fail string, lost bool, finished *int) {
	s.t.Helper()
	s.keepDoomed()
	s.byCopy = w.byCopy
	acknowledged := w.act(s, w, fail)
	if lost {
		s.loseStore()
		s.leaky = true // only the journal knew where to look
	}
	switch {
	case s.settled(doomed):
		*finished++
	case acknowledged:
		s.t.Errorf("%s, without the store %v: the deletion was acknowledged and forgotten", fail, lost)
	}
	s.umount()
}

// loseStore is what an administrator with a new host has.
func (s *site) loseStore() {
	s.t.Helper()
	mustDo(s.t, os.RemoveAll(s.store))
	mustDo(s.t, os.Mkdir(s.store, 0o700))
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
			eachStep(t, func(t *testing.T, w way, label string) {
				if fstype == "xfs" && !w.sharing {
					return // never chosen there
				}
				disk := newDisk(t, fstype, 512)
				s := newSiteAt(t, disk.dir)
				w.build(s)
				unix.Sync()
				s.cutAndSettle(w, disk, label, &finished)
			})
			if finished == 0 {
				t.Errorf("no deletion was finished by recovery")
			}
		})
	}
}

func (s *site) cutAndSettle(w way, disk *disk, label string, finished *int) {
	s.t.Helper()
	s.keepDoomed()
	s.byCopy = w.byCopy
	acknowledged := w.act(s, w, fmt.Sprintf("%s=shutdown:%s", label, disk.dir))
	disk.restart()
	switch {
	case s.settled(doomed):
		*finished++
	case acknowledged:
		s.t.Errorf("the deletion was acknowledged and forgotten")
	}
	s.umount()
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
	for range 100 {
		d.unmount()
		d.mount()
		if _, err := os.ReadDir(d.dir); err == nil {
			return
		}
		// Somebody who is ending still holds the file system that was shut down, and a
		// mount of the same device is the same file system.
		time.Sleep(50 * time.Millisecond)
	}
	d.t.Fatalf("%s stays shut down", d.dir)
}
