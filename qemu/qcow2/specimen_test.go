package qcow2

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// specimen is an image that a test damages by hand.
type specimen struct {
	t    *testing.T
	file string
	b    []byte
	h    *Header
	geometry
}

// makeImage makes x in a directory of its own: qemu-img create with args, then
// what qemu-io does by commands.
func makeImage(t *testing.T, args []string, commands ...string) string {
	t.Helper()
	if _, err := exec.LookPath("qemu-io"); err != nil {
		t.Skip("needs qemu-img and qemu-io: ", err)
	}
	dir := t.TempDir()
	runIn(t, dir, "qemu-img", append([]string{"create", "-q", "-f", "qcow2"}, args...)...)
	if len(commands) > 0 {
		ioIn(t, dir, commands...)
	}
	return filepath.Join(dir, "x")
}

func ioIn(t *testing.T, dir string, commands ...string) {
	t.Helper()
	var io []string
	for _, c := range commands {
		io = append(io, "-c", c)
	}
	runIn(t, dir, "qemu-io", append(append([]string{"-f", "qcow2"}, io...), "x")...)
}

func openSpecimen(t *testing.T, file string) *specimen {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	h, err := ReadHeader(padded(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return &specimen{t, file, b, h, h.geometry()}
}

func (s *specimen) save() {
	s.t.Helper()
	if err := os.WriteFile(s.file, s.b, 0o644); err != nil {
		s.t.Fatal(err)
	}
}

func (s *specimen) u64(off int64) uint64       { return binary.BigEndian.Uint64(s.b[off:]) }
func (s *specimen) put(off int64, v uint64)    { binary.BigEndian.PutUint64(s.b[off:], v) }
func (s *specimen) put32(off int64, v uint32)  { binary.BigEndian.PutUint32(s.b[off:], v) }
func (s *specimen) xor(off int64, bits uint64) { s.put(off, s.u64(off)^bits) }

// l1 is where the file has an L1 entry.
func (s *specimen) l1(i int64) int64 { return int64(s.h.L1Offset) + i*8 }

// l2 is where the file has the L2 entry of a cluster of the disk.
func (s *specimen) l2(guest int64) int64 {
	table := int64(s.u64(s.l1(guest/s.tableSpan())) & offsetMask)
	return table + guest%s.tableSpan()/s.cluster()*s.entrySize()
}

// host is where a cluster of the disk lies.
func (s *specimen) host(guest int64) int64 { return int64(s.u64(s.l2(guest)) & offsetMask) }

// block is where the refcount block of a cluster of the file lies, and the
// cluster's place in it.
func (s *specimen) block(cluster int64) (off, i int64) {
	per := s.cluster() * 8 >> s.h.RefcountOrder
	return int64(s.u64(int64(s.h.RefcountTableOffset) + cluster/per*8)), cluster % per
}

func (s *specimen) count(off int64) uint64 {
	block, i := s.block(off / s.cluster())
	return count(s.b[block:], s.h.RefcountOrder, i)
}

func (s *specimen) setCount(off int64, n uint64) {
	block, i := s.block(off / s.cluster())
	setCount(s.b[block:], s.h.RefcountOrder, i, n)
}

// grow adds n clusters at the end, and returns where.
func (s *specimen) grow(n int64) int64 {
	end := (int64(len(s.b)) + s.cluster() - 1) / s.cluster() * s.cluster()
	s.b = append(s.b, make([]byte, end+n*s.cluster()-int64(len(s.b)))...)
	return end
}

// verdict is what "qemu-img check" says.
type verdict struct {
	Corruptions int64
	Leaks       int64
	Errors      int64 `json:"check-errors"`
	unreadable  bool  // it said nothing
}

func (v verdict) sound() bool { return v == verdict{} }

func (v verdict) bad() bool { return v.unreadable || v.Errors > 0 || v.Corruptions > 0 }

func qemuCheck(t *testing.T, file string) (v verdict) {
	t.Helper()
	cmd := exec.Command("qemu-img", "check", "-f", "qcow2", "--output=json", file)
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if json.Unmarshal(out, &v) != nil {
		v.unreadable = true
	}
	return v
}

func check(t *testing.T, file string) (*Findings, error) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return Check(t.Context(), OSFile{f})
}

// copyOf is a copy of an image, in a directory of its own.
func copyOf(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(to, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return to
}
