package qemu

import (
	"fmt"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/qemu/qcow2"
	"golang.org/x/sys/unix"
)

// checkSpace refuses when the worst case of a scratch copy does not fit: a copy of
// copied bytes, what is absorbed, and the metadata for it.
func (w *rebase) checkSpace(copied int64) error {
	return w.checkFree(copied + w.job.Bytes + w.metadata(w.job.Bytes))
}

// checkRoom refuses when what is stored in the child does not fit. Shared extents
// need no room; where there is too little after all, what was stored is given back.
func (w *rebase) checkRoom(work qcow2.Work, away int) error {
	copies, err := w.copying(away)
	if err != nil {
		return fmt.Errorf("look for free space: %w", err)
	}
	need := work.Bytes() + w.metadata(work.Clusters*w.sizes.ClusterSize())
	if copies.Shares {
		need -= work.Data
	}
	return w.checkFree(need)
}

func (w *rebase) checkFree(need int64) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(w.dir.Fd()), &fs); err != nil {
		return fmt.Errorf("look for free space: %w", err)
	}
	if fs.Blocks == 0 {
		return nil // a file system that does not know
	}
	unit := fs.Frsize
	if unit == 0 {
		unit = fs.Bsize
	}
	free := int64(fs.Bavail) * unit
	if need > free {
		return fmt.Errorf("%s free, up to %s needed in %s; make room and try again: %w",
			chain.Size(free), chain.Size(need), w.job.Child.Dir(), unix.ENOSPC)
	}
	return nil
}

// metadata is the most that tables for bytes of the disk take: an L2 table for
// each L1 entry that gets its first cluster, refcounts, and what a copy on write
// of the tables that are there takes where the file was cloned.
func (w *rebase) metadata(bytes int64) int64 {
	cluster := w.sizes.ClusterSize()
	clusters := bytes/cluster + 1
	l2 := min(int64(w.sizes.L1Size), clusters) * cluster
	refcounts := (clusters<<w.sizes.RefcountOrder)/8 + cluster
	return l2 + refcounts + 4*cluster + 64<<10
}
