// Package e2e drives the built chainfs through real mounts, its command line
// and its socket, with chains made by qemu-img.
//
// The tests need root and /dev/fuse, which they cannot install, and the
// packages named in needed, which they do install.
package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// chainfs is the binary under test, built with failpoints.
var chainfs string

// needed are the programs the tests run, and Debian's packages that have them.
var needed = map[string]string{
	"qemu-img": "qemu-utils", "fusermount3": "fuse3", "mkfs.xfs": "xfsprogs", "mkfs.ext4": "e2fsprogs", "mkfs.btrfs": "btrfs-progs",
	"getfattr": "attr", "python3": "python3", "setfacl": "acl", "strace": "strace",
}

func TestMain(m *testing.M) {
	code, err := testAll(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func testAll(m *testing.M) (int, error) {
	if os.Geteuid() != 0 {
		return 0, fmt.Errorf("these tests mount file systems and need root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return 0, fmt.Errorf("these tests need a kernel with FUSE: %w", err)
	}
	if err := install(); err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("", "chainfs-e2e-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	chainfs = filepath.Join(dir, "chainfs")
	build := exec.Command("go", "build", "-tags", "failpoints", "-o", chainfs, "../cmd/chainfs")
	if out, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("build: %w\n%s", err, out)
	}
	// Temporary directories of this run alone: another may run beside it.
	os.Setenv("TMPDIR", dir)
	code := m.Run()
	return code, leftMounts(dir)
}

// install installs the packages of programs that are missing.
func install() error {
	var packages []string
	for program, pkg := range needed {
		if _, err := exec.LookPath(program); err != nil {
			packages = append(packages, pkg)
		}
	}
	if len(packages) == 0 {
		return nil
	}
	script := "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends " + strings.Join(packages, " ")
	if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
		return fmt.Errorf("install %v: %w\n%s", packages, err, out)
	}
	return nil
}

// leftMounts fails the run when a test left a mount of chainfs behind.
func leftMounts(dir string) error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for _, line := range strings.Split(string(mounts), "\n") {
		if strings.Contains(line, dir+"/") {
			return fmt.Errorf("a mount was left behind: %s", line)
		}
	}
	return nil
}
