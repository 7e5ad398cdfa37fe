package qemu

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/qemu/qcow2"
	"golang.org/x/sys/unix"
)

// hidden is 1/a once operation 5 has condemned it.
const hidden = chain.Path("1/.chainfs-5-a")

// condemn makes chain's images, 1/a with its hidden name as well, and the job that
// has 2/b name that.
func (tr *tree) condemn() chain.RepointJob {
	tr.t.Helper()
	tr.chain()
	if err := tr.Link("1/a", hidden); err != nil {
		tr.t.Fatal(err)
	}
	return tr.repointJob()
}

func (tr *tree) repointJob() chain.RepointJob {
	tr.t.Helper()
	return chain.RepointJob{
		Child: "2/b", Inode: tr.stat("2/b").Identity.Inode,
		From: "1/a", To: hidden, Name: "../" + hidden, Format: chain.QCOW2,
	}
}

// checkRepointed: 2/b names the hidden name, and reads as before without the other.
func checkRepointed(t *testing.T, tr *tree, before string) {
	t.Helper()
	if h := tr.header("2/b"); h.Backing != "../"+hidden || h.BackingFormat != chain.QCOW2 || h.Trouble != "" {
		t.Errorf("got header %+v", h)
	}
	if err := os.Rename(tr.host("1/a"), tr.host("1/gone")); err != nil {
		t.Fatal(err)
	}
	if after := tr.guest("2/b"); after != before {
		t.Errorf("the guest reads %s, read %s", after, before)
	}
	tr.check("2/b")
	if err := os.Rename(tr.host("1/gone"), tr.host("1/a")); err != nil {
		t.Fatal(err)
	}
}

