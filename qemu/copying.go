package qemu

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Copying is what a copy within a file system costs.
type Copying struct {
	Shares bool // it shares extents: it takes no room, and no bytes are moved
	Server bool // the file system's server makes it: no bytes come to this host
}

func (c Copying) free() bool { return c.Shares || c.Server }

// sharing are the file systems that are taken to share extents where that was not
// tried. They do so in whole blocks, whose size they tell.
var sharing = map[int64]bool{unix.XFS_SUPER_MAGIC: true, unix.BTRFS_SUPER_MAGIC: true}

// copying is what copies into the child cost: of clusters of the layers that go
// away, or, with none, of the whole child beside itself.
func (w *rebase) copying(away int) (Copying, error) {
	at, err := stat(w.dir)
	if err != nil {
		return Copying{}, err
	}
	c, err := w.copyingAt(at.Dev)
	if err != nil || away == 0 {
		return c, err
	}
	for _, l := range w.job.Layers[:away] {
		if f := w.layers[l.Path]; f != nil {
			if st, err := stat(f); err != nil || st.Dev != at.Dev {
				return Copying{}, err // between two file systems bytes are moved
			}
		}
	}
	if c.Shares {
		c.Shares, err = w.wholeBlocks()
	}
	return c, err
}

// copyingAt is what copies cost on the file system of the child's directory, whose
// device is dev. What was found out holds for that of the root alone.
func (w *rebase) copyingAt(dev uint64) (Copying, error) {
	if w.opts.Copying != nil {
		root, err := w.files.Stat("")
		if err != nil {
			return Copying{}, err
		}
		if root.Device == dev {
			return *w.opts.Copying, nil
		}
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(w.dir.Fd()), &fs); err != nil {
		return Copying{}, fmt.Errorf("look at the file system: %w", err)
	}
	return Copying{Shares: sharing[int64(fs.Type)]}, nil
}

// wholeBlocks reports whether the child's clusters are blocks of its file system.
// Smaller ones cannot be shared. Where the block's size is not known, because that
// of a network file system is that of its messages, they are taken to be.
func (w *rebase) wholeBlocks() (bool, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(w.dir.Fd()), &fs); err != nil {
		return false, fmt.Errorf("look at the file system: %w", err)
	}
	return !sharing[int64(fs.Type)] || w.sizes.ClusterSize()%fs.Bsize == 0, nil
}
