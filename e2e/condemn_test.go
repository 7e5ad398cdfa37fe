package e2e

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestE2EInterruptedCondemning interrupts rm at every step of condemning: the image
// is deleted, or nothing has changed, and the mount answers.
func TestE2EInterruptedCondemning(t *testing.T) {
	undone := 0
	for _, label := range labels(t) {
		if !strings.HasPrefix(label, "CONDEMN:") && !strings.HasPrefix(label, "REPOINT:") {
			continue
		}
		t.Run(label, func(t *testing.T) {
			s := newSite(t)
			s.branched()
			s.keepDoomed()
			was := s.photoOfFiles()
			p := s.pauseAt(label)
			s.mount(later...)
			if gone := s.interrupted(p); gone {
				s.gone(doomed)
			} else {
				undone++
				s.want[doomed] = s.refs + "/doomed"
				if now := s.photoOfFiles(); !maps.Equal(was, now) {
					t.Errorf("the tree was %q, and is %q", was, now)
				}
			}
			s.sh("ls vm/T1 > new; mkdir vm/T1/d; mv vm/T1/d e; rmdir e; rm new")
			s.intact()
			s.intactIn(s.mnt)
			s.hurry()
			s.intact()
			s.clean()
			s.umount()
		})
	}
	if undone == 0 {
		t.Errorf("no deletion was taken back")
	}
}

// photoOfFiles is a photo without the directories' times: names have come and gone.
func (s *site) photoOfFiles() map[string]string {
	s.t.Helper()
	photo := s.photo()
	maps.DeleteFunc(photo, func(_, what string) bool { return strings.Contains(what, " d") })
	return photo
}

// interrupted interrupts rm while the daemon pauses.
func (s *site) interrupted(p *pause) (gone bool) {
	s.t.Helper()
	rm := exec.Command("rm", filepath.Join(s.mnt, doomed))
	mustDo(s.t, rm.Start())
	p.met()
	s.intact()
	mustDo(s.t, rm.Process.Signal(syscall.SIGINT))
	s.sh("ls . vm > /dev/null")
	p.goOn()
	err := rm.Wait()
	_, statErr := os.Lstat(filepath.Join(s.tree, doomed))
	if err == nil && statErr == nil {
		s.t.Errorf("rm succeeded, and the image is there")
	}
	return statErr != nil
}

// A condemned image has left the mount's listings and nothing else: the tree's file
// system, the ids and the chains are as before, and its name is free at once.
func TestE2ECondemned(t *testing.T) {
	s := newSite(t)
	s.branched()
	s.keepDoomed()
	s.mount(later...)
	id := s.id(doomed)
	s.sh("rm " + doomed)
	s.gone(doomed)
	if got, want := s.statfs(s.mnt), s.statfs(s.tree); got != want {
		t.Errorf("statfs of the mount is %s, of the tree %s", got, want)
	}
	listed := s.trash("vm")
	if len(listed) != 1 || string(listed[0].Path) != doomed || listed[0].Image.String() != id {
		t.Fatalf("trash is %+v; the id was %s", listed, id)
	}
	s.intact()
	s.intactIn(s.mnt)
	s.sh("echo x > " + doomed)
	r := s.cli(3, "undelete", filepath.Join(s.mnt, doomed))
	if !strings.Contains(r.err, doomed+" is there; move it away") {
		t.Errorf("undelete over another file says %q", r.err)
	}
	s.sh("rm " + doomed)
	r = s.cli(1, "undelete", filepath.Join(s.mnt, "vm/nothing.qcow2"))
	if !strings.Contains(r.err, "vm/nothing.qcow2: nothing that was deleted there can be brought back") {
		t.Errorf("undelete of what was not deleted says %q", r.err)
	}
	s.cli(0, "undelete", filepath.Join(s.mnt, doomed))
	s.want[doomed] = s.refs + "/doomed"
	if got := s.id(doomed); got != id {
		t.Errorf("the id is %s, was %s", got, id)
	}
	s.intact()
	s.intactIn(s.mnt)
	s.clean()
}

func (s *site) id(name string) string {
	s.t.Helper()
	for _, line := range strings.Split(s.cli(0, "info", "--json", filepath.Join(s.mnt, name)).out, "\n") {
		if _, value, ok := strings.Cut(line, `"id"`); ok {
			return strings.Trim(value, `: ,"`)
		}
	}
	s.t.Fatalf("%s has no id", name)
	return ""
}

func (s *site) statfs(at string) string {
	s.t.Helper()
	var st unix.Statfs_t
	mustDo(s.t, unix.Statfs(at, &st))
	return fmt.Sprint(st.Blocks, st.Files, st.Bfree/64, st.Bavail/64) // others write, too
}

// Without hard links names are changed by rename.
func TestE2ENoHardLinks(t *testing.T) {
	s := newSite(t)
	s.branched()
	s.keepDoomed()
	s.mount(later...)
	defer s.withoutLinks()()
	s.sh("rm " + doomed)
	s.gone(doomed)
	s.intact()
	s.intactIn(s.mnt)
	s.cli(0, "undelete", filepath.Join(s.mnt, doomed))
	s.want[doomed] = s.refs + "/doomed"
	s.intact()
	s.intactIn(s.mnt)
	s.keepDoomed()
	s.sh("rm " + doomed)
	s.gone(doomed)
	s.hurry()
	s.intact()
	s.clean()
}

// withoutLinks has every linkat of the daemon fail with EPERM.
func (s *site) withoutLinks() (stop func()) {
	s.t.Helper()
	strace := exec.Command("strace", "-f", "-q", "-e", "trace=linkat", "-e", "inject=linkat:error=EPERM", "-p", fmt.Sprint(s.pid()))
	var said bytes.Buffer
	strace.Stderr = &said
	mustDo(s.t, strace.Start())
	s.until("strace is attached", func() bool {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", s.pid()))
		mustDo(s.t, err)
		for _, task := range tasks {
			if status, err := os.ReadFile(task); err == nil && strings.Contains(string(status), "TracerPid:\t0\n") {
				return false
			}
		}
		return true
	})
	return func() {
		strace.Process.Signal(syscall.SIGINT)
		strace.Wait()
		if n := strings.Count(said.String(), "(INJECTED)"); n < 3 {
			s.t.Errorf("%d links failed, want at least 3: %s", n, said.String())
		}
	}
}
