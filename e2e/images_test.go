package e2e

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// leak adds n clusters to an image of the tree that are counted and nobody's.
func (s *site) leak(name string, n int) {
	s.t.Helper()
	file := filepath.Join(s.tree, name)
	b, err := os.ReadFile(file)
	mustDo(s.t, err)
	const cluster = 64 << 10
	b = append(b, make([]byte, (len(b)+cluster-1)/cluster*cluster-len(b))...)
	block := binary.BigEndian.Uint64(b[binary.BigEndian.Uint64(b[48:]):])
	for range n {
		binary.BigEndian.PutUint16(b[int(block)+len(b)/cluster*2:], 1)
		b = append(b, make([]byte, cluster)...)
	}
	mustDo(s.t, os.WriteFile(file, b, 0o644))
}

// Leaks are found and removed through the daemon, never in an image in use, and a
// deletion afterwards finds everything as it expects it.
func TestE2ECheckImages(t *testing.T) {
	s := newSite(t)
	s.line(4, "vm/T%d/r.qcow2")
	s.leak("vm/T1/r.qcow2", 3)
	s.leak("vm/T3/r.qcow2", 20)
	s.mount()
	s.cli(0, "check", s.mnt)
	r := s.cli(1, "check", "--images", s.mnt)
	if !strings.Contains(r.out, "vm/T1/r.qcow2: has 3 leaked clusters (192.0 KiB); run chainfs check --images --repair-leaks\n") ||
		strings.Count(r.out, "\n") != 2 || r.err != "" {
		t.Errorf("check --images prints:\n%s%s", r.out, r.err)
	}
	s.cli(0, "check", "--images", s.mnt+"/vm/T2")

	stop := s.qemuHolds("vm/T1/r.qcow2")
	r = s.cli(1, "check", "--repair-leaks", s.mnt)
	if !strings.Contains(r.out, "vm/T3/r.qcow2: had 20 leaked clusters (1.2 MiB); repaired") ||
		!strings.Contains(r.out, "vm/T1/r.qcow2: was not checked: vm/T1/r.qcow2 is open for writing by qemu-io (process ") {
		t.Errorf("with a qemu that writes to T1 it prints:\n%s%s", r.out, r.err)
	}
	stop()
	stop = s.qemuHolds("vm/T2/r.qcow2") // and reads from T1
	r = s.cli(1, "check", "--repair-leaks", s.mnt+"/vm/T1")
	if !strings.Contains(r.out, "and that was not repaired: vm/T1/r.qcow2 is in use by qemu-io (process ") {
		t.Errorf("with a qemu that reads T1 it prints:\n%s%s", r.out, r.err)
	}
	stop()
	s.cli(0, "check", "--repair-leaks", s.mnt+"/vm/T1/r.qcow2")
	s.cli(0, "check", "--images", s.mnt)
	s.intact()
	s.clean()
	s.sh("rm vm/T1/r.qcow2")
	s.gone("vm/T1/r.qcow2")
	s.intact()
	s.umount()

	s.leak("vm/T2/r.qcow2", 1)
	s.mount("-o", "ro")
	s.cli(1, "check", "--images", s.mnt)
	if r := s.cli(1, "check", "--repair-leaks", s.mnt); !strings.Contains(r.err, "read-only") {
		t.Errorf("a read-only mount says %q", r.err)
	}
	s.umount()
	s.offline(1, "check", "--images", s.tree)
	s.offline(0, "check", "--repair-leaks", s.tree)
	s.offline(0, "check", "--images", s.tree)
	s.intact()
}
