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
//	              [--inline-limit SIZE|0|all] [--settle DURATION]
//	              [--keep DURATION] [--workers N]
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
//	chainfs info PATH                all about one file; an array for a directory;
//	                                 of the tree's root a summary first
//	chainfs why PATH                 can it be deleted, and why not
//	chainfs rm [--dry-run] [--force] [--wait] PATH...
//	chainfs trash [--empty] [PATH]   deleted images that can be brought back
//	chainfs undelete [--as NAME] PATH
//	chainfs rebase TARGET NEW_BACKING
//	chainfs scan [PATH]              make the index equal to the tree
//	chainfs ops [--watch] [PATH]     past, waiting and running operations
//	chainfs ops cancel|retry ID [PATH]
//	chainfs wait [PATH]              until nothing is pending for the chains there
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
// # Now and later
//
// An unlink returns when at most --inline-limit bytes (64M) had to be copied for
// it. What takes more is done in the background, on --workers chains at a time (2),
// once a chain was left alone for --settle (5s): until then a deleted image lies
// under a hidden name beside where it was, and its children read through it. With
// --keep that is so for every deleted image, for that long. Durations are Go's, and
// days and weeks: 90s, 12h, 7d, 2w. The options can be given in the environment,
// too: CHAINFS_INLINE_LIMIT, CHAINFS_SETTLE, CHAINFS_KEEP, CHAINFS_WORKERS.
//
// trash lists what is not absorbed yet, undelete brings it back; PATH is what it
// was called. ops says what each operation waits for or why it failed; wait returns
// when there is none left for the chains of PATH. .chainfs/status.json in the mount,
// which no listing shows, says what ops and the summary of info say.
//
// umount waits for none of this: the next mount goes on with it, and so does scan
// where there is no daemon.
//
// # Exit status
//
//	0  it is done; why: it can be deleted; check: nothing was found
//	1  an error, in one line on stderr; check: findings; wait: what was pending
//	   failed or was cancelled
//	3  refused: it would destroy a backup, and nothing was changed
//
// # With and without the daemon
//
// A command asks the daemon that has the tree open, over the control socket
// /run/chainfs/TREE-ID.sock (see package control). Where there is none it opens
// the tree itself: rm, undelete, rebase and scan own it for as long as they run,
// and end what a crash interrupted; ops cancel and retry have nothing to act on; the others change nothing in it and work beside an
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
// tree) with service.go and pending.go (what can be asked of it), daemon.go (a
// mount), daemonise.go, exit.go (the statuses).
package main
