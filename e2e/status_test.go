package e2e

import (
	"encoding/json"
	"os"
	"testing"
)

// .chainfs/status.json in a mount, be it read-only, says what the daemon does. No
// listing of the mount has it, and so no copy of it.
func TestE2EStatusFile(t *testing.T) {
	s := newSite(t)
	s.line(2, "T%d/r.qcow2")
	for _, option := range []string{"inline-limit=all,settle=1m,keep=2w,workers=3", "ro"} {
		s.mount("-o", option)
		text, err := os.ReadFile(s.mnt + "/.chainfs/status.json")
		mustDo(t, err)
		var status struct {
			Tree             struct{ ID string }
			Pending, Running []any
		}
		mustDo(t, json.Unmarshal(text, &status))
		if status.Tree.ID != s.attr("", "tree") || status.Pending == nil || status.Running == nil {
			t.Errorf("-o %s: %s", option, text)
		}
		s.sh(`test "$(ls -A)" = "$(printf 'T1\nT0' | sort)"`)
		copied := t.TempDir()
		s.run("cp", "-a", s.mnt+"/.", copied)
		if _, err := os.Lstat(copied + "/.chainfs"); !os.IsNotExist(err) {
			t.Errorf("-o %s: a copy of the mount has .chainfs: %v", option, err)
		}
		s.umount()
	}
}
