package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/chainfs/chainfs/chain"
)

// Locks tells who uses an image by qemu's locks on it, and on local file systems
// also whether any other process has it open for writing. It is a chain.Watcher.
// It sees the locks of this process's own Rebaser, too.
type Locks struct {
	files chain.Files
}

var _ chain.Watcher = (*Locks)(nil)

// NewLocks watches the images of a tree.
func NewLocks(files chain.Files) *Locks { return &Locks{files} }

// InUse looks for locks on p. A file that is not there is not in use.
func (l *Locks) InUse(p chain.Path) (chain.Use, error) {
	f, err := l.files.Open(p)
	if errors.Is(err, fs.ErrNotExist) {
		return chain.Use{}, nil
	}
	if err != nil {
		return chain.Use{}, fmt.Errorf("look for users of %s: %w", p, err)
	}
	defer f.Close() // it was only read
	use, err := useOf(f)
	if err != nil {
		return chain.Use{}, fmt.Errorf("look for users of %s: %w", p, err)
	}
	return use, nil
}

// useOf is the use by everybody but f itself.
func useOf(f *os.File) (chain.Use, error) {
	var use chain.Use
	pid := int32(-1) // an open file description's lock has no process
	for _, base := range []int64{heldBase, unsharedBase} {
		lock, err := findLock(f, base, permissions)
		if err != nil {
			return use, err
		}
		if lock != nil {
			use.Locked = true
			pid = max(pid, lock.Pid)
		}
	}
	for _, b := range []int64{heldBase + permWrite, heldBase + permResize} {
		held, err := isLocked(f, b, 1)
		if err != nil {
			return use, err
		}
		use.Writer = use.Writer || held
	}
	writer, err := hasWriter(f)
	if err != nil {
		return use, err
	}
	use.Writer = use.Writer || writer
	if use.Locked {
		use.By = holder(f, int(pid))
	}
	return use, nil
}
