// Package qemu stands between the chains and the images in them: it reads what
// an image says about itself, knows who is using it, and puts it on another
// parent.
//
//   - Inspector reads headers. It never opens what a header names.
//   - Locks speaks qemu's image locks, so that a running qemu and chainfs never
//     work on the same file.
//   - Rebaser changes what an image stands on and nothing of what its guest
//     reads.
//
// # Rebase
//
// There are two usual ways. At every instant of both, the child's name leads to a
// complete image that reads as before, and nothing is reported done that is not
// durable. Start reading at rebase.run, which lists the steps.
//
// In place, which is the usual one: package qcow2 writes what the child needs
// behind the end of its file, makes that durable, then has the child's tables lead
// to it, and at last its header name the new parent. Others may open the child
// for reading meanwhile. Those who had it open before are not let be: qemu takes a
// file's length once. When the work is cut off the child is as it was or has some
// of its parent's data twice, and Recover gives back what nothing leads to.
//
// By a copy, where the child cannot be changed in place: its refcounts are stale,
// its header has no room, it has another name, or its new parent is not one of
// the images below it. "qemu-img rebase" alone is not safe: it writes the new
// backing name before the data is flushed, and ignores an error of that flush. So
// it works on a scratch copy, which is compared with the child, made durable, and
// renamed over it.
//
// Measure tells which way a job will go, and why. A file system that cannot hold
// the result, and an image that somebody uses, are refused before anything is
// changed.
//
// Downwards, where the parent takes what the child has and then its place: see
// MergeDown. And Repoint changes no parent at all, only the name that a child has
// for it, in the header alone.
//
// Each job ends soon when it is cancelled, because somebody may be waiting who
// holds a directory's lock: what cannot be interrupted, a sync above all, is kept
// short (BenchmarkCancel).
//
// qemu-img runs in the child's directory, reached by descriptor, and in a mount
// namespace without our own mount: reading through that one while a deletion
// holds a directory's lock would never end.
package qemu
