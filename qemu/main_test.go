package qemu

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test binary run under another name is a qemu-img that misbehaves.
func TestMain(m *testing.M) {
	if fake, ok := strings.CutPrefix(filepath.Base(os.Args[0]), "fake-"); ok {
		os.Exit(fakeQemuImg(fake, os.Args[1:]))
	}
	os.Exit(m.Run())
}

func fakeQemuImg(fake string, args []string) int {
	act := args[0]
	switch fake + " " + act {
	case "differs compare":
		return 1
	case "unreadable compare":
		fmt.Fprintln(os.Stderr, "qemu-img: cannot read")
		return 2
	case "fails rebase":
		fmt.Fprintln(os.Stderr, "qemu-img: it\x1b[31m did not work")
		return 1
	case "full rebase":
		fmt.Fprintln(os.Stderr, "qemu-img: Error while writing: No space left on device")
		return 1
	case "idle rebase":
		return 0
	case "unsafe rebase":
		args = slices.Insert(args, 1, "-u")
	case "corrupt check":
		return 2
	case "leaks check":
		return 3
	case "broken check":
		return 1
	case "dies rebase":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case "sleeps rebase":
		_ = exec.Command("sleep", "600").Run() // a grandchild that keeps the pipes open
		time.Sleep(time.Hour)
	}
	cmd := exec.Command("qemu-img", args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return max(cmd.ProcessState.ExitCode(), 1)
	}
	return 0
}

// fake is the name of a qemu-img that misbehaves.
func fake(t *testing.T, name string) string {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "fake-"+name)
	if err := os.Symlink(self, link); err != nil {
		t.Fatal(err)
	}
	return link
}
