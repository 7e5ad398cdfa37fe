package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chainfs/chainfs/chain"
	"golang.org/x/sys/unix"
)

// checkRebased: 2/b stands on 0/full, reads as before, also without 1/a.
func checkRebased(t *testing.T, tr *tree, before string) {
	t.Helper()
	h := tr.header("2/b")
	if h.Backing != "../0/full" || h.BackingFormat != chain.QCOW2 || h.Trouble != "" {
		t.Errorf("got header %+v", h)
	}
	if err := os.Rename(tr.host("1/a"), tr.host("1/gone")); err != nil {
		t.Fatal(err)
	}
	if after := tr.guest("2/b"); after != before {
		t.Errorf("the guest reads %s, read %s", after, before)
	}
	if got := tr.names("2"); got != "b" {
		t.Errorf("left behind: %s", got)
	}
}

// state is all of a file that a refused rebase must not change.
func state(t *testing.T, tr *tree) string {
	t.Helper()
	e, err := tr.Stat("2/b")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(tr.host("2/b"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join([]string{tr.names("2"), fmt.Sprint(e.Identity), string(b)}, "|")
}

func TestRebase(t *testing.T) {
	needQemu(t)
	eachWay(t, func(t *testing.T, way way) {
		tr := newTree(t)
		tr.chain()
		before := tr.guest("2/b")
		job := tr.job()
		r := NewRebaser(tr, way.opts)
		effort, err := r.Measure(t.Context(), job)
		if err != nil || effort.Way != way.name || effort.AtMost != way.opts.ByCopy {
			t.Errorf("measured %+v, %v", effort, err)
		}
		var labels []string
		r = NewRebaser(tr, way.stepping(func(l string) { labels = append(labels, l) }))
		var last int64
		err = r.Rebase(t.Context(), job, func(done, total int64) {
			if done < last || done > total || total != effort.Bytes {
				t.Errorf("progress %d of %d after %d", done, total, last)
			}
			last = done
		})
		if err != nil {
			t.Fatal(err)
		}
		if last != effort.Bytes || last == 0 {
			t.Errorf("progress ended at %d of %d", last, effort.Bytes)
		}
		if !slices.Equal(labels, way.labels) {
			t.Errorf("got steps %q", labels)
		}
		tr.check("2/b")
		checkRebased(t, tr, before)
	})
}

func TestRebaseOntoNothing(t *testing.T) {
	needQemu(t)
	eachWay(t, func(t *testing.T, way way) {
		tr := newTree(t)
		tr.chain()
		before := tr.guest("2/b")
		job := tr.job()
		job.NewParent, job.NewName, job.NewFormat, job.NewLayers = "", "", "", nil
		if err := NewRebaser(tr, way.opts).Rebase(t.Context(), job, nil); err != nil {
			t.Fatal(err)
		}
		if h := tr.header("2/b"); h.Backing != "" || h.Trouble != "" {
			t.Errorf("got header %+v", h)
		}
		if err := os.RemoveAll(tr.host("0")); err != nil {
			t.Fatal(err)
		}
		if after := tr.guest("2/b"); after != before {
			t.Errorf("the guest reads %s, read %s", after, before)
		}
	})
}

// A parent that is not below the child: what only the old line had is copied,
// and what only the new one has is hidden.
func TestRebaseOntoSibling(t *testing.T) {
	needQemu(t)
	tr := newTree(t)
	tr.chain()
	tr.create("1/c", "../0/full")
	tr.write("1/c", "0x77", "1M")
	tr.write("1/c", "0x78", "20M")
	before := tr.guest("2/b")
	job := tr.job()
	job.NewParent, job.NewName = "1/c", "../1/c"
	job.NewLayers = []chain.Layer{{Path: "1/c", Format: chain.QCOW2, Backing: "../0/full"}, job.Layers[1]}
	r := NewRebaser(tr, Options{})
	if e, err := r.Measure(t.Context(), job); err != nil || e.Way != chain.ByCopy || !e.AtMost || e.Why != "its new parent is not below it" {
		t.Errorf("measured %+v, %v", e, err)
	}
	if err := r.Rebase(t.Context(), job, nil); err != nil {
		t.Fatal(err)
	}
	if h := tr.header("2/b"); h.Backing != "../1/c" {
		t.Errorf("the backing name is %s", h.Backing)
	}
	if tr.guest("2/b") != before {
		t.Error("the child reads differently")
	}
}

// Formats and sizes that differ along the chain: a raw base that is shorter than
// its child, other cluster sizes, version 2, compressed clusters.
func TestRebaseOfMixedChain(t *testing.T) {
	needQemu(t)
	eachWay(t, testMixedChain)
}

func testMixedChain(t *testing.T, way way) {
	tr := newTree(t)
	if err := os.Mkdir(tr.host("2"), 0o755); err != nil {
		t.Fatal(err)
	}
	base := bytes.Repeat([]byte("base data, not a header "), 100000)
	if err := os.WriteFile(tr.host("base.raw"), base, 0o644); err != nil {
		t.Fatal(err)
	}
	tr.create("a", "", "-o", "cluster_size=4k,compat=0.10")
	tr.qemu("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "base.raw", "a")
	tr.write("a", "0x21", "1M")
	tr.qemu("qemu-io", "-f", "qcow2", "-c", "write -z 0 64k", "-c", "write -c -P 5 8M 64k", "a")
	tr.create("2/b", "../a", "-o", "cluster_size=2M,extended_l2=on")
	tr.write("2/b", "0x31", "5M")
	before := tr.guest("2/b")
	job := tr.jobFor("2/b")
	job.Layers = []chain.Layer{{Path: "a", Format: chain.QCOW2, Backing: "base.raw"}, {Path: "base.raw", Format: chain.Raw}}
	job.NewParent, job.NewName, job.NewFormat = "base.raw", "../base.raw", chain.Raw
	job.NewLayers = job.Layers[1:]
	if err := NewRebaser(tr, way.opts).Rebase(t.Context(), job, nil); err != nil {
		t.Fatal(err)
	}
	if h := tr.header("2/b"); h.Backing != "../base.raw" || h.BackingFormat != chain.Raw {
		t.Errorf("got header %+v", h)
	}
	if err := os.Remove(tr.host("a")); err != nil {
		t.Fatal(err)
	}
	if after := tr.guest("2/b"); after != before {
		t.Errorf("the guest reads %s, read %s", after, before)
	}
}

// A second run finds nothing to do, although the identity is not the planned one.
func TestRebaseTwice(t *testing.T) {
	needQemu(t)
	eachWay(t, func(t *testing.T, way way) {
		tr := newTree(t)
		tr.chain()
		before := tr.guest("2/b")
		job := tr.job()
		r := NewRebaser(tr, way.opts)
		if err := r.Rebase(t.Context(), job, nil); err != nil {
			t.Fatal(err)
		}
		once, err := tr.Stat("2/b")
		if err != nil {
			t.Fatal(err)
		}
		if e, err := r.Measure(t.Context(), job); err != nil || e.Bytes != 0 || e.AtMost {
			t.Errorf("measured %+v, %v", e, err)
		}
		if err := r.Rebase(t.Context(), job, nil); err != nil {
			t.Fatal(err)
		}
		if twice, _ := tr.Stat("2/b"); !twice.Identity.SameContent(once.Identity) {
			t.Errorf("the second run changed %+v to %+v", once, twice)
		}
		checkRebased(t, tr, before)
	})
}

// Names that a careless program would take for options, protocols or shell text.
func TestRebaseOfOddNames(t *testing.T) {
	needQemu(t)
	eachWay(t, testOddNames)
}

func testOddNames(t *testing.T, way way) {
	for _, base := range []string{"-b", "a b", "x:y", "json:{}", "$(touch pwned)", "\xff\n", strings.Repeat("n", 255)} {
		tr := newTree(t)
		tr.chain()
		before := tr.guest("2/b")
		job := tr.job()
		job.Child = chain.Path("2").Join(base)
		job.Scratch = chain.Path("2").Join(chain.ScratchName(7, base))
		if err := os.Rename(tr.host("2/b"), tr.host(job.Child)); err != nil {
			t.Fatal(err)
		}
		e, _ := tr.Stat(job.Child)
		job.Identity = e.Identity
		if err := NewRebaser(tr, way.opts).Rebase(t.Context(), job, nil); err != nil {
			t.Errorf("%q: %v", base, err)
			continue
		}
		if err := os.Rename(tr.host(job.Child), tr.host("2/b")); err != nil {
			t.Fatal(err)
		}
		checkRebased(t, tr, before)
	}
}

func TestRebaseRefuses(t *testing.T) {
	needQemu(t)
	for _, c := range []struct {
		name  string
		spoil func(tr *tree, job *chain.RebaseJob)
		fake  string
		want  error  // nil: a *chain.RefusedError
		text  string // part of the message
	}{
		{name: "touched", want: chain.ErrChanged, spoil: func(tr *tree, _ *chain.RebaseJob) {
			now := time.Now().Add(time.Second)
			if err := os.Chtimes(tr.host("2/b"), now, now); err != nil {
				tr.t.Fatal(err)
			}
		}},
		{name: "other layer", want: chain.ErrChanged, spoil: func(tr *tree, job *chain.RebaseJob) {
			tr.qemu("qemu-img", "rebase", "-u", "-b", "../0/full", "-F", "qcow2", "-f", "qcow2", "2/b")
			tr.qemu("qemu-img", "rebase", "-u", "-b", "../1/c", "-F", "qcow2", "-f", "qcow2", "2/b")
			e, _ := tr.Stat("2/b")
			job.Identity = e.Identity
		}},
		{name: "layer missing", want: os.ErrNotExist, spoil: func(tr *tree, _ *chain.RebaseJob) {
			if err := os.Remove(tr.host("0/full")); err != nil {
				tr.t.Fatal(err)
			}
		}},
		{name: "plan is short", want: chain.ErrChanged, spoil: func(_ *tree, job *chain.RebaseJob) {
			job.Layers, job.NewName, job.NewParent = job.Layers[:1], "../1/./a", "1/a"
			job.NewLayers = job.Layers
		}},
		{name: "format not named", text: "1/a names its parent without a format", spoil: func(tr *tree, _ *chain.RebaseJob) {
			b, err := os.ReadFile(tr.host("1/a"))
			if err != nil {
				tr.t.Fatal(err)
			}
			// Old images have no such extension; another type in its place is as good.
			b = bytes.Replace(b, []byte("\xe2\x79\x2a\xca"), []byte("\x11\x22\x33\x44"), 1)
			if err := os.WriteFile(tr.host("1/a"), b, 0o644); err != nil {
				tr.t.Fatal(err)
			}
		}},
		{name: "snapshot", text: "2/b has internal snapshots", spoil: func(tr *tree, job *chain.RebaseJob) {
			tr.qemu("qemu-img", "snapshot", "-c", "s", "2/b")
			e, _ := tr.Stat("2/b")
			job.Identity = e.Identity
		}},
		{name: "protocol", text: "rename the parent", spoil: func(_ *tree, job *chain.RebaseJob) {
			job.NewName = "a:b"
		}},
		{name: "compare differs", fake: "differs", want: chain.ErrVerify},
		{name: "unsafe rebase", fake: "unsafe", want: chain.ErrVerify},
		{name: "nothing done", fake: "idle", want: chain.ErrVerify},
		{name: "corruption", fake: "corrupt", want: chain.ErrVerify},
		{name: "full", fake: "full", want: unix.ENOSPC, text: "No space left"},
	} {
		for _, way := range ways {
			if c.fake != "" && !way.opts.ByCopy {
				continue // no qemu-img is run
			}
			t.Run(c.name+" "+string(way.name), func(t *testing.T) {
				tr := newTree(t)
				tr.chain()
				job := tr.job()
				if c.spoil != nil {
					c.spoil(tr, &job)
				}
				opts := way.opts
				if c.fake != "" {
					opts.Program = fake(t, c.fake)
				}
				before := state(t, tr)
				err := NewRebaser(tr, opts).Rebase(t.Context(), job, nil)
				checkRefused(t, err, c.want, c.text)
				if state(t, tr) != before {
					t.Error("the child was changed")
				}
			})
		}
	}
}

func checkRefused(t *testing.T, err, want error, text string) {
	t.Helper()
	var refused *chain.RefusedError
	switch {
	case err == nil:
		t.Fatal("it was done")
	case want == nil && !errors.As(err, &refused), want != nil && !errors.Is(err, want):
		t.Errorf("got error %v, want %v", err, want)
	case !strings.Contains(err.Error(), text):
		t.Errorf("got error %q, want %q in it", err, text)
	}
}

func TestRebaseReportsFailures(t *testing.T) {
	needQemu(t)
	for _, c := range []struct{ fake, text string }{
		{"fails", `qemu-img: it\x1b[31m did not work`},
		{"dies", "signal: killed"},
		{"unreadable", "cannot read"},
		{"broken", "qemu-img check"},
	} {
		t.Run(c.fake, func(t *testing.T) {
			tr := newTree(t)
			tr.chain()
			before := state(t, tr)
			err := NewRebaser(tr, Options{ByCopy: true, Program: fake(t, c.fake)}).Rebase(t.Context(), tr.job(), nil)
			if err == nil || !strings.Contains(err.Error(), c.text) || errors.Is(err, chain.ErrVerify) {
				t.Errorf("got error %v, want %q in it", err, c.text)
			}
			if state(t, tr) != before {
				t.Error("the child was changed")
			}
		})
	}
}

// Leaked clusters harm nobody.
func TestRebaseAcceptsLeaks(t *testing.T) {
	needQemu(t)
	tr := newTree(t)
	tr.chain()
	before := tr.guest("2/b")
	if err := NewRebaser(tr, Options{ByCopy: true, Program: fake(t, "leaks")}).Rebase(t.Context(), tr.job(), nil); err != nil {
		t.Fatal(err)
	}
	checkRebased(t, tr, before)
}

// A file that is put in the child's place on the way is left as it is.
func TestRebaseNoticesChangesOnTheWay(t *testing.T) {
	needQemu(t)
	eachWay(t, func(t *testing.T, way way) {
		for _, label := range way.labels[:way.until("REBASE:RENAMED")] {
			t.Run(label, func(t *testing.T) { testReplaced(t, way, label) })
		}
	})
}

func testReplaced(t *testing.T, way way, label string) {
	tr := newTree(t)
	tr.chain()
	var swapped string
	opts := way.stepping(func(l string) {
		if l != label {
			return
		}
		tr.qemu("cp", "2/b", "2/c")
		if err := os.Rename(tr.host("2/c"), tr.host("2/b")); err != nil {
			t.Fatal(err)
		}
		swapped = state(t, &tree{t: t, dir: tr.dir})
	})
	err := NewRebaser(tr, opts).Rebase(t.Context(), tr.job(), nil)
	checkRefused(t, err, chain.ErrChanged, "")
	now := strings.SplitN(state(t, tr), "|", 2)[1]
	if was := strings.SplitN(swapped, "|", 2)[1]; now != was {
		t.Error("the file that was put there was changed")
	}
}

// Whoever may write to the directory can put another file in the scratch's place;
// it must not become the child.
func TestRebaseNoticesOtherScratch(t *testing.T) {
	needQemu(t)
	for _, label := range CopyLabels[1:5] {
		for _, content := range []string{"2/b", "0/full"} {
			t.Run(label+" "+content, func(t *testing.T) {
				tr := newTree(t)
				tr.chain()
				before := state(t, tr)
				job := tr.job()
				opts := Options{ByCopy: true, Step: func(l string) {
					if l == label {
						tr.qemu("rm", string(job.Scratch))
						tr.qemu("cp", content, string(job.Scratch))
					}
				}}
				if err := NewRebaser(tr, opts).Rebase(t.Context(), job, nil); err == nil {
					t.Error("it was done")
				}
				if state(t, tr) != before {
					t.Error("the child was changed")
				}
			})
		}
	}
}

func TestRebaseCancelled(t *testing.T) {
	needQemu(t)
	tr := newTree(t)
	tr.chain()
	before := state(t, tr)
	ctx, cancel := context.WithCancel(t.Context())
	opts := Options{ByCopy: true, Program: fake(t, "sleeps"), Step: func(l string) {
		if l == "REBASE:COPIED" {
			time.AfterFunc(300*time.Millisecond, cancel)
		}
	}}
	err := NewRebaser(tr, opts).Rebase(ctx, tr.job(), nil)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v", err)
	}
	if state(t, tr) != before {
		t.Error("the child was changed")
	}
}

// A panic at a step stands for a crash there. What it left is given back, and the
// job, planned anew, is done.
func TestRebaseAgainAfterCrash(t *testing.T) {
	needQemu(t)
	eachWay(t, func(t *testing.T, way way) {
		for _, label := range way.labels {
			t.Run(label, func(t *testing.T) {
				tr := newTree(t)
				tr.chain()
				before := tr.guest("2/b")
				job := tr.job()
				crash(t, tr, job, way.stepping(func(l string) {
					if l == label {
						panic(l)
					}
				}))
				checkRecovers(t, tr, way, job.Identity, before)
			})
		}
	})
}

func crash(t *testing.T, tr *tree, job chain.RebaseJob, opts Options) {
	defer func() { _ = recover() }()
	_ = NewRebaser(tr, opts).Rebase(t.Context(), job, nil)
}

// checkRecovers is what the next start does after a crash.
func checkRecovers(t *testing.T, tr *tree, way way, was chain.Identity, before string) {
	t.Helper()
	if got := tr.guest("2/b"); got != before {
		t.Fatalf("after the crash the guest reads %s, read %s", got, before)
	}
	r := NewRebaser(tr, way.opts)
	if err := r.Recover(t.Context(), "2/b", was); err != nil {
		t.Fatal(err)
	}
	tr.check("2/b")
	if got := tr.guest("2/b"); got != before {
		t.Fatalf("given back, the guest reads %s, read %s", got, before)
	}
	if err := r.Rebase(t.Context(), tr.job(), nil); err != nil {
		t.Fatal(err)
	}
	tr.check("2/b")
}
