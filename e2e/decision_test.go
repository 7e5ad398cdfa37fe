package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Each test is a row of the decision table in docs/DESIGN.md, or a shape of
// chain that the rows apply to.

func TestE2EPlainFile(t *testing.T) {
	s := newSite(t)
	s.line(2, "vm/T%d/root.v.qcow2")
	mustDo(t, os.WriteFile(s.tree+"/vm/notes.txt", []byte("x"), 0o644))
	mustDo(t, os.WriteFile(s.tree+"/vm/T0/notes.txt", []byte("x"), 0o644))
	s.mount()
	if out := s.cli(0, "info", s.mnt+"/vm/notes.txt").out; !strings.Contains(out, "pass") {
		t.Errorf("info of a file that is no image:\n%s", out)
	}
	s.sh("rm vm/notes.txt vm/T0/notes.txt")
	s.gone("vm/notes.txt", "vm/T0/notes.txt")
	s.intact()
	s.clean()
}

func TestE2ETailAndLoneFull(t *testing.T) {
	s := newSite(t)
	s.line(3, "vm/T%d/root.v.qcow2")
	s.mount()
	s.sh("rm vm/T2/root.v.qcow2")
	s.gone("vm/T2/root.v.qcow2")
	s.intact()
	s.sh("rm vm/T1/root.v.qcow2; rm vm/T0/root.v.qcow2")
	s.gone("vm/T1/root.v.qcow2", "vm/T0/root.v.qcow2")
	if n := s.merges(); n != 0 {
		t.Errorf("%d merges, want none", n)
	}
	s.clean()
}

