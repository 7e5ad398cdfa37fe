package qemu

import (
	"os"
	"testing"

	"github.com/chainfs/chainfs/chain"
)

// interrupted is a tree in which a rebase of 2/b was cut off when it had stored
// what nothing leads to yet, and the child as it was before.
func interrupted(t *testing.T) (*tree, chain.Identity) {
	t.Helper()
	tr := newTree(t)
	tr.chain()
	job := tr.job()
	crash(t, tr, job, Options{Step: func(l string) {
		if l == "ABSORB:LINK" {
			panic(l)
		}
	}})
	if tr.stat("2/b").Identity == job.Identity {
		t.Fatal("nothing was stored")
	}
	return tr, job.Identity
}

func TestRecoverGivesBack(t *testing.T) {
	needQemu(t)
	tr, was := interrupted(t)
	before := tr.guest("2/b")
	if err := NewRebaser(tr, Options{}).Recover(t.Context(), "2/b", was); err != nil {
		t.Fatal(err)
	}
	checkGivenBack(t, tr, was, before)
	if now := tr.stat("2/b").Identity; now.MTime <= was.MTime {
		t.Errorf("it is as old as before: got %+v, was %+v", now, was)
	}
}

// Everything that is not what an interrupted rebase left stays as it is.
func TestRecoverLeavesAlone(t *testing.T) {
	needQemu(t)
	for _, c := range []struct {
		name  string
		spoil func(t *testing.T, tr *tree, was *chain.Identity)
		want  error // nil for success, errRefused for a *chain.RefusedError
	}{
		{name: "replaced", spoil: func(t *testing.T, tr *tree, _ *chain.Identity) {
			tr.qemu("cp", "2/b", "2/c")
			if err := os.Rename(tr.host("2/c"), tr.host("2/b")); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "read", want: errRefused, spoil: func(_ *testing.T, tr *tree, _ *chain.Identity) {
			tr.reader("2/b")
		}},
		{name: "written", want: errRefused, spoil: func(_ *testing.T, tr *tree, _ *chain.Identity) {
			tr.open("2/b")
		}},
		{name: "gone", want: os.ErrNotExist, spoil: func(t *testing.T, tr *tree, _ *chain.Identity) {
			tr.qemu("cp", "2/b", "2/c")
			t.Cleanup(func() { tr.qemu("cp", "2/c", "2/b") })
			if err := os.Remove(tr.host("2/b")); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr, was := interrupted(t)
			c.spoil(t, tr, &was)
			var before string
			if c.name != "gone" {
				before = state(t, tr)
			}
			err := NewRebaser(tr, Options{}).Recover(t.Context(), "2/b", was)
			switch {
			case c.want == nil && err != nil:
				t.Error(err)
			case c.want == errRefused:
				checkRefused(t, err, nil, "2/b is open for ")
			case c.want != nil:
				checkRefused(t, err, c.want, "2/b")
			}
			if c.name != "gone" && state(t, tr) != before {
				t.Error("the file was changed")
			}
		})
	}
}

// A power cut can lose the child's new size and time and keep counts that were
// written: the identity says that nothing happened, and there are leaks.
func TestRecoverTrustsNoIdentity(t *testing.T) {
	needQemu(t)
	tr, _ := interrupted(t)
	before := tr.guest("2/b")
	was := tr.stat("2/b").Identity
	if err := NewRebaser(tr, Options{}).Recover(t.Context(), "2/b", was); err != nil {
		t.Fatal(err)
	}
	tr.qemu("qemu-img", "check", "-q", "-f", "qcow2", "2/b") // it fails when there are leaks
	if tr.guest("2/b") != before {
		t.Error("the guest reads something else")
	}
}

var errRefused = chain.Refuse("", "")
