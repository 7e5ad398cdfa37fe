package qemu

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/qemu/qcow2"
)

// poke changes one byte of a file.
func (tr *tree) poke(p chain.Path, at int64, change func(byte) byte) {
	tr.t.Helper()
	f, err := os.OpenFile(tr.host(p), os.O_RDWR, 0)
	if err != nil {
		tr.t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		tr.t.Fatal(err)
	}
	b[0] = change(b[0])
	if _, err := f.WriteAt(b[:], at); err != nil {
		tr.t.Fatal(err)
	}
}

const (
	cryptMethod  = 35 // the last byte of each field, big-endian
	incompatible = 79
)

func set(bits byte) func(byte) byte { return func(b byte) byte { return b | bits } }

// Children that are refused whichever the way, when they are measured too.
func TestRebaseRefusesKinds(t *testing.T) {
	needQemu(t)
	for _, c := range []struct {
		name, text string
		make       func(tr *tree)
	}{
		{"encrypted", "2/b is encrypted", func(tr *tree) { tr.poke("2/b", cryptMethod, set(1)) }},
		{"marked corrupt", "2/b is marked corrupt", func(tr *tree) { tr.poke("2/b", incompatible, set(2)) }},
		{"external data", "2/b has an external data file", func(tr *tree) {
			tr.create("2/b", "../1/a", "-o", "data_file=2/b.data")
		}},
		{"snapshots", "2/b has internal snapshots", func(tr *tree) { tr.qemu("qemu-img", "snapshot", "-c", "s", "2/b") }},
		{"parent marked corrupt", "1/a is marked corrupt", func(tr *tree) { tr.poke("1/a", incompatible, set(2)) }},
		{"no image", "2/b is not a qcow2 image", func(tr *tree) { tr.poke("2/b", 0, set(0xff)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			eachWay(t, func(t *testing.T, way way) {
				tr := newTree(t)
				tr.chain()
				c.make(tr)
				job, before := tr.job(), state(t, tr)
				r := NewRebaser(tr, way.opts)
				_, err := r.Measure(t.Context(), job)
				checkRefused(t, err, nil, c.text)
				checkRefused(t, r.Rebase(t.Context(), job, nil), nil, c.text)
				if state(t, tr) != before {
					t.Error("the child was changed")
				}
			})
		})
	}
}

// Damage that only tables show is a refusal as well: nothing of it is for another try.
func TestRebaseInPlaceRefusesDamage(t *testing.T) {
	needQemu(t)
	for _, p := range []chain.Path{"2/b", "1/a"} {
		tr := newTree(t)
		tr.chain()
		b, err := os.ReadFile(tr.host(p))
		if err != nil {
			t.Fatal(err)
		}
		// The first L2 table's first entry in use: an offset that is not aligned.
		l1 := int64(b[42])<<40 | int64(b[43])<<32 | int64(b[44])<<24 | int64(b[45])<<16
		l2 := int64(b[l1+4])<<24 | int64(b[l1+5])<<16
		for at := l2; ; at += 8 {
			if !bytes.Equal(b[at:at+8], make([]byte, 8)) {
				tr.poke(p, at+6, set(2))
				break
			}
		}
		job, before := tr.job(), state(t, tr)
		r := NewRebaser(tr, Options{})
		checkRefused(t, r.Rebase(t.Context(), job, nil), nil, "is damaged")
		if state(t, tr) != before {
			t.Errorf("%s: the child was changed", p)
		}
	}
}

// A child whose qemu was killed: its refcounts are stale, and the qemu-img that
// works on the copy puts them right.
func TestRebaseOfDirtyChild(t *testing.T) {
	needQemu(t)
	tr := newTree(t)
	tr.chain()
	tr.create("2/b", "../1/a", "-o", "lazy_refcounts=on")
	tr.write("2/b", "0x31", "5M")
	qemu := tr.qemuIO("2/b")
	qemu.ask("write -P 0x33 30M 1M", "wrote 1048576/1048576")
	if err := qemu.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = qemu.cmd.Wait() // it was killed
	before := tr.guest("2/b")
	checkByCopy(t, tr, "was not closed")
	tr.check("2/b")
	checkRebased(t, tr, before)
}

// checkByCopy: 2/b is measured and rebased by a copy, for a reason.
func checkByCopy(t *testing.T, tr *tree, why string) {
	t.Helper()
	var labels []string
	r := NewRebaser(tr, Options{Step: func(l string) { labels = append(labels, l) }})
	job := tr.job()
	e, err := r.Measure(t.Context(), job)
	if err != nil || e.Way != chain.ByCopy || !e.AtMost || e.Bytes != job.Bytes || !strings.Contains(e.Why, why) {
		t.Errorf("measured %+v, %v", e, err)
	}
	if err := r.Rebase(t.Context(), job, nil); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(labels, " "); got != strings.Join(CopyLabels, " ") {
		t.Errorf("got steps %s", got)
	}
}

// A first cluster that is full of what must be kept has no room for a new name.
func TestRebaseWithoutRoomInHeader(t *testing.T) {
	needQemu(t)
	tr := newTree(t)
	tr.chain()
	// Two names of 480 bytes, of which one must stay until the other counts.
	in := func(dir, base string) chain.Path {
		p := chain.Path(dir + strings.Repeat("x", 250) + "/" + strings.Repeat("y", 225) + base)
		if err := os.MkdirAll(tr.host(p.Dir()), 0o755); err != nil {
			t.Fatal(err)
		}
		return p
	}
	a, full := in("1/", "a"), in("0/", "full")
	for from, to := range map[chain.Path]chain.Path{"1/a": a, "0/full": full} {
		if err := os.Rename(tr.host(from), tr.host(to)); err != nil {
			t.Fatal(err)
		}
	}
	up := "../../" + string(full)
	tr.qemu("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", up, string(a))
	tr.create("2/b", "../"+string(a), "-o", "cluster_size=1k")
	tr.write("2/b", "0x31", "5M")
	before := tr.guest("2/b")
	job := tr.jobFor("2/b")
	job.Layers = []chain.Layer{{Path: a, Format: chain.QCOW2, Backing: chain.Path(up)}, {Path: full, Format: chain.QCOW2}}
	job.NewParent, job.NewName, job.NewFormat, job.NewLayers = full, "../"+full, chain.QCOW2, job.Layers[1:]
	r := NewRebaser(tr, Options{})
	e, err := r.Measure(t.Context(), job)
	if err != nil || e.Way != chain.ByCopy || !strings.Contains(e.Why, "no room") {
		t.Errorf("measured %+v, %v", e, err)
	}
	if err := r.Rebase(t.Context(), job, nil); err != nil {
		t.Fatal(err)
	}
	tr.check("2/b")
	if h := tr.header("2/b"); h.Backing != job.NewName {
		t.Errorf("got header %+v", h)
	}
	if got := tr.guest("2/b"); got != before {
		t.Errorf("the guest reads %s, read %s", got, before)
	}
}

// A cluster that two entries share is found on the way: what was linked before
// that stays, and the rest is done by a copy.
func TestRebaseFallsBackOnTheWay(t *testing.T) {
	needQemu(t)
	tr := newTree(t)
	tr.chain()
	job := tr.job()
	w := NewRebaser(tr, Options{}).newRebase(job, nil)
	defer w.close()
	if err := w.openChild(t.Context()); err != nil {
		t.Fatal(err)
	}
	tr.write("2/b", "0x44", "40M") // as if it had been linked
	if err := w.failed(fmt.Errorf("a cluster is shared: %w", qcow2.ErrFallback)); err != nil {
		t.Fatal(err)
	}
	if err := w.checkIdentity(t.Context()); err != nil {
		t.Errorf("the copy will not be accepted: %v", err)
	}
	if now := tr.stat("2/b").Identity; now.MTime <= job.Identity.MTime {
		t.Errorf("the time is %d, was %d", now.MTime, job.Identity.MTime)
	}
}
