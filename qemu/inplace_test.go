package qemu

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/qemu/qcow2"
	"golang.org/x/time/rate"
)

// reader is a qemu-io that has an image open for reading, and has read nothing.
type reader struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func (tr *tree) reader(p chain.Path) *reader { return tr.qemuIO(p, "-r") }

func (tr *tree) qemuIO(p chain.Path, args ...string) *reader {
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
	tr.t.Cleanup(func() {
		in.Close()
		_ = cmd.Wait()
	})
	r := &reader{tr.t, cmd, in, bufio.NewScanner(out)}
	r.ask("length", "64 MiB")
	return r
}

// ask waits for a line with want in it.
func (r *reader) ask(command, want string) {
	r.t.Helper()
	if _, err := io.WriteString(r.in, command+"\n"); err != nil {
		r.t.Fatal(err)
	}
	for r.out.Scan() {
		if strings.Contains(r.out.Text(), "failed") {
			r.t.Errorf("%s: %s", command, r.out.Text())
		}
		if strings.Contains(r.out.Text(), want) {
			return
		}
	}
	r.t.Errorf("%s: no answer", command)
}

// reads checks the patterns that tr.chain wrote.
func (r *reader) reads(patterns ...string) {
	r.t.Helper()
	for _, p := range patterns {
		r.ask("read -P "+p+" 1M", "read 1048576/1048576")
	}
}

var (
	inFull = []string{"0x11 1M", "0x12 9M"}
	inA    = append([]string{"0x21 3M", "0x22 5M"}, inFull...)
	inB    = append([]string{"0x21 3M", "0x31 5M", "0x32 7M"}, inFull...)
)

// A reader that opens the child at any step reads right at that step, and to the
// end: qemu takes a file's length for what it was, and finds data behind it.
func TestReadersOfChildInPlace(t *testing.T) {
	needQemu(t)
	tr := newTree(t)
	tr.chain()
	before := tr.guest("2/b")
	var readers []*reader
	opts := Options{Verify: VerifyAlways, Step: func(l string) {
		readers = append(readers, tr.reader("2/b"), tr.reader("2/b"))
		readers[len(readers)-1].reads(inB...) // this one knows the tables of now
		if got := tr.guest("2/b"); got != before {
			t.Errorf("at %s the guest reads %s, read %s", l, got, before)
		}
	}}
	if err := NewRebaser(tr, opts).Rebase(t.Context(), tr.job(), nil); err != nil {
		t.Fatal(err)
	}
	if len(readers) != 2*len(qcow2.Labels) {
		t.Errorf("%d readers came", len(readers))
	}
	for _, r := range readers {
		r.reads(inB...)
	}
	checkRebased(t, tr, before)
}

// Those of the images below stay, and those that were there before.
func TestReadersOfParentsInPlace(t *testing.T) {
	needQemu(t)
	tr := newTree(t)
	tr.chain()
	before := tr.guest("2/b")
	a, full := tr.reader("1/a"), tr.reader("0/full")
	opts := Options{Step: func(string) {
		tr.reader("1/a").reads(inA...)
		full.reads(inFull...)
	}}
	if err := NewRebaser(tr, opts).Rebase(t.Context(), tr.job(), nil); err != nil {
		t.Fatal(err)
	}
	checkRebased(t, tr, before)
	a.reads(inA...) // it has the file open, whatever its name
}

// A child whose reader came after the lock was taken, and before the first write.
func TestRebaseInPlaceWithLateReader(t *testing.T) {
	needQemu(t)
	tr := newTree(t)
	tr.chain()
	job := tr.job()
	before := state(t, tr)
	w := NewRebaser(late{tr}, Options{})
	err := w.Rebase(t.Context(), job, nil)
	checkRefused(t, err, nil, "2/b is open for reading by qemu-io")
	if state(t, tr) != before {
		t.Error("the child was changed")
	}
}

// late has a reader open the child when the full is opened, which is when the
// child is locked already.
type late struct{ *tree }

