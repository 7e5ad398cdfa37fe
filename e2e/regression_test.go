package e2e

import "testing"

// A rebase may make a backup set of a directory that was none, and the rule
// about sets must not refuse a deletion that has begun: T1 becomes a set, of
// which T1/d could not be deleted, once T1/s stands on T0/r.
func TestE2ESetFormedByRebase(t *testing.T) {
	s := newSite(t)
	s.image("T0/r.qcow2", "")
	s.image("T1/r.qcow2", "T0/r.qcow2")
	s.image("T1/s.qcow2", "T1/r.qcow2")
	s.image("T1/d.qcow2", "")
	s.image("B/d.qcow2", "T1/d.qcow2")
	s.mount()
	s.sh("rm T1/r.qcow2")
	s.gone("T1/r.qcow2")
	s.intact()
	s.clean()
}
