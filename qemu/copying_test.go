package qemu

import (
	"testing"

	"github.com/chainfs/chainfs/chain"
	"golang.org/x/sys/unix"
)

// What a job moves depends on what the file system was found to do, and without
// that on its type.
func TestMeasureMoves(t *testing.T) {
	needQemu(t)
	ext4 := func(t *testing.T) *tree { return newExt4(t, 128<<20) }
	no, shares, server := &Copying{}, &Copying{Shares: true}, &Copying{Server: true}
	for _, c := range []struct {
		name    string
		make    func(t *testing.T) *tree
		copying *Copying
		args    []string
		free    bool
	}{
		{"ext4", ext4, nil, nil, false},
		{"ext4 that was tried", ext4, no, nil, false},
		{"ext4 whose server copies", ext4, server, nil, true},
		{"xfs", newXFS, nil, nil, true},
		{"xfs that was tried", newXFS, shares, nil, true},
		{"xfs that was tried and does not share", newXFS, no, nil, false},
		{"xfs with clusters smaller than blocks", newXFS, shares, []string{"-o", "cluster_size=1k"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr := c.make(t)
			tr.chain()
			if c.args != nil {
				tr.create("1/a", "../0/full", c.args...)
				tr.create("2/b", "../1/a", c.args...)
				heavy(tr, "4M")
			}
			for _, byCopy := range []bool{false, true} {
				job := tr.job()
				got, err := NewRebaser(tr, Options{Copying: c.copying, ByCopy: byCopy}).Measure(t.Context(), job)
				want := got.Bytes
				switch whole := c.free || c.args != nil; { // a file is cloned whatever its clusters
				case !byCopy && c.free:
					want = 0
				case byCopy && !whole:
					want += tr.stat("2/b").Allocated
				}
				if err != nil || got.Moves != want || got.Bytes == 0 {
					t.Errorf("by copy: %v: measured %+v, %v, want %d moved", byCopy, got, err, want)
				}
			}
		})
	}
}

// Nothing moves where nothing is left to do.
func TestMeasureOfDoneMovesNothing(t *testing.T) {
	needQemu(t)
	tr := newTree(t)
	tr.chain()
	job := tr.job()
	r := NewRebaser(tr, Options{})
	if err := r.Rebase(t.Context(), job, nil); err != nil {
		t.Fatal(err)
	}
	if e, err := r.Measure(t.Context(), job); err != nil || e.Bytes != 0 || e.Moves != 0 {
		t.Errorf("measured %+v, %v", e, err)
	}
}

// What was found out about the root says nothing about another file system in the
// tree, nor about copies from the one to the other.
func TestCopyingOfNested(t *testing.T) {
	needQemu(t)
	nested := newXFS(t)
	nested.chain()
	free := &Copying{Shares: true, Server: true}
	for _, c := range []struct {
		root *Copying
		want Copying
	}{{free, Copying{Shares: true}}, {&Copying{}, Copying{Shares: true}}} {
		w := NewRebaser(elsewhere{nested}, Options{Copying: c.root}).newRebase(nested.job(), nil)
		defer w.close()
		if err := w.openChild(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got, err := w.copying(0); err != nil || got != c.want {
			t.Errorf("got %+v, %v", got, err)
		}
	}
	tr := newTree(t)
	tr.chain()
	if err := unix.Mount(nested.host("1"), tr.host("1"), "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(tr.host("1"), 0)
	if e, err := NewRebaser(tr, Options{Copying: free}).Measure(t.Context(), tr.job()); err != nil || e.Moves != e.Bytes || e.Bytes == 0 {
		t.Errorf("measured %+v, %v", e, err)
	}
}

// elsewhere is a tree whose root is on another file system.
type elsewhere struct{ *tree }

func (e elsewhere) Stat(p chain.Path) (chain.Entry, error) {
	at, err := e.tree.Stat(p)
	if p == "" {
		at.Device++
	}
	return at, err
}

// An XFS that does not share extents needs room for what is copied.
func TestRoomWithoutSharing(t *testing.T) {
	needQemu(t)
	tr := newXFS(t)
	tr.chain()
	heavy(tr, "20M")
	fill(t, tr, 10<<20)
	r := NewRebaser(tr, Options{Copying: &Copying{}})
	checkRefused(t, r.Rebase(t.Context(), tr.job(), nil), unix.ENOSPC, "needed in 2; make room")
}
