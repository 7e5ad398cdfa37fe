package qemu

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chainfs/chainfs/chain"
)

// open has a qemu-io open an image, and returns when it has. close ends it.
func (tr *tree) open(p chain.Path, args ...string) (pid int, end func()) {
	tr.t.Helper()
	cmd := exec.Command("qemu-io", append(append([]string{"-f", "qcow2"}, args...), string(p))...)
	cmd.Dir = tr.dir
	in, err := cmd.StdinPipe()
	if err != nil {
		tr.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		tr.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tr.t.Fatal(err)
	}
	var ended bool
	end = func() {
		if !ended {
			ended = true
			_ = in.Close() // the end of its commands
			_ = cmd.Wait()
		}
	}
	tr.t.Cleanup(end)
	if _, err := io.WriteString(in, "length\n"); err != nil {
		tr.t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if strings.Contains(lines.Text(), "64 MiB") {
			return cmd.Process.Pid, end
		}
	}
	tr.t.Fatalf("qemu-io did not open %s", p)
	return 0, nil
}

func TestInUse(t *testing.T) {
	needQemu(t)
	tr := newTree(t)
	tr.create("a", "")
	locks := NewLocks(tr)
	check := func(want chain.Use) {
		t.Helper()
		got, err := locks.InUse("a")
		if err != nil || got != want {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
	by := func(pid int) string { return fmt.Sprintf("qemu-io (process %d)", pid) }
	check(chain.Use{})
	pid, end := tr.open("a")
	check(chain.Use{Locked: true, Writer: true, By: by(pid)})
	end()
	check(chain.Use{})
	pid, end = tr.open("a", "-r")
	check(chain.Use{Locked: true, By: by(pid)})
	end()
	check(chain.Use{})
	if use, err := locks.InUse("missing"); err != nil || use != (chain.Use{}) {
		t.Errorf("a missing file: got %+v, %v", use, err)
	}
}

// Both directions: what we lock keeps qemu from writing, and what qemu writes
// to we cannot lock; readers are let be.
func TestLockImageAgainstQemu(t *testing.T) {
	needQemu(t)
	tr := newTree(t)
	tr.create("a", "")
	tr.create("b", "a")
	lock := func() (*os.File, error) {
		f, err := os.Open(filepath.Join(tr.dir, "a"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f, LockImage(f)
	}
	f, err := lock()
	if err != nil {
		t.Fatal(err)
	}
	if err := tryWrite(tr, "a"); err == nil {
		t.Error("qemu-io could write to a locked image")
	}
	tr.qemu("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", "a", "b")
	if _, err := lock(); err != nil {
		t.Errorf("two of us: %v", err)
	}
	f.Close()
	if err := tryWrite(tr, "a"); err == nil {
		t.Error("qemu-io could write although the second lock is there")
	}
}

func TestLockImageRefused(t *testing.T) {
	needQemu(t)
	tr := newTree(t)
	tr.create("a", "")
	f, err := tr.Open("a")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, end := tr.open("a")
	if err := LockImage(f); !errors.Is(err, ErrLocked) {
		t.Errorf("with a writer: got %v", err)
	}
	end()
	// Nothing of the refused lock may be left.
	if err := tryWrite(tr, "a"); err != nil {
		t.Errorf("after a refused lock: %v", err)
	}
	_, end = tr.open("a", "-r")
	defer end()
	if err := LockImage(f); err != nil {
		t.Errorf("with a reader: %v", err)
	}
}

// Writers that do not know of qemu's locks.
func TestRebaseWithPlainWriter(t *testing.T) {
	needQemu(t)
	for _, p := range []chain.Path{"2/b", "1/a", "0/full"} {
		tr := newTree(t)
		tr.chain()
		f, err := os.OpenFile(tr.host(p), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		use, err := NewLocks(tr).InUse(p)
		if err != nil {
			t.Fatal(err)
		}
		if !use.Writer {
			t.Skip("needs a file system with leases")
		}
		err = NewRebaser(tr, Options{}).Rebase(t.Context(), tr.job(), nil)
		checkRefused(t, err, nil, string(p)+" is open for writing by a process")
		f.Close()
		if use, err := NewLocks(tr).InUse(p); err != nil || use != (chain.Use{}) {
			t.Errorf("after it: %+v, %v", use, err)
		}
	}
}

func tryWrite(tr *tree, p chain.Path) error {
	cmd := exec.Command("qemu-io", "-f", "qcow2", "-c", "write 0 512", string(p))
	cmd.Dir = tr.dir
	return cmd.Run()
}

func TestRebaseOfImageInUse(t *testing.T) {
	needQemu(t)
	for _, c := range []struct {
		path   chain.Path
		args   []string
		refuse bool
	}{
		{"2/b", nil, true},
		{"2/b", []string{"-r"}, true},
		{"1/a", nil, true},
		{"0/full", nil, true},
		{"0/full", []string{"-r"}, false},
	} {
		for _, late := range []bool{false, true} {
			t.Run(fmt.Sprint(c.path, c.args, late), func(t *testing.T) {
				tr := newTree(t)
				tr.chain()
				before := tr.guest("2/b")
				job := tr.job()
				opts := Options{}
				switch {
				case !late:
					tr.open(c.path, c.args...)
				case c.args == nil: // nobody gets in to write any more
					opts.Step = func(string) {
						if tryWrite(tr, c.path) == nil {
							t.Error("qemu-io could write meanwhile")
						}
					}
					c.refuse = false
					if c.path == "2/b" {
						opts.Step = nil // from the rename on it is free again
					}
				default:
					opts.Step = func(l string) {
						if l == "REBASE:RENAME" {
							tr.open(c.path, c.args...)
						}
					}
				}
				err := NewRebaser(tr, opts).Rebase(t.Context(), job, nil)
				if !c.refuse {
					if err != nil {
						t.Fatal(err)
					}
					checkRebased(t, tr, before)
					return
				}
				checkRefused(t, err, nil, string(c.path)+" is open for ")
				if h := tr.header("2/b"); h.Backing != "../1/a" || tr.names("2") != "b" {
					t.Errorf("got %+v in %s", h, tr.names("2"))
				}
			})
		}
	}
}
