package qemu

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/qemu/qcow2"
	"golang.org/x/time/rate"
)

// Options are a Rebaser's.
type Options struct {
	// Program is the qemu-img to run: an absolute path, or a name to be found in
	// PATH. Empty is "qemu-img".
	Program string

	// Mountpoint is where the tree is mounted by chainfs, Source where it lies
	// on this host. Both are absolute and without symbolic links, or empty.
	// Absolute backing names are as seen at one of them. With a Mountpoint,
	// qemu-img runs in a mount namespace of its own, which needs CAP_SYS_ADMIN
	// and, for absolute names, Linux 5.2.
	Mountpoint, Source string

	// AddressSpace limits the memory of qemu-img, in bytes; 0 is 8 GiB. It must
	// hold the refcounts of the largest image while that is checked: 32 MiB for
	// each TiB at 64 KiB clusters.
	AddressSpace uint64

	// Verify says when what was copied is read back before anything leads to it.
	Verify Verify

	// Limit is the most bytes a second that are copied, by all jobs together; 0
	// for no limit. What qemu-img copies by itself is not counted.
	Limit int64

	// Copying is what copies cost on the file system of the tree's root, where that
	// was found out. Elsewhere in the tree, and everywhere while it is nil, it is
	// guessed by the file system's type.
	Copying *Copying

	// ByCopy has every job done by way of a scratch copy.
	ByCopy bool

	// Step, when set, is called with each of Labels on the way. Tests stop the
	// program there.
	Step func(label string)
}

// Verify says when what was copied is compared with what it is a copy of.
type Verify string

// VerifySome verifies up to VerifyUpTo bytes.
const (
	VerifySome   Verify = "auto"
	VerifyAlways Verify = "always"
	VerifyNever  Verify = "never"

	VerifyUpTo = 1 << 30
)

// wants reports whether a copy of n bytes is to be verified.
func (v Verify) wants(n int64) bool {
	return v == VerifyAlways || v != VerifyNever && n <= VerifyUpTo
}

// Labels are the points that Options.Step is told, in order: those of a rebase in
// place, those of one by a scratch copy, those of a merge downwards, and those of a
// change of the parent's name.
var Labels = slices.Concat(qcow2.Labels, CopyLabels, MergeLabels, RepointLabels)

// CopyLabels are the points of a rebase by a scratch copy.
var CopyLabels = []string{
	"REBASE:SCRATCH",  // the scratch file is about to be created
	"REBASE:COPIED",   // it is a copy of the child, and about to be rebased
	"REBASE:REBASED",  // it stands on the new parent, and is about to be verified
	"REBASE:VERIFIED", // it reads as the child, and is about to be made durable
	"REBASE:RENAME",   // it is durable, and about to replace the child
	"REBASE:RENAMED",  // it has replaced the child, and the directory is about to be synced
	"REBASE:SYNCED",   // the child durably stands on the new parent
}

// Rebaser puts images on other parents: in place where the image allows it, and
// else by way of a scratch copy that qemu-img works on. It is a chain.Rebaser.
type Rebaser struct {
	files chain.Files
	opts  Options
	limit *rate.Limiter // nil for none

	mu     sync.Mutex
	broken error // guarded by mu; see stop
}

var _ chain.Rebaser = (*Rebaser)(nil)

// NewRebaser rebases images of a tree.
func NewRebaser(files chain.Files, opts Options) *Rebaser {
	if opts.Program == "" {
		opts.Program = "qemu-img"
	}
	if opts.AddressSpace == 0 {
		opts.AddressSpace = 8 << 30
	}
	if opts.Step == nil {
		opts.Step = func(string) {}
	}
	r := &Rebaser{files: files, opts: opts}
	if opts.Limit > 0 {
		// A burst of one piece: the pieces that are waited for are at most that long.
		r.limit = rate.NewLimiter(rate.Limit(opts.Limit), limitPiece)
	}
	return r
}

// Rebase returns nil once the child durably stands on its new parent. On an
// error the child stands where it stood and reads as before, with one exception:
// when the last fsync failed it may stand on either, and this Rebaser refuses all
// further work until Restart.
func (r *Rebaser) Rebase(ctx context.Context, job chain.RebaseJob, progress func(done, total int64)) error {
	w := r.newRebase(job, progress)
	defer w.close()
	if err := w.run(ctx); err != nil {
		return fmt.Errorf("rebase %s onto %s: %w", job.Child, target(job), err)
	}
	return nil
}

func (r *Rebaser) newRebase(job chain.RebaseJob, progress func(done, total int64)) *rebase {
	if progress == nil {
		progress = func(int64, int64) {}
	}
	return &rebase{
		Rebaser: r, job: job, progress: progress,
		read: map[chain.Path]chain.Header{}, layers: map[chain.Path]*os.File{},
	}
}

func target(job chain.RebaseJob) string {
	if job.NewName == "" {
		return "nothing"
	}
	return job.NewParent.String()
}

// stop ends all work of this Rebaser until Restart: after a failed fsync the kernel
// forgets what it could not write and reports success the next time, so no later
// fsync of the same directory proves anything.
func (r *Rebaser) stop(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.broken == nil {
		r.broken = err
	}
}

// Restart is chain.Rebaser's. It is as safe as another start of the program, which
// finds the same kernel with the same page cache: nothing is taken over from the
// jobs before it but what they wrote. Each job reads headers and tables from the
// disk again (qcow2 evicts their pages first), and what it finds done it does once
// more before it believes it: acceptDone rewrites the header and syncs it. So there
// is no sync whose success stands for what an earlier one lost.
func (r *Rebaser) Restart() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broken = nil
}

func (r *Rebaser) stopped() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.broken != nil {
		return fmt.Errorf("the tree could not be synced before (check its storage; it is tried again later, and when chainfs is restarted): %w", r.broken)
	}
	return nil
}
