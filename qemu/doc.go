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
// "qemu-img rebase" alone is not safe: it writes the new backing name before the
// data is flushed, and ignores an error of that flush. So it works on a scratch
// copy, which is compared with the child, made durable, and renamed over it. At
// every instant the child's name leads to a complete image. Start reading at
// rebase.run, which lists the steps.
//
// qemu-img runs in the child's directory, reached by descriptor, and in a mount
// namespace without our own mount: reading through that one while a deletion
// holds a directory's lock would never end.
package qemu
