package e2e

import (
	"os"
	"path/filepath"
	"testing"
)

// With --keep nothing is absorbed or unlinked, tails neither: a whole VM comes back,
// with every byte that a guest can read and its directories' modes.
func TestE2EKeptVM(t *testing.T) {
	s := newSite(t)
	s.line(4, "vm/T%d/r.qcow2")
	for i, mode := range []os.FileMode{0o700, 0o711, 0o750, 0o755} {
		mustDo(t, os.Chmod(filepath.Join(s.tree, "vm", []string{"T0", "T1", "T2", "T3"}[i]), mode))
	}
	mustDo(t, os.Chmod(s.tree+"/vm", 0o751))
	state := func() string {
		return s.run("sh", "-c", "cd "+s.tree+" && find vm -printf '%p %M %u %g\\n' | sort")
	}
	was := state()
	s.mount("--keep", "1h", "--settle", "0s")
	s.sh("rm -rf vm")
	if names, err := os.ReadDir(s.mnt); err != nil || len(names) > 0 {
		t.Errorf("left in the mount: %v, %v", names, err)
	}
	if n := len(s.trash("vm")); n != 4 {
		t.Errorf("%d images can be brought back, want 4", n)
	}
	s.cli(0, "wait", s.mnt)
	s.cli(0, "undelete", s.mnt+"/vm")
	if now := state(); now != was {
		t.Errorf("it is %s\nand was %s", now, was)
	}
	s.intact()
	s.intactIn(s.mnt)
	s.clean()
}

// What could not be brought back before a daemon was killed can be afterwards.
func TestE2EUndeleteAgain(t *testing.T) {
	for _, label := range []string{"UNDELETE:PREPARED", "UNDELETE:LINKED", "REPOINT:NAMED"} {
		s := newSite(t)
		s.branched()
		s.keepDoomed()
		s.bringingBack(way{options: later}, label+"=kill")
		s.fail = ""
		s.mount(later...)
		if _, err := os.Lstat(filepath.Join(s.tree, doomed)); os.IsNotExist(err) {
			s.cli(0, "undelete", filepath.Join(s.mnt, doomed))
		}
		s.want[doomed] = s.refs + "/doomed"
		s.intact()
		s.clean()
		s.umount()
	}
}
