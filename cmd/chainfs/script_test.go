package main

import (
	"os"
	"os/exec"
	"path/filepath"
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
			"chain": makeChain, "exit": exitWith, "sum": guestSum,
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
