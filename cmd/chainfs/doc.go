// Chainfs makes deleting qcow2 backups safe.
//
// It mounts a directory tree of backups, on a NAS as a rule, as a file system
// of its own. In there every tool stays as it is, and the deletion of an image
// on which others stand becomes: its children absorb what they need from it,
// durably; then it is deleted. The deletion of a full that still has children
// is refused with "Device or resource busy".
//
// # Commands
//
//	chainfs mount [-o OPTIONS] [--foreground] [--store DIR]
//	              [--log-file FILE] [--log-level LEVEL] SOURCE MOUNTPOINT
//	chainfs umount MOUNTPOINT
//
// mount returns, and prints nothing, when the mount answers; a daemon serves it
// until it is unmounted, by umount(8) just as well, or gets SIGTERM: then what
// is running is undone and the mount is taken away even while it is in use.
// umount returns when the tree is free to be mounted again. One mount at a time
// writes to a tree, from whatever host; any number can be read-only (-o ro).
// A MOUNTPOINT where a killed daemon left a dead mount is cleaned up.
//
//	chainfs tree [PATH]              chains, drawn as trees
//	chainfs info PATH                all about one file; an array for a directory
//	chainfs why PATH                 can it be deleted, and why not
//	chainfs rm [--dry-run] [--force] PATH...
//	chainfs rebase TARGET NEW_BACKING
//	chainfs scan [PATH]              make the index equal to the tree
//	chainfs ops [PATH]               running and past operations
//	chainfs check [PATH]             look for what should not be
//	chainfs version
//
// All but mount and umount take --json. PATH is a path in the mount or in the
// tree itself; without one, the tree around the working directory is meant.
// Options may stand behind arguments; after -- nothing is an option.
//
// rm takes directories with all that is in them, and deletes all its arguments
// as one operation. With --force a full goes together with all that stands on
// it. --dry-run prints the plan.
//
// # Exit status
//
//	0  it is done; why: it can be deleted; check: nothing was found
//	1  an error, in one line on stderr; check: findings
//	3  refused: it would destroy a backup, and nothing was changed
//
// # With and without the daemon
//
// A command asks the daemon that has the tree open, over the control socket
// /run/chainfs/TREE-ID.sock (see package control). Where there is none it opens
// the tree itself: rm, rebase and scan own it for as long as they run, and end
// what a crash interrupted; the others change nothing in it and work beside an
// owner on another host too. Without the store (--store, $CHAINFS_STORE) they
// do with what is in the tree.
//
// # Files
//
//	SOURCE/.chainfs/           the tree's id, and its owner's lock
//	/var/lib/chainfs/TREE-ID/  the store, and chainfs.log
//	/run/chainfs/TREE-ID.sock  the control socket; beside it the lock of who has it
//
// Users other than root have $XDG_STATE_HOME/chainfs and $XDG_RUNTIME_DIR/chainfs.
//
// # Reading the source
//
// main.go and app.go; a file for each command; locate.go (from a path to its
// tree), connect.go (from a tree to who answers for it), session.go (an open
// tree) with service.go (what can be asked of it), daemon.go (a mount),
// daemonise.go, exit.go (the statuses).
package main
