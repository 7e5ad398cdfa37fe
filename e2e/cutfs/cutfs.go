// Package cutfs gives tests a small file system that can lose its power: what
// was not synced by then is gone, as after a real power cut.
package cutfs

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// LoopVariable names the environment variable that picks the loop device to
// use, where a machine's others belong to somebody else.
const LoopVariable = "CHAINFS_TEST_LOOP"

// FS is a mounted ext4 in a file.
type FS struct {
	Dir  string
	loop string
	t    testing.TB
}

// New mounts a new ext4 of so many MiB until the test ends. It skips the test
// where that takes privileges or tools that are lacking.
func New(t testing.TB, mib int64) *FS {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a loop device needs root")
	}
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skip("mkfs.ext4 is not installed")
	}
	base := t.TempDir()
	image := filepath.Join(base, "image")
	fs := &FS{Dir: filepath.Join(base, "mnt"), t: t}
	must(t, os.Mkdir(fs.Dir, 0o755))
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, mib<<20))
	fs.run("mkfs.ext4", "-q", "-F", image)
	if fs.loop = os.Getenv(LoopVariable); fs.loop != "" {
		fs.run("losetup", fs.loop, image)
	} else {
		fs.loop = strings.TrimSpace(fs.run("losetup", "--find", "--show", image))
	}
	t.Cleanup(func() { fs.run("losetup", "--detach", fs.loop) })
	fs.mount()
	t.Cleanup(fs.Unmount)
	return fs
}

// ioctlShutdown is FS_IOC_SHUTDOWN, noLogFlush its flag that lets nothing more
// reach the device, not even what is in the journal.
const (
	ioctlShutdown = 0x8004587d
	noLogFlush    = uint32(2)
)

// Cut takes the power away: everything after it is EIO and nothing is written.
func (fs *FS) Cut() {
	fs.t.Helper()
	dir, err := os.Open(fs.Dir)
	must(fs.t, err)
	defer dir.Close()
	flag := noLogFlush
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), ioctlShutdown, uintptr(unsafe.Pointer(&flag))); errno != 0 {
		fs.t.Fatalf("shut down %s: %v", fs.Dir, errno)
	}
}

// Restore mounts it again after a Cut, as at the next start of the machine.
// No file on it may be open.
func (fs *FS) Restore() {
	fs.t.Helper()
	fs.Unmount()
	fs.mount()
}

func (fs *FS) mount() { fs.run("mount", "-t", "ext4", fs.loop, fs.Dir) }

// Unmount unmounts it, even while files on it are open.
func (fs *FS) Unmount() {
	fs.t.Helper()
	err := unix.Unmount(fs.Dir, 0)
	if err == unix.EBUSY {
		err = unix.Unmount(fs.Dir, unix.MNT_DETACH)
	}
	if err != nil && err != unix.EINVAL { // EINVAL: it is not mounted any more
		fs.t.Errorf("unmount %s: %v", fs.Dir, err)
	}
}

func (fs *FS) run(name string, args ...string) string {
	fs.t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		fs.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
