package chain_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/chainfs/chainfs/chain"
)

// One call after the other fails: of the file system and of the store, once or from
// then on, before it did something or after it. What was not deleted reads as
// before, what was answered with an error and is there stays there, and the next
// mount leaves nothing over.
func TestFaults(t *testing.T) {
	for _, act := range []struct {
		name string
		make func(*world) func() error
	}{
		{"condemn", func(w *world) func() error {
			return func() error { return w.delete("vm/T1/r") }
		}},
		{"condemn some", func(w *world) func() error {
			return func() error { return w.delete("vm/T1/r", "vm/T2/r", "vm/B4/r") }
		}},
		{"undelete", func(w *world) func() error {
			w.gone("vm/T1/r", "vm/T1/flat", "vm/T2/r")
			do(w.t, w.rmdir("vm/T1"))
			return func() error {
				_, err := w.tree.Undelete(bg, "vm/T1", "")
				return err
			}
		}},
		{"rmdir", func(w *world) func() error {
			w.gone("vm/T1/r", "vm/T1/flat")
			return func() error { return w.rmdir("vm/T1") }
		}},
		{"reclaim", func(w *world) func() error {
			w.gone("vm/T1/r", "vm/T2/r")
			return func() error { return w.tree.ReclaimNow(bg) }
		}},
	} {
		for _, noLinks := range []bool{false, true} {
			for _, mode := range []faults{{}, {after: true}, {more: true}, {more: true, tree: true}} {
				if mode.more && !mode.tree && act.name != "condemn some" {
					continue // the journal is as lost as with a kill
				}
				name := fmt.Sprintf("%s, links %v, after %v, more %v, tree only %v", act.name, !noLinks, mode.after, mode.more, mode.tree)
				t.Run(name, func(t *testing.T) {
					for n := 1; faulty(t, n, mode, noLinks, act.make); n++ {
					}
				})
			}
		}
	}
}

// faulty reports whether there was an n-th call that could fail.
func faulty(t *testing.T, n int, mode faults, noLinks bool, make func(*world) func() error) bool {
	w, rng := deferred(t, 4)
	defer w.end()
	w.write("vm/B3/r", "vm/T2/r", rng)
	w.write("vm/B4/r", "vm/B3/r", rng)
	w.write("vm/T1/flat", "vm/T1/r", rng)
	w.write("vm/F/r", "vm/T1/flat", rng)
	w.noLinks = noLinks
	w.mount()
	before := maps.Clone(w.want)
	act := make(w)
	*w.faults = mode
	w.faults.at = n
	err := act()
	what := w.faults.what
	*w.faults = faults{}
	if what == "" {
		do(t, err)
		return false
	}
	t.Logf("%d: %s: %v", n, what, err)
	there := w.there(before)
	w.want = there
	if !noLinks {
		w.reads() // for somebody who has the NAS and no chainfs
	}
	w.mount()
	w.want = w.there(before)
	for p := range there {
		// What could not be recorded as ended is completed, as a deletion always was.
		unrecorded := strings.Contains(what, "finish") || mode.more && strings.Contains(what, "record")
		if err != nil && w.want[p] == nil && !unrecorded {
			t.Errorf("call %d, %s: %s was there after the error %q, and the next mount deleted it", n, what, p, err)
		}
	}
	w.checkClean()
	w.reclaimed()
	return true
}

// there are the images of all that are in the tree.
func (w *world) there(all map[chain.Path]map[string]string) map[chain.Path]map[string]string {
	there := map[chain.Path]map[string]string{}
	for _, p := range slices.Sorted(maps.Keys(all)) {
		if w.exists(p) {
			there[p] = all[p]
		}
	}
	return there
}

