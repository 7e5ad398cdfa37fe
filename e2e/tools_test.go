package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// qemuHolds opens an image of the tree for writing with qemu until stop is called.
func (s *site) qemuHolds(name string) (stop func()) {
	s.t.Helper()
	cmd := exec.Command("qemu-io", "-f", "qcow2", filepath.Join(s.tree, name))
	in, err := cmd.StdinPipe()
	mustDo(s.t, err)
	out, err := cmd.StdoutPipe()
	mustDo(s.t, err)
	mustDo(s.t, cmd.Start())
	// qemu-io answers once the image is open and locked.
	_, err = in.Write([]byte("length\n"))
	mustDo(s.t, err)
	_, err = out.Read(make([]byte, 64))
	mustDo(s.t, err)
	stop = func() { in.Close(); cmd.Wait() }
	s.t.Cleanup(stop)
	return stop
}

// vm makes a VM with two disks, five backups and sidecars.
func (s *site) vm(name string) {
	for _, disk := range []string{"root.a", "datadisk.b"} {
		s.line(5, name+"/T%d/"+disk+".qcow2")
	}
	for _, d := range []string{"0", "1", "2", "3", "4"} {
		s.sidecar(name + "/T" + d + "/domain-config.xml")
	}
}

func (s *site) forgetVM(name string) {
	for image := range s.want {
		if strings.HasPrefix(image, name+"/") {
			s.gone(image)
		}
	}
}

// Whatever deletes a whole VM deletes it from the tail, and merges nothing.
func TestE2EWholeVM(t *testing.T) {
	for _, tool := range []string{
		"rm -rf vm",
		"find vm -delete",
		"python3 -c 'import shutil; shutil.rmtree(\"vm\")'",
	} {
		t.Run(strings.Fields(tool)[0], func(t *testing.T) {
			s := newSite(t)
			s.vm("vm")
			s.line(2, "other/T%d/root.c.qcow2")
			s.mount()
			s.sh(tool)
			s.forgetVM("vm")
			if _, err := os.Stat(s.tree + "/vm"); !os.IsNotExist(err) {
				t.Errorf("the VM's directory is still there: %v", err)
			}
			if n := s.merges(); n != 0 {
				t.Errorf("%d merges, want none", n)
			}
			s.intact()
			s.clean()
		})
	}
}

// chainfs rm of directories does the same as one operation.
func TestE2ECommandRemovesVM(t *testing.T) {
	s := newSite(t)
	s.vm("vm")
	s.mount()
	dry := s.cli(0, "rm", "--dry-run", s.mnt+"/vm")
	if !strings.Contains(dry.out, "unlink vm/T4/root.a.qcow2") || strings.Contains(dry.out, "rebase") {
		t.Errorf("the plan is:\n%s", dry.out)
	}
	s.intact()
	s.cli(0, "rm", s.mnt+"/vm")
	s.forgetVM("vm")
	s.clean()
}

func TestE2EMoveOverParent(t *testing.T) {
	s := newSite(t)
	s.line(3, "T%d.qcow2")
	s.image("new.qcow2", "")
	s.mount()
	s.busy("mv", "-f", "new.qcow2", "T0.qcow2")
	s.busy("mv", "-f", "new.qcow2", "T1.qcow2")
	s.busy("cp", "new.qcow2", "T1.qcow2")
	s.intact()
	s.sh("mv -f new.qcow2 T2.qcow2")
	s.want["T2.qcow2"] = s.want["new.qcow2"]
	s.gone("new.qcow2")
	s.intact()
	s.clean()
}

// Children that appear on the NAS behind the mount are seen before anything is deleted.
func TestE2EBehindTheMount(t *testing.T) {
	s := newSite(t)
	s.line(2, "T%d.qcow2")
	s.mount()
	s.image("late.qcow2", "T1.qcow2")
	s.sh("rm T1.qcow2")
	s.gone("T1.qcow2")
	s.intact()
	s.image("later.qcow2", "late.qcow2")
	s.run("mv", s.tree+"/late.qcow2", s.tree+"/elsewhere.qcow2")
	s.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "elsewhere.qcow2", "-F", "qcow2", s.tree+"/later.qcow2")
	s.want["elsewhere.qcow2"] = s.want["late.qcow2"]
	delete(s.want, "late.qcow2")
	s.sh("rm elsewhere.qcow2")
	s.gone("elsewhere.qcow2")
	s.intact()
	s.clean()
}

