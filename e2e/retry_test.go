package e2e

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
)

// operations is what chainfs ops says.
func (s *site) operations() (ops struct {
	Pending, Running []chain.Progress
	Past             []chain.Operation
}) {
	s.t.Helper()
	mustDo(s.t, json.Unmarshal([]byte(s.cli(0, "ops", "--json", s.mnt).out), &ops))
	return ops
}

// eventually waits for what must come.
func (s *site) eventually(what string, is func() bool) {
	s.t.Helper()
	for range 1200 {
		if is() {
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	s.t.Fatalf("it never came: %s; ops says\n%s", what, s.cli(0, "ops", s.mnt).out)
}

// failing has the daemon's calls on a file of the tree fail until stop is called.
func (s *site) failing(name, calls, errno string) (stop func()) {
	s.t.Helper()
	pid := fmt.Sprint(s.pid())
	cmd := exec.Command("strace", "-f", "-q", "-o", "/dev/null", "-p", pid, "-P", filepath.Join(s.tree, name),
		"-e", "trace="+calls, "-e", fmt.Sprintf("inject=%s:error=%s", calls, errno))
	mustDo(s.t, cmd.Start())
	ended := false
	stop = func() {
		if !ended {
			ended = true
			cmd.Process.Signal(syscall.SIGINT) // it lets go of the daemon
			cmd.Wait()
		}
	}
	s.t.Cleanup(stop)
	s.eventually("strace is there", func() bool {
		status, err := exec.Command("grep", "TracerPid", "/proc/"+pid+"/status").Output()
		return err == nil && strings.Fields(string(status))[1] != "0"
	})
	return stop
}

// TestE2EReclaimerRetries: errors of the disk, those of a sync among them, are told,
// the condemned image stays, and once they are over the work is finished without help.
func TestE2EReclaimerRetries(t *testing.T) {
	for _, c := range []struct{ name, calls, errno string }{
		{"reading", "copy_file_range", "EIO"},
		{"writing", "pwrite64", "EIO"},
		{"syncing", "fsync", "EIO"},
		{"no space", "copy_file_range", "ENOSPC"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t)
			s.line(4, "vm/T%d/r.qcow2")
			s.mount("--inline-limit", "0", "--settle", "1s")
			s.sh("rm vm/T1/r.qcow2")
			s.gone("vm/T1/r.qcow2")
			stop := s.failing("vm/T2/r.qcow2", c.calls, c.errno)
			s.eventually("it fails, and says why", func() bool {
				p := s.operations().Pending
				return len(p) == 1 && p[0].Status == chain.Failing && p[0].Tries > 1 && p[0].Reason != ""
			})
			p := s.operations().Pending[0]
			want := map[string]string{"EIO": unix.EIO.Error(), "ENOSPC": unix.ENOSPC.Error()}[c.errno]
			if !strings.Contains(p.Reason, want) && !strings.Contains(p.Reason, "could not be synced") {
				t.Errorf("the reason is %q", p.Reason)
			}
			s.cli(1, "wait", s.mnt)
			s.leaks = true // nothing is given back while nothing can be written
			s.intact()
			s.leaks = false
			stop()
			s.eventually("it is done", func() bool { return len(s.operations().Pending)+len(s.operations().Running) == 0 })
			s.cli(0, "wait", s.mnt)
			s.cli(0, "check", "--repair-leaks", s.mnt)
			s.intact()
			s.clean()
			s.umount()
		})
	}
}