func TestRepoint(t *testing.T) {
	needQemu(t)
	tr := newTree(t)
	job := tr.condemn()
	before, was := tr.guest("2/b"), state(t, tr)
	var labels []string
	r := NewRebaser(tr, Options{Step: func(l string) { labels = append(labels, l) }})
	if err := r.CheckRepoint(job); err != nil {
		t.Fatal(err)
	}
	if state(t, tr) != was || labels != nil {
		t.Errorf("asking changed the child, at %q", labels)
	}
	if err := r.Repoint(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	checkRepointed(t, tr, before)
	if !slices.Equal(labels, RepointLabels) {
		t.Errorf("got steps %q", labels)
	}
	// Again it is a no-op, also when the old name is gone.
	if err := tr.Unlink("1/a"); err != nil {
		t.Fatal(err)
	}
	done := tr.stat("2/b").Identity
	for range 2 {
		if err := r.CheckRepoint(job); err != nil {
			t.Error(err)
		}
		if err := r.Repoint(t.Context(), job); err != nil {
			t.Error(err)
		}
	}
	if now := tr.stat("2/b").Identity; now.MTime != done.MTime || now.Size != done.Size {
		t.Errorf("got %+v, had %+v", now, done)
	}
	// And back: what has the name now was never there.
	back := chain.RepointJob{Child: "2/b", Inode: job.Inode, From: hidden, To: "1/a", Name: "../1/a", Format: chain.QCOW2}
	if err := r.CheckRepoint(back); err != nil {
		t.Errorf("the name is yet to come: %v", err)
	}
	checkRefused(t, r.Repoint(t.Context(), back), os.ErrNotExist, "1/a")
	if err := tr.Link(hidden, "1/a"); err != nil {
		t.Fatal(err)
	}
	if err := r.Repoint(t.Context(), back); err != nil {
		t.Fatal(err)
	}
	if h := tr.header("2/b"); h.Backing != "../1/a" {
		t.Errorf("got header %+v", h)
	}
	if got := tr.guest("2/b"); got != before {
		t.Errorf("the guest reads %s, read %s", got, before)
	}
}

// Where there are no links, the old name has gone before the new one is named.
func TestRepointOfRenamedParent(t *testing.T) {
	needQemu(t)
	tr := newTree(t)
	job := tr.condemn()
	before := tr.guest("2/b")
	if err := tr.Unlink("1/a"); err != nil {
		t.Fatal(err)
	}
	if err := NewRebaser(tr, Options{}).Repoint(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	if got := tr.guest("2/b"); got != before {
		t.Errorf("the guest reads %s, read %s", got, before)
	}
}

// Children that are not changed, whether they are asked about or to be changed.
func TestRepointRefuses(t *testing.T) {
	needQemu(t)
	for _, c := range []struct {
		name string
		make func(tr *tree, job *chain.RepointJob)
		is   error
		text string
	}{
		{"another file", func(_ *tree, job *chain.RepointJob) { job.Inode++ }, chain.ErrChanged, "2/b"},
		{"no file", func(tr *tree, _ *chain.RepointJob) { tr.Unlink("2/b") }, os.ErrNotExist, "2/b"},
		{"another parent", func(_ *tree, job *chain.RepointJob) { job.From = "1/c" }, chain.ErrChanged, "../1/a, which is not 1/c"},
		{"another target", func(_ *tree, job *chain.RepointJob) { job.To = "1/.chainfs-6-a" }, chain.ErrChanged, "which is not 1/.chainfs-6-a"},
		{"another format", func(_ *tree, job *chain.RepointJob) { job.Format = chain.Raw }, chain.ErrChanged, `"qcow2", and was "raw"`},
		{"a second name", func(tr *tree, _ *chain.RepointJob) { tr.Link("2/b", "1/b") }, chain.ErrNotInPlace, "2 names"},
		{"a third name", func(tr *tree, job *chain.RepointJob) {
			tr.Link("2/b", "2/c")
			tr.Link("2/b", "2/d")
			job.Names = 2
		}, chain.ErrNotInPlace, "3 names"},
		{"no room", func(tr *tree, job *chain.RepointJob) {
			tr.create("2/b", "../1/a", "-o", "cluster_size=512")
			job.Name = chain.Path("../" + strings.Repeat("./", 200) + string(hidden))
		}, chain.ErrNotInPlace, "no room"},
		{"a very long name", func(_ *tree, job *chain.RepointJob) {
			job.Name = chain.Path("../" + strings.Repeat("./", 510) + string(hidden))
		}, chain.ErrNotInPlace, "room for 1023"},
		{"a protocol", func(tr *tree, job *chain.RepointJob) { job.Name = "a:b" }, chain.ErrNotInPlace, "for a path"},
		{"an unknown feature", func(tr *tree, _ *chain.RepointJob) { tr.poke("2/b", autoclear, set(0x80)) }, chain.ErrNotInPlace, "not known"},
		{"encrypted", func(tr *tree, _ *chain.RepointJob) { tr.poke("2/b", cryptMethod, set(1)) }, nil, "2/b is encrypted"},
		{"marked corrupt", func(tr *tree, _ *chain.RepointJob) { tr.poke("2/b", incompatible, set(2)) }, nil, "2/b is marked corrupt"},
		{"no image", func(tr *tree, _ *chain.RepointJob) { tr.poke("2/b", 0, set(0xff)) }, nil, "2/b is not a qcow2 image"},
		{"a reader", func(tr *tree, _ *chain.RepointJob) { tr.open("2/b", "-r") }, nil, "2/b is open for reading by qemu-io"},
		{"a writer", func(tr *tree, _ *chain.RepointJob) { tr.open("2/b") }, nil, "2/b is open for writing by qemu-io"},
		{"a plain writer", func(tr *tree, _ *chain.RepointJob) {
			f, err := os.OpenFile(tr.host("2/b"), os.O_WRONLY, 0)
			if err != nil {
				tr.t.Fatal(err)
			}
			tr.t.Cleanup(func() { f.Close() })
		}, nil, "2/b is open for writing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr := newTree(t)
			job := tr.condemn()
			inode := job.Inode
			c.make(tr, &job)
			if job.Inode == inode && c.is != os.ErrNotExist {
				job.Inode = tr.stat("2/b").Identity.Inode // where it was created anew
			}
			look := func() string {
				if c.is == os.ErrNotExist {
					return tr.names("2")
				}
				return state(t, tr)
			}
			before := look()
			r := NewRebaser(tr, Options{})
			for _, err := range []error{r.CheckRepoint(job), r.Repoint(t.Context(), job)} {
				checkRefused(t, err, c.is, c.text)
			}
			if look() != before {
				t.Error("the child was changed")
			}
		})
	}
}

const autoclear = 88 // the first byte, of the features that nobody knows

// What keeps a child from absorbing in place, and not from another name.
func TestRepointOfOddChildren(t *testing.T) {
	needQemu(t)
	for name, make := range map[string]func(tr *tree, job *chain.RepointJob){
		"dirty": func(tr *tree, _ *chain.RepointJob) { tr.poke("2/b", incompatible, set(1)) },
		"with snapshots": func(tr *tree, _ *chain.RepointJob) {
			tr.qemu("qemu-img", "snapshot", "-c", "s", "2/b")
		},
		"condemned itself": func(tr *tree, job *chain.RepointJob) {
			if err := tr.Link("2/b", "2/.chainfs-5-b"); err != nil {
				tr.t.Fatal(err)
			}
			job.Names = 2
		},
		"with small clusters": func(tr *tree, job *chain.RepointJob) {
			tr.create("2/b", "../1/a", "-o", "cluster_size=512")
			job.Inode = tr.stat("2/b").Identity.Inode
		},
	} {
		t.Run(name, func(t *testing.T) {
			tr := newTree(t)
			job := tr.condemn()
			make(tr, &job)
			was := tr.header("2/b")
			b, err := os.ReadFile(tr.host("2/b"))
			if err != nil {
				t.Fatal(err)
			}
			r := NewRebaser(tr, Options{})
			if err := r.CheckRepoint(job); err != nil {
				t.Fatal(err)
			}
			if err := r.Repoint(t.Context(), job); err != nil {
				t.Fatal(err)
			}
			now, err := os.ReadFile(tr.host("2/b"))
			if err != nil {
				t.Fatal(err)
			}
			if n := tr.clusterSize("2/b"); string(now[n:]) != string(b[n:]) || now[incompatible] != b[incompatible] {
				t.Error("something beside the name was changed")
			}
			want := was
			want.Backing = job.Name
			if h := tr.header("2/b"); h.Backing != want.Backing || h.Pinned != want.Pinned || h.BackingFormat != want.BackingFormat {
				t.Errorf("got header %+v, want %+v", h, want)
			}
			if err := tr.Unlink("1/a"); err != nil {
				t.Fatal(err)
			}
			tr.guest("2/b") // which repairs a dirty one
			tr.check("2/b")
		})
	}
}

func (tr *tree) clusterSize(p chain.Path) int64 {
	tr.t.Helper()
	f, err := tr.Open(p)
	if err != nil {
		tr.t.Fatal(err)
	}
	defer f.Close()
	h, err := qcow2.ReadHeader(f, tr.stat(p).Identity.Size)
	if err != nil {
		tr.t.Fatal(err)
	}
	return h.ClusterSize()
}

func TestRepointSetsTimes(t *testing.T) {
	needQemu(t)
	times := []unix.Timespec{{Sec: 1700000001, Nsec: 123456789}, {Sec: 1700000002, Nsec: 987654321}}
	const old = 1600000000_000000007
	for _, c := range []struct {
		mtime, want int64
		named       bool // by a run that was cut off behind the commit
	}{
		{0, times[1].Nano() + int64(mtimeStep), false},
		{0, times[1].Nano(), true},
		{old, old, false},
		{old, old, true},
	} {
		tr := newTree(t)
		job := tr.condemn()
		if job.MTime = c.mtime; c.named {
			tr.qemu("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", string(job.Name), "2/b")
		}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, tr.host("2/b"), times, 0); err != nil {
			t.Fatal(err)
		}
		if err := NewRebaser(tr, Options{}).Repoint(t.Context(), job); err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Stat(tr.host("2/b"), &st); err != nil {
			t.Fatal(err)
		}
		if st.Atim != times[0] || st.Mtim.Nano() != c.want {
			t.Errorf("%+v: got %v and %v", c, st.Atim, time.Unix(st.Mtim.Unix()))
		}
	}
}

