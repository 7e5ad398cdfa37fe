// Package fs is the mount: kernel calls become calls of package chain, and what
// chain answers becomes errnos.
//
// # Layout
//
// A node stands for a file of the tree and knows nothing but its place; every
// call reaches the tree by descriptors below its root (package fs/source). What
// an operation means for chains is decided in package chain: Unlink, Rename and
// the opening of a file for writing ask there, everything else passes through.
//
// .chainfs in the mount's root is made here (control.go): status.json says what is
// being worked on. Of the tree's own .chainfs nothing is seen.
//
// # Guarantees
//
// A refusal is EBUSY and changed nothing; an interrupted call is EINTR, and the
// file and its chain are whole. Nothing here answers ENOENT, EINVAL, ENOTDIR or
// EILSEQ for a file that is there, because rm -f would take that for success.
//
// What has a hidden name, or lies below one, is not listed, can be looked up and
// read, and cannot be changed through the mount: EPERM.
//
// There is no global state: a process can serve any number of mounts.
package fs
