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
	eachWay(t, func(t *testing.T, way way) {
		for _, p := range []chain.Path{"2/b", "1/a", "0/full"} {
			tr := newTree(t)
			tr.chain()
			job, before := tr.job(), state(t, tr)
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
			err = NewRebaser(tr, way.opts).Rebase(t.Context(), job, nil)
			checkRefused(t, err, nil, string(p)+" is open for writing by a process")
			f.Close()
			if state(t, tr) != before {
				t.Error("the child was changed")
			}
			if use, err := NewLocks(tr).InUse(p); err != nil || use != (chain.Use{}) {
				t.Errorf("after it: %+v, %v", use, err)
			}
		}
	})
}

func tryWrite(tr *tree, p chain.Path) error {
	cmd := exec.Command("qemu-io", "-f", "qcow2", "-c", "write 0 512", string(p))
	cmd.Dir = tr.dir
	return cmd.Run()
}

// Users that were there first: of the child nobody may read either, because it
// grows under a qemu that asked for its length when it opened it.
func TestRebaseOfImageInUse(t *testing.T) {
	needQemu(t)
	eachWay(t, func(t *testing.T, way way) {
		for _, c := range []struct {
			path   chain.Path
			args   []string
			refuse bool
		}{
			{"2/b", nil, true},
			{"2/b", []string{"-r"}, true},
			{"1/a", nil, true},
			{"1/a", []string{"-r"}, false},
			{"0/full", nil, true},
			{"0/full", []string{"-r"}, false},
		} {
			t.Run(fmt.Sprint(c.path, c.args), func(t *testing.T) {
				tr := newTree(t)
				tr.chain()
				guest := tr.guest("2/b")
				job := tr.job()
				pid, _ := tr.open(c.path, c.args...)
				before := state(t, tr)
				err := NewRebaser(tr, way.opts).Rebase(t.Context(), job, nil)
				if !c.refuse {
					if err != nil {
						t.Fatal(err)
					}
					checkRebased(t, tr, guest)
					return
				}
				checkRefused(t, err, nil, string(c.path)+" is open for ")
				checkRefused(t, err, nil, fmt.Sprintf("by qemu-io (process %d)", pid))
				if state(t, tr) != before {
					t.Error("the child was changed")
				}
			})
		}
	})
}

func TestRebaseOfExportedImage(t *testing.T) {
	needQemu(t)
	if _, err := exec.LookPath("qemu-nbd"); err != nil {
		t.Skip("needs a server: ", err)
	}
	eachWay(t, func(t *testing.T, way way) {
		tr := newTree(t)
		tr.chain()
		job, before := tr.job(), state(t, tr)
		pidFile := filepath.Join(t.TempDir(), "pid")
		tr.qemu("qemu-nbd", "--fork", "-r", "-t", "-f", "qcow2", "-k", filepath.Join(t.TempDir(), "s"), "--pid-file", pidFile, "2/b")
		t.Cleanup(func() {
			b, _ := os.ReadFile(pidFile)
			tr.qemu("kill", strings.TrimSpace(string(b)))
		})
		err := NewRebaser(tr, way.opts).Rebase(t.Context(), job, nil)
		checkRefused(t, err, nil, "2/b is open for reading by qemu-nbd")
		if state(t, tr) != before {
			t.Error("the child was changed")
		}
	})
}

// Those that come while a rebase runs: nobody gets in to write.
func TestRebaseKeepsWritersOut(t *testing.T) {
	needQemu(t)
	eachWay(t, func(t *testing.T, way way) {
		for _, p := range []chain.Path{"2/b", "1/a", "0/full"} {
			tr := newTree(t)
			tr.chain()
			before := tr.guest("2/b")
			err := NewRebaser(tr, way.stepping(func(l string) {
				// From its rename on a child that was replaced is free again.
				free := p == "2/b" && (l == "REBASE:RENAMED" || l == "REBASE:SYNCED")
				if !free && tryWrite(tr, p) == nil {
					t.Errorf("at %s qemu-io could write to %s", l, p)
				}
			})).Rebase(t.Context(), tr.job(), nil)
			if err != nil {
				t.Fatal(err)
			}
			checkRebased(t, tr, before)
		}
	})
}

// A reader that came meanwhile has the file that is about to lose its name.
func TestRebaseByCopyWithLateReader(t *testing.T) {
	needQemu(t)
	tr := newTree(t)
	tr.chain()
	opts := Options{ByCopy: true, Step: func(l string) {
		if l == "REBASE:RENAME" {
			tr.open("2/b", "-r")
		}
	}}
	err := NewRebaser(tr, opts).Rebase(t.Context(), tr.job(), nil)
	checkRefused(t, err, nil, "2/b is open for reading")
	if h := tr.header("2/b"); h.Backing != "../1/a" || tr.names("2") != "b" {
		t.Errorf("got %+v in %s", h, tr.names("2"))
	}
}