func TestRepointCancelled(t *testing.T) {
	needQemu(t)
	tr := newTree(t)
	job := tr.condemn()
	before := state(t, tr)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := NewRebaser(tr, Options{}).Repoint(ctx, job); !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v", err)
	}
	if state(t, tr) != before {
		t.Error("the child was changed")
	}
}

// Who comes between the look and the write is seen.
func TestRepointNoticesOthers(t *testing.T) {
	needQemu(t)
	for name, come := range map[string]func(tr *tree){
		"another file": func(tr *tree) {
			tr.qemu("cp", "2/b", "2/c")
			tr.qemu("mv", "2/c", "2/b")
		},
		"other content": func(tr *tree) { tr.qemu("cp", "0/full", "2/b") },
	} {
		t.Run(name, func(t *testing.T) {
			tr := newTree(t)
			job := tr.condemn()
			var there string
			err := NewRebaser(tr, Options{Step: func(string) {
				come(tr)
				there = state(t, tr)
			}}).Repoint(t.Context(), job)
			checkRefused(t, err, chain.ErrChanged, "2/b")
			if state(t, tr) != there {
				t.Error("what was put there was changed")
			}
		})
	}
}

// A full disk, where even the header has to be written elsewhere.
func TestRepointWithoutSpace(t *testing.T) {
	needQemu(t)
	needRoot(t)
	if _, err := exec.LookPath("mkfs.xfs"); err != nil {
		t.Skip("needs a file system: ", err)
	}
	tr := newXFS(t)
	job := tr.condemn()
	tr.qemu("cp", "--reflink=always", "2/b", "2/clone")
	before, was := tr.header("2/b").Backing, tr.stat("2/b").Identity
	fill(t, tr, 1<<20)
	fillUp(t, tr)
	err := NewRebaser(tr, Options{}).Repoint(t.Context(), job)
	if h := tr.header("2/b").Backing; err != nil && h != before || err == nil && h != job.Name {
		t.Errorf("got name %s with error %v", h, err)
	}
	if now := tr.stat("2/b").Identity; err != nil && (!errors.Is(err, unix.ENOSPC) || now.MTime != was.MTime) {
		t.Errorf("got %+v with error %v, was %+v", now, err, was)
	}
	t.Log(err)
}