func (l late) Open(p chain.Path) (*os.File, error) {
	if p == "0/full" {
		l.reader("2/b")
	}
	return l.tree.Open(p)
}

// The same one moment later, when the file has grown.
func TestCheckUnread(t *testing.T) {
	needQemu(t)
	tr := newTree(t)
	tr.chain()
	w := NewRebaser(tr, Options{}).newRebase(tr.job(), nil)
	defer w.close()
	if err := w.each(t.Context(), w.openChild, w.lockChild); err != nil {
		t.Fatal(err)
	}
	f, err := w.openForWriting()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := w.checkUnread(); err != nil {
		t.Errorf("nobody reads: %v", err)
	}
	tr.reader("2/b")
	checkRefused(t, w.checkUnread(), nil, "2/b is open for reading by qemu-io")
}

func TestRebaseInPlaceCancelled(t *testing.T) {
	needQemu(t)
	for _, label := range qcow2.Labels {
		t.Run(label, func(t *testing.T) {
			tr := newTree(t)
			tr.chain()
			job, before := tr.job(), tr.guest("2/b")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			err := NewRebaser(tr, Options{Step: func(l string) {
				if l == label {
					cancel()
				}
			}}).Rebase(ctx, job, nil)
			switch label {
			case "ABSORB:DONE": // too late
				if err != nil {
					t.Fatal(err)
				}
				tr.check("2/b")
				checkRebased(t, tr, before)
				return
			case "ABSORB:NAME": // what was linked is the child's
				job.Identity.Size = tr.stat("2/b").Identity.Size
			}
			if !errors.Is(err, context.Canceled) {
				t.Errorf("got error %v", err)
			}
			checkGivenBack(t, tr, job.Identity, before)
		})
	}
}

func (tr *tree) stat(p chain.Path) chain.Entry {
	tr.t.Helper()
	e, err := tr.Stat(p)
	if err != nil {
		tr.t.Fatal(err)
	}
	return e
}

