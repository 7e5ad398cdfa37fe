package e2e

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chainfs/chainfs/chain"
)

// TestE2EGigabyte deletes an incremental of which 1 GiB is to be copied. While that
// is copied everything in its directory answers.
func TestE2EGigabyte(t *testing.T) {
	s := newSite(t)
	s.gigabyte()
	s.mount("--settle", "1s", "--limit-rate", "150M")
	plain := t.TempDir()
	mustDo(t, os.WriteFile(plain+"/T1.qcow2", nil, 0o644))
	took := timed(t, "rm", s.mnt+"/vm/T1.qcow2")
	t.Logf("rm: %v; in a plain directory: %v", took, timed(t, "rm", plain+"/T1.qcow2"))
	s.absent("vm/T1.qcow2")
	s.readsGigabyte()
	s.until("it copies", func() bool {
		p := s.current()
		return p != nil && p.Status == chain.Running && p.Done > 0
	})
	ours, theirs := probe(t, s.mnt+"/vm"), probe(t, plain)
	s.readsGigabyte()
	if p := s.current(); p == nil || p.Status != chain.Running || p.Done >= p.Total {
		t.Errorf("the merge had ended before all was asked: %+v", p)
	}
	for what := range ours {
		t.Logf("%-8s during the merge %v, in a plain directory %v", what, summary(ours[what]), summary(theirs[what]))
	}
	s.cli(0, "wait", s.mnt)
	s.readsGigabyte()
	if got := s.copied(); got != 1<<30 {
		t.Errorf("%d bytes were copied, want %d", got, 1<<30)
	}
	s.clean()
}

// gigabyte is a full, an image with 1 GiB and a child that has nothing.
func (s *site) gigabyte() {
	s.t.Helper()
	mustDo(s.t, os.Mkdir(s.tree+"/vm", 0o755))
	in := func(i int) string { return fmt.Sprintf("%s/vm/T%d.qcow2", s.tree, i) }
	s.run("qemu-img", "create", "-q", "-f", "qcow2", in(0), "2G")
	s.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "T0.qcow2", "-F", "qcow2", in(1), "2G")
	args := []string{"-f", "qcow2"}
	for i := range 8 {
		args = append(args, "-c", fmt.Sprintf("write -q -P %d %dM 128M", i+1, i*128))
	}
	s.run("qemu-io", append(args, in(1))...)
	// The child's disk is larger, so that the child must absorb.
	s.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "T1.qcow2", "-F", "qcow2", in(2), "3G")
}

// readsGigabyte reads some of it with qemu, in the mount and in the tree.
func (s *site) readsGigabyte() {
	s.t.Helper()
	for _, at := range []string{s.mnt, s.tree} {
		args := []string{"-r", "-f", "qcow2"}
		for i := range 8 {
			args = append(args, "-c", fmt.Sprintf("read -q -P %d %dM 4M", i+1, i*128+50))
		}
		r := command(s.t, "qemu-io", append(args, at+"/vm/T2.qcow2")...)
		if r.code != 0 || strings.Contains(r.out+r.err, "failed") {
			s.t.Errorf("the child does not read as before in %s: %s%s", at, r.out, r.err)
		}
	}
}

// probe is how long calls in a directory take.
func probe(t testing.TB, dir string) map[string][]time.Duration {
	t.Helper()
	took := map[string][]time.Duration{}
	time1 := func(what string, f func() error) {
		start := time.Now()
		check(t, f())
		took[what] = append(took[what], time.Since(start))
	}
	for i := range 50 {
		name, moved := fmt.Sprintf("%s/probe%d", dir, i), fmt.Sprintf("%s/moved%d", dir, i)
		time1("create", func() error { return os.WriteFile(name, nil, 0o644) })
		time1("rename", func() error { return os.Rename(name, moved) })
		time1("lookup", func() error { _, err := os.Lstat(moved); return err })
		time1("readdir", func() error { _, err := os.ReadDir(dir); return err })
		time1("unlink", func() error { return os.Remove(moved) })
	}
	return took
}

func summary(took []time.Duration) string {
	return fmt.Sprintf("median %v, maximum %v", median(took).Round(time.Microsecond), slices.Max(took).Round(time.Microsecond))
}

// TestE2EReadersAlways reads the children of an image with qemu, in the mount and in
// the tree, again and again: before it is deleted, while it is condemned and waits,
// while they absorb it, and after.
func TestE2EReadersAlways(t *testing.T) {
	s := newSite(t)
	s.branched()
	parent, _ := s.thick("thick", "24")
	s.keepDoomed()
	delete(s.want, parent)
	reads := map[string]int{}
	look := func(phase string) {
		s.intact()
		s.intactIn(s.mnt)
		reads[phase]++
	}
	s.mount("--inline-limit", "0", "--settle", "1500ms", "--limit-rate", "4M", "--workers", "1")
	look("before")
	s.sh("rm " + doomed)
	look("condemned")
	s.sh("rm " + parent)
	for p := s.current(); p != nil; p = s.current() {
		look(string(p.Status))
		time.Sleep(50 * time.Millisecond)
	}
	look("after")
	t.Logf("reads: %v", reads)
	for _, phase := range []string{"waiting", "running"} {
		if reads[phase] == 0 {
			t.Errorf("nothing was read while it was %s", phase)
		}
	}
	s.absent(doomed, parent)
	s.clean()
}
