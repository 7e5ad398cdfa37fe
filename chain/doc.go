// Package chain decides what may be deleted from a tree of backup images, and
// does it.
//
// # Words
//
// The tree is the directory on the NAS. An image is a disk image file in it; an
// incremental names its parent as its backing file. A full and all that hangs
// below it is a chain, which may branch. See docs/DESIGN.md for the rest.
//
// # How a deletion runs
//
// Tree.Delete walks the tree so that the graph equals it, lets Graph.PlanDelete
// compute a plan without side effects, has the journal record it, and carries
// it out step by step: each child absorbs what it needs, the tree is walked
// again, the operation is committed, and only then files are unlinked.
//
// # Now or later
//
// A deletion that would have to move much is condemned instead (condemn.go): the
// image gets a hidden name beside its own (hidden.go), its children name that, and
// its own name goes. The reclaimer (reclaimer.go, with a job for each batch that
// reclaim.go finds in the graph) deletes the hidden names later, as above. Names
// change in relocate.go, which condemning, bringing back (undelete.go) and removing
// directories (rmdir.go) share.
//
// # Guarantees
//
// At any instant, through a kill, a power cut, a full disk or an I/O error: no
// image that was not deleted changes what its guest would read, no file is
// unlinked while an image names it, and an operation found in the journal at
// start is completed when it was committed and undone when it was not. What was
// condemned is known by its names, also without the journal.
//
// The package reaches the world through the interfaces in ports.go only. It
// imports the standard library and golang.org/x/sys.
package chain
