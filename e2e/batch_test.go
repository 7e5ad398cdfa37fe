package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/chainfs/chainfs/chain"
)

// batch is a full and ten incrementals, each with data of its own and data that
// lies over its parent's. The last few have more than those before, so that
// absorbing is the way that copies least.
func (s *site) batch() (names []string) {
	s.t.Helper()
	for i := range 11 {
		names = append(names, fmt.Sprintf("d/T%02d/r.qcow2", i))
		parent := ""
		if i > 0 {
			parent = names[i-1]
		}
		s.image(names[i], parent)
		s.run("qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -q -P %d %dk 256k", i+1, 1024+i*128),
			"-c", fmt.Sprintf("write -q -P %d 10M %dk", i+101, 64*(1+i*i)), filepath.Join(s.tree, names[i]))
		s.remember(names[i])
	}
	return names
}

// least is how many bytes a child must copy when so many layers below it go: those
// that it reads from them, by qemu-img's map.
func (s *site) least(child string, layers int) (n int64) {
	s.t.Helper()
	var extents []struct {
		Length int64
		Depth  int
		Data   bool
	}
	mustDo(s.t, json.Unmarshal([]byte(s.run("qemu-img", "map", "--output=json", filepath.Join(s.tree, child))), &extents))
	for _, e := range extents {
		if e.Data && e.Depth >= 1 && e.Depth <= layers {
			n += e.Length
		}
	}
	return n
}

// TestE2EWholeVMLater removes a VM's incrementals, and all of it, in several orders,
// with everything left for later: nothing stands on them in the end, and nothing is
// copied.
func TestE2EWholeVMLater(t *testing.T) {
	for _, c := range []struct {
		name, script string
		full         bool // the full is refused where something stands on it when its turn comes
	}{
		{"newest first", "rm -rf $(ls -dr d/*)", false},
		{"oldest first", "rm -rf d/* 2> /dev/null || true", true},
		{"with the directory", "rm -rf d", false},
		{"at random", "rm -rf d/T00 $(ls -d d/T0[1-9] d/T10 | shuf --random-source=/dev/zero) 2> /dev/null || true", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t)
			names := s.batch()
			s.mount("--inline-limit", "0", "--settle", "1s")
			s.sh(c.script)
			s.gone(names[1:]...)
			if !c.full {
				s.gone(names[0])
			}
			s.intact()
			s.cli(0, "wait", s.mnt)
			if n := s.copied(); n != 0 {
				t.Errorf("%d bytes were copied, want none", n)
			}
			s.intact()
			s.clean()
		})
	}
}

// TestE2EFindDelete deletes what is old, the oldest first. Each child that stays
// copies once, what it lacks and what goes has. Both of a branch stay.
func TestE2EFindDelete(t *testing.T) {
	s := newSite(t)
	names := s.batch()
	branch := "d/B06/r.qcow2"
	s.image(branch, names[5])
	s.run("qemu-io", "-f", "qcow2", "-c", "write -q -P 3 10M 2M", filepath.Join(s.tree, branch))
	s.remember(branch)
	old := names[1:6]
	for i, name := range old {
		then := time.Now().Add(-time.Duration(40-i) * 24 * time.Hour)
		mustDo(t, os.Chtimes(filepath.Join(s.tree, name), then, then))
	}
	want := s.least(names[6], len(old)) + s.least(branch, len(old))
	s.mount("--inline-limit", "0", "--settle", "1s")
	s.sh("find d -name '*.qcow2' -mtime +30 | sort > list; xargs rm < list; rm list")
	s.gone(old...)
	s.intact()
	s.intactIn(s.mnt)
	s.cli(0, "wait", s.mnt)
	if got := s.copied(); got != want || want == 0 {
		t.Errorf("%d bytes were copied, want %d", got, want)
	}
	for _, op := range s.ops().Past {
		if op.Act == chain.ActReclaim && len(op.Plan.Paths) != len(old) {
			t.Errorf("an operation reclaimed %q, want all at once", op.Plan.Paths)
		}
	}
	s.intact()
	s.clean()
}

// With the options that nobody gives, what copies much is left for later, and what
// copies little is not.
func TestE2EDefaultLimit(t *testing.T) {
	s := newSite(t)
	s.image("vm/T0.qcow2", "")
	for i, mib := range []string{"80", "2"} {
		name := fmt.Sprintf("vm/T%d.qcow2", i+1)
		s.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", fmt.Sprintf("T%d.qcow2", i), "-F", "qcow2", filepath.Join(s.tree, name), []string{"100M", "101M"}[i])
		s.run("qemu-io", "-f", "qcow2", "-c", "write -q -P 9 0 "+mib+"M", filepath.Join(s.tree, name))
		s.remember(name)
	}
	s.image("vm/T3.qcow2", "vm/T2.qcow2")
	want := s.least("vm/T2.qcow2", 1)
	s.mount()
	s.sh("rm vm/T1.qcow2")
	s.gone("vm/T1.qcow2")
	if left := s.hidden(); len(left) != 1 {
		t.Errorf("condemned are %q, want vm/T1.qcow2", left)
	}
	s.cli(0, "wait", s.mnt)
	if got := s.copied(); got != want || want < 64<<20 {
		t.Errorf("%d bytes were copied, want %d", got, want)
	}
	s.sh("rm vm/T2.qcow2")
	s.gone("vm/T2.qcow2")
	s.noLeftovers()
	s.intact()
	s.clean()
}