// In the middle of a copy, which a limit cuts into pieces.
func TestRebaseInPlaceCancelledInCopy(t *testing.T) {
	needQemu(t)
	tr := newTree(t)
	tr.chain()
	heavy(tr, "20M")
	job, before := tr.job(), tr.guest("2/b")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var copied, all int64
	err := NewRebaser(tr, Options{Limit: 1 << 20}).Rebase(ctx, job, func(done, total int64) {
		if copied, all = done, total; done > 0 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) || copied == 0 || copied > 1<<20 || all < 20<<20 {
		t.Errorf("got error %v after %d of %d", err, copied, all)
	}
	checkGivenBack(t, tr, job.Identity, before)
}

// The limiter is asked for every byte, and for none that is not copied.
func TestLimitCountsAll(t *testing.T) {
	needQemu(t)
	tr := newTree(t)
	tr.chain()
	heavy(tr, "20M")
	const burst = 1 << 30
	r := NewRebaser(tr, Options{Limit: 1})
	r.limit = rate.NewLimiter(1e-6, burst) // asks for more would wait for years
	job := tr.job()
	effort, err := r.Measure(t.Context(), job)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Rebase(t.Context(), job, nil); err != nil {
		t.Fatal(err)
	}
	if asked := burst - int64(r.limit.Tokens()); asked != effort.Bytes || asked < 20<<20 {
		t.Errorf("asked for %d bytes, %d were copied", asked, effort.Bytes)
	}
}

func TestVerifyWants(t *testing.T) {
	for _, c := range []struct {
		v           Verify
		some, large bool
	}{{"", true, false}, {VerifySome, true, false}, {VerifyAlways, true, true}, {VerifyNever, false, false}} {
		if c.v.wants(VerifyUpTo) != c.some || c.v.wants(VerifyUpTo+1) != c.large {
			t.Errorf("%q: got %v, %v", c.v, c.v.wants(VerifyUpTo), c.v.wants(VerifyUpTo+1))
		}
	}
}

// A parent that is written to by somebody who knows of no locks, when it was
// copied already, stands for a copy that went wrong.
func TestVerifyFindsDifference(t *testing.T) {
	needQemu(t)
	for _, c := range []struct {
		verify Verify
		find   bool
	}{{VerifyAlways, true}, {VerifySome, true}, {VerifyNever, false}} {
		t.Run(string(c.verify), func(t *testing.T) {
			tr := newTree(t)
			tr.chain()
			job := tr.job()
			opts := Options{Verify: c.verify, Step: func(l string) {
				if l == "ABSORB:VERIFY" {
					scribble(tr, "1/a", 0x21)
				}
			}}
			err := NewRebaser(tr, opts).Rebase(t.Context(), job, nil)
			if !c.find {
				if err != nil {
					t.Error(err)
				}
				return
			}
			checkRefused(t, err, chain.ErrVerify, "reads differently")
			checkGivenBack(t, tr, job.Identity, tr.guest("2/b"))
		})
	}
}

// scribble changes one byte of the first data of an image with the pattern.
func scribble(tr *tree, p chain.Path, pattern byte) {
	b, err := os.ReadFile(tr.host(p))
	if err != nil {
		tr.t.Fatal(err)
	}
	at := bytes.Index(b, bytes.Repeat([]byte{pattern}, 4096))
	f, err := os.OpenFile(tr.host(p), os.O_WRONLY, 0)
	if err != nil || at < 0 {
		tr.t.Fatal(at, err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{^pattern}, int64(at)+100); err != nil {
		tr.t.Fatal(err)
	}
}

// Somebody who knows of no locks puts another image in the child's file: it must
// get neither the new name nor anything else.
func TestRebaseInPlaceOfOverwrittenFile(t *testing.T) {
	needQemu(t)
	for _, label := range []string{"ABSORB:LINK", "ABSORB:NAME"} {
		for _, args := range [][]string{nil, {"-o", "cluster_size=4k"}} {
			t.Run(fmt.Sprint(label, args), func(t *testing.T) {
				tr := newTree(t)
				tr.chain()
				tr.create("2/new", "../1/a", args...)
				tr.write("2/new", "0x55", "2M")
				want, err := os.ReadFile(tr.host("2/new"))
				if err != nil {
					t.Fatal(err)
				}
				err = NewRebaser(tr, Options{Step: func(l string) {
					if l == label {
						tr.qemu("cp", "2/new", "2/b") // into the same file
					}
				}}).Rebase(t.Context(), tr.job(), nil)
				checkRefused(t, err, chain.ErrChanged, "2/b")
				if got, err := os.ReadFile(tr.host("2/b")); err != nil || !bytes.Equal(got, want) {
					t.Errorf("what was written there was changed (%v)", err)
				}
			})
		}
	}
}

// The other name may lead elsewhere from its directory, so the file is not
// changed under it.
func TestRebaseOfFileWithTwoNames(t *testing.T) {
	needQemu(t)
	tr := newTree(t)
	tr.chain()
	before := tr.guest("2/b")
	if err := os.MkdirAll(tr.host("x/y"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(tr.host("2/b"), tr.host("x/y/b")); err != nil {
		t.Fatal(err)
	}
	other, err := os.ReadFile(tr.host("x/y/b"))
	if err != nil {
		t.Fatal(err)
	}
	r := NewRebaser(tr, Options{})
	if e, err := r.Measure(t.Context(), tr.job()); err != nil || e.Way != chain.ByCopy || !strings.Contains(e.Why, "another name") {
		t.Errorf("measured %+v, %v", e, err)
	}
	if err := r.Rebase(t.Context(), tr.job(), nil); err != nil {
		t.Fatal(err)
	}
	if now, err := os.ReadFile(tr.host("x/y/b")); err != nil || !bytes.Equal(now, other) {
		t.Errorf("the other name's file was changed (%v)", err)
	}
	checkRebased(t, tr, before)
}