// A power cut at any step: the child names the one or the other, reads as before
// by either, and what was reported done is done.
func TestRepointThroughPowerCut(t *testing.T) {
	needQemu(t)
	for name, make := range map[string]func(*testing.T) *tree{"xfs": newXFS, "ext4": newSmallExt4} {
		for _, label := range RepointLabels {
			t.Run(name+" "+label, func(t *testing.T) {
				tr := make(t)
				job := tr.condemn()
				before := tr.guest("2/b")
				job.MTime = tr.stat("2/b").Identity.MTime + int64(time.Second)
				tr.sync()
				err := NewRebaser(tr, Options{Step: func(l string) {
					if l == label {
						tr.cut()
					}
				}}).Repoint(t.Context(), job)
				done := label == "REPOINT:NAMED"
				if (err == nil) != done {
					t.Errorf("got error %v", err)
				}
				tr.remount()
				h, now := tr.header("2/b"), tr.stat("2/b").Identity
				if named := h.Backing == job.Name; named != done || done && now.MTime != job.MTime {
					t.Errorf("got header %+v, %+v", h, now)
				}
				if got := tr.guest("2/b"); got != before {
					t.Fatalf("the guest reads %s, read %s", got, before)
				}
				if err := NewRebaser(tr, Options{}).Repoint(t.Context(), job); err != nil {
					t.Fatal(err)
				}
				tr.cut()
				tr.remount()
				checkRepointed(t, tr, before)
			})
		}
	}
}

// After a failed sync nothing goes on, until it is begun anew.
func TestRestart(t *testing.T) {
	needQemu(t)
	needRoot(t)
	tr := newSmallExt4(t)
	job := tr.condemn()
	before := tr.guest("2/b")
	r := NewRebaser(tr, Options{Step: func(l string) {
		if l == "REPOINT:NAME" {
			tr.cut()
		}
	}})
	tr.sync()
	p := r.newRepoint(job)
	if err := p.run(t.Context()); err == nil {
		t.Error("it was done")
	}
	p.close()
	r.stop(unix.EIO) // ext4 refuses the write already, before there is a sync to fail
	tr.remount()
	for _, err := range []error{r.CheckRepoint(job), r.Repoint(t.Context(), job)} {
		checkRefused(t, err, unix.EIO, "could not be synced before")
	}
	r.Restart()
	r.opts.Step = func(string) {}
	if err := r.Repoint(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	checkRepointed(t, tr, before)
}
