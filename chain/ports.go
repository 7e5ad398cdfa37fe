package chain

import (
	"context"
	"errors"
	"io"
	"os"
)

// The interfaces below are all that this package needs from the world. Each has
// one implementation for production: Files in fs/source, Inspector, Rebaser,
// ImageChecker and a Watcher in qemu, Index and Journal in store, another Watcher
// in fs.

// FileType is the little that chains need to know of a file's type.
type FileType uint8

// The types of file.
const (
	Regular FileType = iota + 1
	Directory
	Symlink
	Other // device, FIFO, socket
)

// Entry is one name in the tree.
type Entry struct {
	Path      Path
	Type      FileType
	Identity  Identity
	Allocated int64  // bytes on disk
	Device    uint64 // st_dev; good for comparing within one walk only
}

// Resolution is where a backing name leads.
type Resolution struct {
	Path     Path   // inside the tree; meaningless when External
	Links    []Path // symbolic links that were followed inside the tree
	External bool   // the name leads out of the tree
}

// Files is the tree on the NAS. Every call works below the tree's root
// descriptor and never follows a symbolic link or a mount out of it.
type Files interface {
	// Walk visits every entry below the root, one call at a time but from any
	// goroutine, in no particular order; the tree's own .chainfs is left out, other
	// hidden names are not. What is in the tree during the whole walk is visited at
	// least once, wherever renames carry it meanwhile; only one that was renamed
	// five times, each time ahead of the walk, can be missed. A visit may be
	// stale, the entry having moved or gone since, and the same entry may be
	// visited again, at the same path or another. A directory that cannot be listed is given to
	// Unreadable, which may be stale too, and the walk goes on; an error is
	// returned when the tree as a whole cannot be read.
	Walk(ctx context.Context, w Walker) error

	// Stat is lstat. A missing file is fs.ErrNotExist, and nothing else is.
	Stat(p Path) (Entry, error)

	// Open opens a regular file for reading, and nothing but a regular file.
	Open(p Path) (*os.File, error)

	// OpenDir opens a directory for the calls of the at-family.
	OpenDir(p Path) (*os.File, error)

	// Resolve follows a backing name that stands in a file in directory dir, as
	// the kernel would when qemu opens it: symbolic links included, absolute
	// names as seen on the NAS and as seen in the mount. The last element need
	// not exist.
	Resolve(dir Path, name string) (Resolution, error)

	// Unlink removes a file that is not a directory.
	Unlink(p Path) error

	// Rename moves a file with the flags of renameat2(2).
	Rename(from, to Path, flags uint) error

	// Link gives the regular file at from a second name. Where the file system
	// cannot, it is ErrNoLinks; a name that is taken is fs.ErrExist.
	Link(from, to Path) error

	// ReadDir are the entries of a directory, by name, chainfs's own included.
	ReadDir(p Path) ([]Entry, error)

	// MkdirLike makes a directory with the owner, mode, extended attributes and
	// modification time of another, and makes it durable.
	MkdirLike(p, like Path) error

	// Rmdir removes an empty directory and makes that durable.
	Rmdir(p Path) error

	// SyncDir makes the directory's entries durable.
	SyncDir(p Path) error

	// Present is nil while the tree is the one that was opened, and says what
	// is wrong when its file system went away or another was put in its place.
	Present() error
}

// Walker receives what a walk finds.
type Walker struct {
	Visit      func(Entry) error
	Unreadable func(Path, error)
}

// Inspector reads what a file says about itself.
type Inspector interface {
	// Inspect reads the header of a file of size bytes. An error means that the
	// file could not be read; a file that could be read and is no image, or a
	// bad one, is a Header that says so.
	Inspect(f io.ReaderAt, size int64) (Header, error)
}

// RebaseJob is one child to be put on a new parent.
type RebaseJob struct {
	Op       OpID
	Child    Path
	Identity Identity // the child as it was when it was planned
	// Layers are the images below the child as it is now, its parent first.
	Layers []Layer
	// NewLayers are the images below it afterwards, its new parent first. In a
	// deletion they are the last of Layers.
	NewLayers []Layer
	// NewParent is the image it will stand on; empty makes it a full.
	NewParent Path
	NewName   Path // the backing name to be written, empty for a full
	NewFormat Format
	Scratch   Path // where to build the replacement: hidden, beside the child
	Bytes     int64

	// Merge is the same job done the other way, where the chain allows it.
	Merge *MergeJob

	// Unread is an error while somebody reads the child who takes no locks. It is
	// asked once the file is as long as it gets: qemu takes a file's length once, and
	// who has opened it before that would read zeros behind it.
	Unread func() error `json:"-"`
}

// MergeJob is an image that is deleted by taking over what its only child has and
// taking the child's place.
//
// The parent is deleted for its user once its name is gone; until then the job
// can be undone, and afterwards it can only be completed. The scratch name is the
// parent's from before the one moment to behind the other.
type MergeJob struct {
	Op       OpID
	Child    Path
	Before   Identity // the child as it was when it was planned
	Parent   Path
	Identity Identity // the parent as it was when it was planned
	NewName  Path     // the parent's own backing name, as it is right in both directories
	Format   Format
	Scratch  Path // the parent's hidden name, beside the child

	// Unneeded is asked right before a name of the parent goes: its own, and the
	// hidden one when that becomes the child's. It looks at the tree again, and an
	// error is that some image needs the name, other than the child.
	Unneeded func(ctx context.Context, name Path) error `json:"-"`
}

// ErrUnfinished: the file is deleted, and what is left to do is done when the
// tree is opened again.
var ErrUnfinished = errors.New("deleted; the merge is completed at the next mount")

// Layer is an image below another.
type Layer struct {
	Path    Path
	Format  Format
	Backing Path // its backing name as its header has it
}

