package main

import (
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"chainfs": main})
}

// TestScripts runs the command without a mount, on real images. The scripts'
// own commands:
//
//	chain NAME...   makes NAME/disk.qcow2 each on the one before, the first a full
//	exit N CMD...   runs a command that must end with that status
//	sum FILE IMAGE  writes a checksum of what a guest reads from IMAGE
//	leak IMAGE N    adds N clusters to IMAGE that are counted and nobody's
//	uncount IMAGE   sets the refcount of IMAGE's L1 table to zero
func TestScripts(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("qemu-img is not installed (apt install qemu-utils)")
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Setenv("CHAINFS_STORE", filepath.Join(env.WorkDir, "store"))
			env.Setenv("XDG_RUNTIME_DIR", env.WorkDir)
			env.Setenv("TZ", "UTC")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"chain": makeChain, "exit": exitWith, "sum": guestSum, "leak": leakClusters, "uncount": uncount,
		},
	})
}

func makeChain(ts *testscript.TestScript, _ bool, names []string) {
	parent := ""
	for i, name := range names {
		image := ts.MkAbs(name) + "/disk.qcow2"
		ts.Check(os.MkdirAll(filepath.Dir(image), 0o755))
		args := []string{"create", "-q", "-f", "qcow2"}
		if parent != "" {
			rel, err := filepath.Rel(filepath.Dir(image), parent)
			ts.Check(err)
			args = append(args, "-F", "qcow2", "-b", rel)
		}
		ts.Check(ts.Exec("qemu-img", append(args, image, "8M")...))
		ts.Check(ts.Exec("qemu-io", "-f", "qcow2", "-c", "write -P "+string(rune('1'+i))+" "+string(rune('0'+i))+"M 1M", image))
		ts.Check(os.WriteFile(filepath.Join(filepath.Dir(image), "domain.xml"), []byte("<domain/>\n"), 0o644))
		parent = image
	}
}

func exitWith(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	got := "0"
	if err != nil {
		got = strings.TrimPrefix(err.Error(), "exit status ")
	}
	if got != args[0] {
		ts.Fatalf("%s ended with %s, want %s\n%s", strings.Join(args[1:], " "), got, args[0], ts.ReadFile("stderr"))
	}
}

func guestSum(ts *testscript.TestScript, _ bool, args []string) {
	raw := ts.MkAbs(args[0])
	ts.Check(ts.Exec("qemu-img", "convert", "-f", "qcow2", "-O", "raw", ts.MkAbs(args[1]), raw))
}

// leakClusters and uncount write to the first refcount block of an image as
// qemu-img makes it: clusters of 64 KiB, counts of 16 bits.
func leakClusters(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	b := []byte(ts.ReadFile(args[0]))
	b = append(b, make([]byte, (len(b)+cluster-1)/cluster*cluster-len(b))...)
	for range n {
		setRefcount(b, len(b), 1)
		b = append(b, make([]byte, cluster)...)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o644))
}

func uncount(ts *testscript.TestScript, _ bool, args []string) {
	b := []byte(ts.ReadFile(args[0]))
	setRefcount(b, int(binary.BigEndian.Uint64(b[40:])), 0)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o644))
}

const cluster = 64 << 10

func setRefcount(b []byte, off int, n uint16) {
	block := binary.BigEndian.Uint64(b[binary.BigEndian.Uint64(b[48:]):])
	binary.BigEndian.PutUint16(b[int(block)+off/cluster*2:], n)
}
