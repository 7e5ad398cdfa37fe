// Package source is the tree on the NAS, reached by descriptors. It implements
// chain.Files, and gives the FUSE layer the same way to a file.
//
// # Why descriptors
//
// A path that is joined to the root's and given to the kernel is resolved anew
// at each call: whoever can write in the tree can swap a directory for a
// symbolic link in between, and a path of PATH_MAX below the mountpoint is too
// long below the root. So every call resolves the parent directory below the
// root's descriptor with openat2(2), which refuses symbolic links and anything
// that leads out, and then uses the at-family with the last name alone.
//
// # What is in the tree
//
//	.chainfs/tree.json   {"version":1,"id":"<32 hex digits>","created":"..."}
//	.chainfs/owner.lock  OFD write lock of the one writer; while it is held,
//	                     {"host":...,"pid":...,"mountpoint":...,"since":...}
//
// tree.json appears complete and durable or not at all, and is never replaced.
// owner.lock stays when nobody owns the tree; only its lock means anything.
//
// # Guarantees
//
// No call follows a symbolic link except Resolve, which does it one element at
// a time and never looks outside the tree. No call reports a file as missing
// unless the file system said so. Walk visits all that is in the tree from its
// beginning to its end, whatever others do meanwhile: when it returns nil, there
// was an instant at which all that it listed was true together, or what it may
// have missed was renamed at least five times during the walk. See maxRounds.
package source