// Way is how a rebase is done.
type Way string

// The ways.
const (
	InPlace   Way = "in place"  // the child's file takes what it needs
	ByCopy    Way = "by a copy" // a copy of the child is rebased and takes its place
	MergeDown Way = "downwards" // the parent takes what the child has, and its place
)

// RepointJob has a child name its parent by another of the parent's names. It
// reads the same before and after.
type RepointJob struct {
	Child Path
	Inode uint64 // the child's file as it was when that was planned
	From  Path   // where the child's backing name leads now, be a file there or not
	To    Path   // where it is to lead, unless an earlier run has done that
	Name  Path   // the backing name to be written
	// Format is the parent's, as the child's header says already.
	Format Format
	// MTime is the child's modification time afterwards, in nanoseconds since
	// 1970; 0 is a step after what it is, so that replicas see the change.
	MTime int64
	// Names is how many names the child's file may have, all in its directory, so
	// that the new backing name is right for each; 0 is 1.
	Names int
}

// ErrNotInPlace: a header cannot be changed in place, because it has no room for
// the name, or its file has another name, or is such that only a copy can be
// changed. Nothing was changed.
var ErrNotInPlace = errors.New("the header cannot be changed in place")

// ErrNoLinks: the file system has no hard links.
var ErrNoLinks = errors.New("the file system has no hard links")

// Effort is what a rebase takes.
type Effort struct {
	Bytes  int64  `json:"bytes"`             // to be copied
	Moves  int64  `json:"moves"`             // of these, bytes that this host has to move: not shared, and not copied by the server
	AtMost bool   `json:"at_most,omitempty"` // Bytes is an upper bound
	Way    Way    `json:"way,omitempty"`
	Why    string `json:"why,omitempty"` // the reason, where it is not the usual way
}

// Rebaser changes what one image stands on and nothing of what its guest reads.
type Rebaser interface {
	// Measure tells what a job would take. It changes nothing.
	Measure(ctx context.Context, job RebaseJob) (Effort, error)

	// Rebase returns nil once the child durably stands on its new parent. On
	// any error the child reads as before; the scratch file may be left.
	Rebase(ctx context.Context, job RebaseJob, progress func(done, total int64)) error

	// MergeDown carries out job.Merge of a job that was measured as MergeDown. It
	// may be called again after a crash and any error. Before the parent's name is
	// gone an error leaves all as it was; afterwards it is ErrUnfinished.
	MergeDown(ctx context.Context, job MergeJob, progress func(done, total int64)) error

	// Recover gives back space that an interrupted Rebase of the child took.
	// before is the child as it was then.
	Recover(ctx context.Context, child Path, before Identity) error

	// CheckRepoint is ErrNotInPlace when Repoint cannot do the job, and a refusal
	// when the child is in use. It changes nothing.
	CheckRepoint(job RepointJob) error

	// Repoint returns nil once the child durably names its parent by the new name.
	// On any error it names it by the one or the other. Doing it again is a no-op.
	Repoint(ctx context.Context, job RepointJob) error

	// Restart has a Rebaser that stopped after a failed sync begin anew, as
	// starting chainfs again would. What runs meanwhile goes on, and stops it again
	// when its own sync fails.
	Restart()
}

// ImageReport is what is wrong inside an image.
type ImageReport struct {
	Identity       Identity // of the file that was looked into
	Corruptions    int      // they cost data, or will
	StaleFlags     int      // of the corruptions: they cost nothing, and a repair of leaks mends them
	Example        string   // the first corruption, a sentence
	LeakedClusters int64    // they cost space
	LeakedBytes    int64
	Dirty          bool   // the image was not closed: its refcounts may be stale
	Unrepairable   string // why its leaks cannot be removed, a predicate; empty when they can
}

// ImageChecker looks into qcow2 images.
type ImageChecker interface {
	// CheckImage looks into an image that nobody is writing to; it takes no locks
	// and keeps nobody from anything. An error means that nothing can be said
	// about the image.
	CheckImage(ctx context.Context, p Path) (ImageReport, error)

	// RepairLeaks removes an image's leaks, and returns how many bytes are free
	// again. The image reads the same at every instant, whatever comes of it.
	// When the image is in use, or is not what identity says, it was not touched.
	RepairLeaks(ctx context.Context, p Path, identity Identity) (freed int64, err error)
}

// Use says how an image is being used by others.
type Use struct {
	Writer bool   // somebody has it open for writing
	Reader bool   // somebody has it open for reading, and takes no lock that others see
	Locked bool   // a qemu process has it open, for reading or writing
	By     string // who, as far as it is known: "qemu (process 4711)"
}

// Watcher knows about users of images.
type Watcher interface {
	InUse(p Path) (Use, error)
}

// Index stores image records.
type Index interface {
	// Images calls f for every stored image.
	Images(ctx context.Context, f func(Image) error) error
	// NewImageID hands out ids that were never handed out before.
	NewImageID() (ImageID, error)
	// Update stores and removes images in one transaction.
	Update(put []Image, remove []ImageID) error
	// Plain returns the marks of files that were read and found to be no image.
	Plain() (map[Mark]struct{}, error)
	// SetPlain replaces the marks.
	SetPlain(marks map[Mark]struct{}) error
}

// Mark stands for a path together with its identity.
type Mark [16]byte

// Journal stores operations. Each call is durable when it returns.
type Journal interface {
	NewOpID() (OpID, error)
	// Record stores an operation as it is now.
	Record(op Operation) error
	// Finish stores an ended operation together with what it changed in the
	// index, in one transaction.
	Finish(op Operation, put []Image, remove []ImageID) error
	// Operations lists operations, the oldest first. With running set only
	// those that have not ended.
	Operations(running bool) ([]Operation, error)
}
