package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Who reads a child through the mount has its length from before: the child is not
// changed in place under it, and nothing that it reads through goes. The merge waits
// and says what for; a merge that would be done at once is refused.
func TestE2EMountReaderIsWaitedFor(t *testing.T) {
	s := newSite(t)
	s.line(5, "vm/T%d/r.qcow2")
	s.mount("--inline-limit", "0", "--settle", "0s")
	reader, err := os.Open(filepath.Join(s.mnt, "vm/T2/r.qcow2"))
	mustDo(t, err)
	s.sh("rm vm/T1/r.qcow2")
	s.gone("vm/T1/r.qcow2")
	s.eventually("the merge waits for the reader", func() bool {
		p := s.operations().Pending
		return len(p) == 1 && strings.Contains(p[0].Reason, "vm/T2/r.qcow2 is being read by a process that works through the mount")
	})
	if len(s.hidden()) != 1 {
		t.Errorf("left are %q, want the condemned image", s.hidden())
	}
	mustDo(t, reader.Close())
	s.cli(0, "wait", s.mnt)
	s.noLeftovers()
	s.intact()
	s.umount()

	s.mount("--inline-limit", "all")
	reader, err = os.Open(filepath.Join(s.mnt, "vm/T3/r.qcow2"))
	mustDo(t, err)
	s.busy("rm", "vm/T2/r.qcow2")
	mustDo(t, reader.Close())
	s.sh("rm vm/T2/r.qcow2")
	s.gone("vm/T2/r.qcow2")
	s.intact()
	s.clean()
}