func TestE2EMiddle(t *testing.T) {
	s := newSite(t)
	s.line(4, "vm/T%d/root.v.qcow2")
	child := s.tree + "/vm/T2/root.v.qcow2"
	mustDo(t, os.Chown(child, 64055, 108))
	mustDo(t, os.Chmod(child, 0o640))
	s.run("setfattr", "-n", "user.origin", "-v", "host-7", child)
	s.run("setfattr", "-n", "trusted.libvirt.security.dac", "-v", "+0:+0", child)
	s.run("touch", "-d", "2024-05-01 12:00:00.123456789 UTC", child)
	before := s.run("stat", "-c", "%u:%g %a %y %x", child)
	s.mount()
	s.sh("rm -r vm/T1")
	s.gone("vm/T1/root.v.qcow2", "vm/T1")
	// Its bytes changed, and replicas must see that: two seconds, and no more.
	before = strings.Replace(before, " 12:00:00.123456789", " 12:00:02.123456789", 1)
	if after := s.run("stat", "-c", "%u:%g %a %y %x", child); after != before {
		t.Errorf("owner, mode and times are %s, were %s", after, before)
	}
	for name, want := range map[string]string{"user.origin": "host-7", "trusted.libvirt.security.dac": "+0:+0"} {
		if got := s.run("getfattr", "--absolute-names", "--only-values", "-n", name, child); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	for i, want := range []string{"0", "", "1", "2"} {
		if want != "" {
			if got := s.attr([]string{"vm/T0", "", "vm/T2", "vm/T3"}[i]+"/root.v.qcow2", "position"); got != want {
				t.Errorf("the position of T%d is %s, want %s", i, got, want)
			}
		}
	}
	s.intact()
	s.intactIn(s.mnt)
	s.clean()
	s.umount()
	s.intact()
}

func TestE2EBranches(t *testing.T) {
	s := newSite(t)
	s.image("f.qcow2", "")
	s.image("a.qcow2", "f.qcow2")
	for _, n := range []string{"b", "c", "d"} {
		s.image(n+".qcow2", "a.qcow2")
	}
	s.image("e.qcow2", "c.qcow2")
	s.mount()
	s.sh("rm a.qcow2")
	s.gone("a.qcow2")
	if got := s.attr("f.qcow2", "children"); got != "b.qcow2\nc.qcow2\nd.qcow2" {
		t.Errorf("the children of the full are %q", got)
	}
	s.intact()
	s.clean()
}

func TestE2EFullWithChildren(t *testing.T) {
	s := newSite(t)
	s.line(2, "vm/T%d/root.v.qcow2")
	s.image("vm/T0/datadisk.w.qcow2", "")
	s.sidecar("vm/T0/domain-config.xml")
	s.mount()
	for _, name := range []string{"root.v.qcow2", "datadisk.w.qcow2", "domain-config.xml"} {
		s.busy("rm", "-f", "vm/T0/"+name)
	}
	s.busy("rm", "-rf", "vm/T0")
	s.busy("mv", "-f", "vm/T1/root.v.qcow2", "vm/T0/root.v.qcow2")
	s.busy("sh", "-c", "echo x > vm/T0/root.v.qcow2")
	s.busy("truncate", "-s", "0", "vm/T0/root.v.qcow2")
	if why := s.attr("vm/T0/root.v.qcow2", "why"); !strings.Contains(why, "vm/T1/root.v.qcow2 depends") {
		t.Errorf("why = %q", why)
	}
	if why := s.attr("vm/T0/domain-config.xml", "why"); !strings.Contains(why, "backup set vm/T0") {
		t.Errorf("why of a sidecar = %q", why)
	}
	r := s.cli(3, "why", filepath.Join(s.mnt, "vm/T0/root.v.qcow2"))
	if !strings.Contains(r.out+r.err, "vm/T1/root.v.qcow2 depends") {
		t.Errorf("chainfs why says %q %q", r.out, r.err)
	}
	s.cli(3, "rm", filepath.Join(s.mnt, "vm/T0/root.v.qcow2"))
	s.intact()
	s.clean()
	s.cli(0, "rm", "--force", filepath.Join(s.mnt, "vm/T0/root.v.qcow2"))
	s.gone("vm/T0/root.v.qcow2", "vm/T1/root.v.qcow2")
	s.intact()
	s.clean()
}

func TestE2EThreeDisks(t *testing.T) {
	s := newSite(t)
	for _, disk := range []string{"root.a", "datadisk.b", "datadisk.c"} {
		s.line(4, "vm/2024.05.0%d.00.00.00/"+disk+".qcow2")
	}
	for _, d := range []string{"0", "1", "2", "3"} {
		s.sidecar("vm/2024.05.0" + d + ".00.00.00/domain-config.xml")
	}
	s.mount()
	s.sh("rm -rv vm/2024.05.01.00.00.00")
	for _, disk := range []string{"root.a", "datadisk.b", "datadisk.c"} {
		s.gone("vm/2024.05.01.00.00.00/" + disk + ".qcow2")
	}
	s.intact()
	s.busy("rm", "-r", "vm/2024.05.00.00.00.00")
	if _, err := os.Stat(s.tree + "/vm/2024.05.00.00.00.00/domain-config.xml"); err != nil {
		t.Errorf("the refused set lost its sidecar: %v", err)
	}
	s.cli(0, "rm", filepath.Join(s.mnt, "vm/2024.05.02.00.00.00"))
	for _, disk := range []string{"root.a", "datadisk.b", "datadisk.c"} {
		s.gone("vm/2024.05.02.00.00.00/" + disk + ".qcow2")
	}
	s.intact()
	s.clean()
}

func TestE2EBrokenParents(t *testing.T) {
	s := newSite(t)
	s.image("vm/T0/r.qcow2", "")
	s.image("vm/T1/r.qcow2", "vm/T0/r.qcow2")
	s.image("vm/T2/r.qcow2", "vm/T1/r.qcow2")
	outside := filepath.Join(t.TempDir(), "live.qcow2")
	s.run("qemu-img", "create", "-q", "-f", "qcow2", outside, "32M")
	s.image("x/T1/r.qcow2", "x", outside)
	s.image("x/T2/r.qcow2", "x/T1/r.qcow2")
	mustDo(t, os.Rename(s.tree+"/vm/T0/r.qcow2", s.tree+"/../moved-away"))
	delete(s.want, "vm/T0/r.qcow2")
	s.mount()
	for _, name := range []string{"vm/T1/r.qcow2", "x/T1/r.qcow2"} {
		s.busy("rm", "-f", name)
		s.cli(3, "why", filepath.Join(s.mnt, name))
	}
	if why := s.attr("vm/T1/r.qcow2", "why"); !strings.Contains(why, "missing (vm/T0/r.qcow2)") {
		t.Errorf("why = %q", why)
	}
	if why := s.attr("x/T1/r.qcow2", "why"); !strings.Contains(why, "outside the tree") {
		t.Errorf("why = %q", why)
	}
	mustDo(t, os.Rename(s.tree+"/../moved-away", s.tree+"/vm/T0/r.qcow2"))
	s.intact()
	mustDo(t, os.Rename(s.tree+"/vm/T0/r.qcow2", s.tree+"/../moved-away"))
	s.sh("rm vm/T2/r.qcow2 vm/T1/r.qcow2; rm x/T2/r.qcow2; rm x/T1/r.qcow2")
	s.gone("vm/T2/r.qcow2", "vm/T1/r.qcow2", "x/T2/r.qcow2", "x/T1/r.qcow2")
	mustDo(t, os.Remove(s.tree+"/../moved-away"))
}

func TestE2ERawFull(t *testing.T) {
	s := newSite(t)
	s.raw("vm/base.raw")
	s.image("vm/T1/r.qcow2", "vm/base.raw")
	s.image("vm/T2/r.qcow2", "vm/T1/r.qcow2")
	s.mount()
	if got := s.attr("vm/base.raw", "kind"); got != "raw base" {
		t.Errorf("kind = %q", got)
	}
	s.busy("rm", "vm/base.raw")
	s.sh("rm vm/T1/r.qcow2")
	s.gone("vm/T1/r.qcow2")
	s.intact()
	s.sh("rm vm/T2/r.qcow2; rm vm/base.raw")
	s.gone("vm/T2/r.qcow2", "vm/base.raw")
	s.clean()
}

func TestE2EInUse(t *testing.T) {
	s := newSite(t)
	s.line(3, "T%d.qcow2")
	s.mount()
	writer, err := os.OpenFile(s.mnt+"/T2.qcow2", os.O_RDWR, 0)
	mustDo(t, err)
	s.busy("rm", "T2.qcow2")
	s.busy("rm", "T1.qcow2")
	mustDo(t, writer.Close())
	for _, name := range []string{"T2.qcow2", "T1.qcow2"} {
		stop := s.qemuHolds(name)
		s.busy("rm", "T1.qcow2")
		// A qemu that writes to T2 has T1 open below it.
		if why := s.attr("T1.qcow2", "why"); !strings.Contains(why, "by qemu-io") {
			t.Errorf("why = %q", why)
		}
		stop()
	}
	s.intact()
	s.sh("rm T1.qcow2")
	s.gone("T1.qcow2")
	s.intact()
}

func TestE2EChainOf30(t *testing.T) {
	s := newSite(t)
	names := s.line(30, "vm/T%02d/root.v.qcow2")
	s.mount()
	for _, i := range []int{15, 1, 16, 28} {
		s.sh("rm -r vm/" + filepath.Base(filepath.Dir(names[i])))
		s.gone(names[i])
	}
	if got := s.attr(names[29], "position"); got != "25" {
		t.Errorf("the tail's position is %s, want 25", got)
	}
	s.intact()
	s.clean()
}

func TestE2EAbsoluteNames(t *testing.T) {
	for _, seen := range []string{"on the NAS", "in the mount"} {
		t.Run(seen, func(t *testing.T) {
			s := newSite(t)
			s.mount()
			at := s.tree
			if seen == "in the mount" {
				at = s.mnt
			}
			s.image("vm/T0/r.qcow2", "")
			for i, name := range []string{"vm/T1/r.qcow2", "vm/T2/r.qcow2", "vm/T3/r.qcow2"} {
				parent := []string{"vm/T0/r.qcow2", "vm/T1/r.qcow2", "vm/T2/r.qcow2"}[i]
				s.image(name, parent, filepath.Join(at, parent))
			}
			s.sh("rm vm/T2/r.qcow2; rm vm/T1/r.qcow2")
			s.gone("vm/T1/r.qcow2", "vm/T2/r.qcow2")
			s.intact()
			s.intactIn(s.mnt)
			s.clean()
		})
	}
}
