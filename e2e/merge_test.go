package e2e

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const mergedChild = "vm/T2/r.qcow2"

// mergeMeanwhile deletes the doomed image by a merge downwards, calls f while it
// waits at label, and returns what rm said.
func (s *site) mergeMeanwhile(label string, f func()) error {
	s.t.Helper()
	fifo := filepath.Join(s.refs, "fifo")
	mustDo(s.t, unix.Mkfifo(fifo, 0o600))
	s.fail = label + "=pause:" + fifo
	s.mount()
	rm := exec.Command("rm", filepath.Join(s.mnt, doomed))
	mustDo(s.t, rm.Start())
	var w *os.File
	for range 1000 { // it opens when the daemon has come to the label
		var err error
		if w, err = os.OpenFile(fifo, os.O_WRONLY|unix.O_NONBLOCK, 0); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if w == nil {
		s.t.Fatalf("%s was never met", label)
	}
	f()
	mustDo(s.t, w.Close())
	s.fail = ""
	return rm.Wait()
}

// again mounts once more, with all that recovery does.
func (s *site) again() {
	s.t.Helper()
	s.intact()
	s.umount()
	s.mount()
	s.intact()
	s.intactIn(s.mnt)
}

// hold has a qemu read an image, so that the merge cannot be finished.
func (s *site) hold(name string) (release func()) {
	s.t.Helper()
	qemu := exec.Command("qemu-io", "-r", "-f", "qcow2", filepath.Join(s.tree, name))
	in, err := qemu.StdinPipe()
	mustDo(s.t, err)
	out, err := qemu.StdoutPipe()
	mustDo(s.t, err)
	mustDo(s.t, qemu.Start())
	lines := bufio.NewScanner(out)
	_, err = io.WriteString(in, "length\n")
	mustDo(s.t, err)
	for lines.Scan() && !strings.Contains(lines.Text(), "MiB") {
	}
	return func() { in.Close(); _ = qemu.Wait() }
}

// TestE2EUnfinishedMergeKeepsParents: what an unfinished merge stands on is needed
// although only a hidden file names it, and may go once that has absorbed it.
func TestE2EUnfinishedMergeKeepsParents(t *testing.T) {
	for _, surveys := range []int{0, 1} { // the graph must not depend on how often it was asked
		s := newSite(t)
		s.line(2, "base/T%d/r.qcow2")
		s.image("vm/T1/r.qcow2", "base/T1/r.qcow2")
		s.run("qemu-io", "-f", "qcow2", "-c", "write -q -P 99 20M 5M", filepath.Join(s.tree, doomed))
		s.remember(doomed)
		s.image(mergedChild, doomed)
		s.keepDoomed()
		release := func() {}
		if err := s.mergeMeanwhile("MERGE:UNLINKED", func() { release = s.hold(mergedChild) }); err != nil {
			t.Errorf("rm: %v, of an image that is deleted", err)
		}
		release()
		for range surveys {
			s.cli(0, "scan", s.mnt)
		}
		s.busy("rm", "base/T0/r.qcow2")
		s.intact()
		s.run("rm", filepath.Join(s.mnt, "base/T1/r.qcow2")) // the hidden file absorbs it
		s.gone("base/T1/r.qcow2")
		s.busy("rm", "base/T0/r.qcow2")
		s.again()
		s.clean()
		s.umount()
	}
}

// TestE2EMergeBegunIsNotForgotten: a merge that was killed before its parent's own
// name was gone, and cannot be gone on with at the next mount because somebody
// reads the parent, waits for the one after that.
func TestE2EMergeBegunIsNotForgotten(t *testing.T) {
	s := newSite(t)
	s.stacked()
	s.keepDoomed()
	s.fail = "MERGE:NAMED=kill"
	s.mount()
	s.deleteAndDie(doomed)
	s.fail = ""
	release := s.hold(doomed)
	s.mount()
	s.intact()
	release()
	s.again()
	s.gone(doomed)
	s.clean()
}

// TestE2EMergeDownMeanwhile: names and content that appear around the mount while
// an image is merged downwards.
func TestE2EMergeDownMeanwhile(t *testing.T) {
	in := func(s *site, name string) string { return filepath.Join(s.tree, name) }
	const parents, childs = "vm/T1/second.qcow2", "vm/T2/second.qcow2"
	for _, c := range []struct {
		name, label string
		act         func(s *site)
		refused     bool
		open        bool // the merge cannot be finished as long as that is there
	}{
		{"a second name of the parent", "MERGE:LINKED", func(s *site) {
			mustDo(s.t, os.Link(in(s, doomed), in(s, parents)))
			s.want[parents] = s.refs + "/doomed"
		}, true, false},
		{"a child of the parent", "MERGE:NAMED", func(s *site) {
			s.want[parents] = s.refs + "/new"
			s.image(parents, doomed)
		}, true, false},
		{"a reader of the parent", "MERGE:NAMED", func(s *site) {
			f, err := os.Open(in(s, doomed))
			mustDo(s.t, err)
			s.t.Cleanup(func() { f.Close() })
		}, true, false},
		{"a copy of the child", "ABSORB:STORE", func(s *site) {
			s.run("cp", in(s, mergedChild), in(s, childs))
			s.want[childs] = s.want[mergedChild]
		}, false, true},
		{"a second name of the child", "ABSORB:LINK", func(s *site) {
			mustDo(s.t, os.Link(in(s, mergedChild), in(s, childs)))
			s.want[childs] = s.want[mergedChild]
		}, false, true},
		{"the child is written to", "ABSORB:LINK", func(s *site) {
			// A writer that takes no locks.
			s.run("qemu-io", "-f", "qcow2", "-c", "open -o file.locking=off "+in(s, mergedChild), "-c", "write -q -P 77 7M 64k")
			s.remember(mergedChild)
			s.remember("vm/T3/r.qcow2")
		}, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t)
			s.stacked()
			s.keepDoomed()
			then := time.Unix(1600000000, 0)
			for _, name := range []string{doomed, mergedChild} {
				mustDo(t, os.Chtimes(in(s, name), then, then))
			}
			err := s.mergeMeanwhile(c.label, func() { c.act(s) })
			for _, name := range []string{doomed, mergedChild} {
				if st, err := os.Stat(in(s, name)); c.name == "a reader of the parent" && (err != nil || !st.ModTime().Equal(then)) {
					t.Errorf("%s is not as old as it was before a refusal: %v", name, err)
				}
			}
			if (err != nil) != c.refused {
				t.Errorf("rm: %v", err)
			}
			if c.refused {
				s.want[doomed] = s.refs + "/doomed"
			}
			s.again()
			if !c.open {
				s.clean()
			}
			s.umount()
		})
	}
}