// An image keeps its id through a rename, through the mount and behind it.
func TestE2EStableID(t *testing.T) {
	s := newSite(t)
	s.line(2, "vm/T%d/r.qcow2")
	s.mount()
	id := func(name string) string {
		for _, line := range strings.Split(s.cli(0, "info", "--json", filepath.Join(s.mnt, name)).out, "\n") {
			if strings.Contains(line, `"id"`) {
				_, value, _ := strings.Cut(line, `"id"`)
				return strings.Fields(strings.Trim(value, `: ,"`))[0]
			}
		}
		t.Fatalf("%s has no id", name)
		return ""
	}
	before := id("vm/T1/r.qcow2")
	s.sh("mv vm/T1/r.qcow2 vm/T1/s.qcow2; mv vm vm2")
	if after := id("vm2/T1/s.qcow2"); after != before {
		t.Errorf("the id is %s, was %s", after, before)
	}
	mustDo(t, os.Rename(s.tree+"/vm2", s.tree+"/vm3"))
	time.Sleep(1100 * time.Millisecond) // the kernel may remember names for a second
	if after := id("vm3/T1/s.qcow2"); after != before {
		t.Errorf("the id is %s, was %s", after, before)
	}
}

func TestE2ESecondWriter(t *testing.T) {
	s := newSite(t)
	s.line(1, "T%d.qcow2")
	s.mount()
	other := &site{t: t, tree: s.tree, mnt: t.TempDir(), store: t.TempDir()}
	out, err := other.tryMount()
	host, _ := os.Hostname()
	if err == nil || !strings.Contains(out, host) || !strings.Contains(out, s.mnt) {
		t.Errorf("a second writer got %v: %s", err, out)
		unix.Unmount(other.mnt, unix.MNT_DETACH)
	}
	if out, err := other.tryMount("-o", "ro"); err != nil {
		t.Errorf("a read-only mount beside the writer: %v: %s", err, out)
	} else {
		other.want, other.refs = s.want, s.refs
		other.intactIn(other.mnt)
		if err := os.Remove(other.mnt + "/T0.qcow2"); err == nil {
			t.Errorf("a read-only mount deleted a file")
		}
		other.cli(0, "umount", other.mnt)
	}
	s.intact()
	s.clean()
}

func TestE2ERebaseCommand(t *testing.T) {
	s := newSite(t)
	s.line(5, "vm/T%d/r.qcow2")
	s.mount()
	s.cli(0, "rebase", s.mnt+"/vm/T3/r.qcow2", "vm/T0/r.qcow2")
	s.intact()
	if got := s.attr("vm/T3/r.qcow2", "parent"); got != "vm/T0/r.qcow2" {
		t.Errorf("the parent is %q", got)
	}
	s.cli(3, "rebase", s.mnt+"/vm/T0/r.qcow2", "vm/T4/r.qcow2")
	s.cli(0, "rebase", s.mnt+"/vm/T4/r.qcow2", "none")
	if got := s.attr("vm/T4/r.qcow2", "kind"); got != "full" {
		t.Errorf("the kind is %q", got)
	}
	s.intact()
	s.clean()
	s.umount()
	s.offline(0, "rebase", s.tree+"/vm/T2/r.qcow2", "vm/T0/r.qcow2")
	s.intact()
	s.offline(0, "check", s.tree)
}

// Without a daemon the commands work on the tree alone.
func TestE2EOffline(t *testing.T) {
	s := newSite(t)
	s.line(4, "vm/T%d/r.qcow2")
	s.offline(0, "scan", s.tree)
	s.offline(0, "tree", s.tree)
	s.offline(3, "rm", s.tree+"/vm/T0/r.qcow2")
	s.offline(3, "why", s.tree+"/vm/T0/r.qcow2")
	s.offline(0, "rm", s.tree+"/vm/T1/r.qcow2")
	s.gone("vm/T1/r.qcow2")
	s.intact()
	s.offline(0, "check", s.tree)
	s.offline(0, "rm", "--force", s.tree+"/vm/T0/r.qcow2")
	s.gone("vm/T0/r.qcow2", "vm/T2/r.qcow2", "vm/T3/r.qcow2")
	s.offline(0, "check", s.tree)
}