// A change of names is cut off where there are no hard links, and the journal is lost
// or cannot be carried on with: the child names what is not there, and the condemned
// image looks as if nothing stood on it. It must not go.
func TestStrandedChildKeepsItsParent(t *testing.T) {
	for _, lost := range []bool{false, true} {
		for _, long := range []bool{false, true} {
			for n := 1; ; n++ {
				w, rng := deferred(t, 1)
				p := chain.Path("vm/T1/r")
				if long {
					p = chain.Path("vm/T1/" + strings.Repeat("n", 250))
				}
				w.write(p, "vm/T0/r", rng)
				w.write("vm/T2/r", p, rng)
				w.noLinks = true
				w.mount()
				want := maps.Clone(w.want)
				_, dead := w.run(n, func() error { return w.delete(p) })
				if !dead {
					break
				}
				if lost {
					w.loseStore()
				}
				*w.faults = faults{at: 1, more: true, tree: true}
				w.mount() // and nothing can be changed in the tree
				*w.faults = faults{}
				if err := w.tree.ReclaimNow(bg); err != nil && !refused(err) {
					t.Fatal(err)
				}
				w.mount()
				trash, err := w.tree.Trash(bg, "")
				do(t, err)
				for _, c := range trash {
					_, err := w.tree.Undelete(bg, c.Hidden, p)
					do(t, err)
				}
				w.want = w.there(want)
				w.checkClean()
			}
		}
	}
}

// What was answered with an error while the journal could not be written is not
// carried out by the next mount after others have changed the same files.
func TestUnrecordedIsRecordedLater(t *testing.T) {
	for _, mode := range []faults{{more: true}, {}} {
		for n, failed := 1, true; failed; n++ {
			w, _ := deferred(t, 5)
			*w.faults = mode
			w.faults.at = n
			err := w.delete("vm/T1/r", "vm/T4/r")
			failed = w.faults.what != ""
			*w.faults = faults{}
			if err == nil || !w.exists("vm/T4/r") {
				continue
			}
			w.gone("vm/T4/r") // for itself
			w.mount()
			if !w.exists("vm/T1/r") {
				t.Fatalf("call %d: the next mount deleted what was answered with an error", n)
			}
			w.checkClean()
		}
	}
}

// A mount that is killed, or fails, while it ends what another one had begun leaves
// that to the next. With -rounds 1000 it is at every step of the first one.
func TestRecoveryIsCutOff(t *testing.T) {
	every := 4
	if *rounds >= 1000 {
		every = 1
	}
	for _, noLinks := range []bool{false, true} {
		for _, act := range []func(*world) error{
			func(w *world) error { return w.delete("vm/T1/r") },
			func(w *world) error { return w.rmdir("vm/T2") },
			func(w *world) error { _, err := w.tree.Undelete(bg, "vm/T2", ""); return err },
		} {
			for n := 2; ; n += every {
				dead := false
				for k := 1; k < 40; k++ {
					var again bool
					if dead, again = recoveryCutOff(t, noLinks, act, n, k); !again {
						break
					}
				}
				if !dead {
					break
				}
			}
		}
	}
}

// recoveryCutOff cuts off an act at its n-th step and the recovery at its k-th step,
// or call that fails; both are false when there was no such step.
func recoveryCutOff(t *testing.T, noLinks bool, act func(*world) error, n, k int) (dead, again bool) {
	w, rng := deferred(t, 4)
	w.write("vm/B3/r", "vm/T2/r", rng)
	w.noLinks = noLinks
	w.mount()
	before := maps.Clone(w.want)
	w.gone("vm/T2/r")
	if _, dead = w.run(n, func() error { return act(w) }); !dead {
		return false, false
	}
	if k%2 == 0 {
		*w.faults = faults{at: k / 2, more: true, tree: true}
	}
	_, again = w.run((k+1)/2*(k%2), func() error { return w.reopen(func(*chain.Config) {}) })
	again = again || w.faults.what != ""
	*w.faults = faults{}
	w.want = w.there(before)
	if !noLinks {
		w.reads()
	}
	w.mount()
	w.want = w.there(before)
	w.checkClean()
	w.reclaimed()
	return dead, again || k%2 == 1
}
