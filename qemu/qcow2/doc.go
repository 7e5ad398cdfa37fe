// Package qcow2 is an engine for qcow2 images: it reads through a chain of them
// as a guest does, and removes images from the middle of a chain without the
// guest reading anything else at any instant, a power cut included.
//
//   - ReadHeader tells what an image says about itself, valid or not.
//   - Open, OpenRaw and NewChain read: Chain.ReadAt, Chain.Map.
//   - Absorb has a child take from its parents what it would lose with them.
//     Start reading there: it lists the steps, and mover.move carries them out.
//   - MergeDown has a parent take what its child has.
//   - SetBacking names another parent in a header.
//   - Check finds what is wrong with an image's tables; Reclaim and RepairLeaks
//     give leaked clusters back.
//
// # What a caller may rely on
//
// An image is changed in groups of writes, each durable before the next. Inside a
// group any subset of its sectors may reach the disk: every entry of every table,
// and the header, is the old one or the new one, and both read the same. What can
// be left behind are leaked clusters.
//
// Images are hostile input: guests and other tenants write them. Every number is
// validated before anything is allocated by it, memory is bounded whatever a file
// says, and what takes long ends with its context.
//
// A header that is wrong in one place is still told in all others: together
// with an error of one of the groups in errors.go comes what could be read.
// That holds above all for the backing name, because a file whose parent is
// unknown might be the child of any image.
//
// Nothing here locks a file, or knows of names in a tree: that is for package qemu.
//
// # Sources
//
// "Specification" means QEMU's docs/interop/qcow2.rst; the limits that it calls
// implementation limits are those of qcow2_do_open in block/qcow2.c.
package qcow2
