package source

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
)

// Present is nil while the tree is the one that was opened. Before anything is
// concluded from a file's absence this must have been nil: a file system that
// went away looks much like an empty one.
func (t *Tree) Present() error {
	err := t.reachable()
	if err == nil && !t.derived {
		err = t.sameID()
	}
	if err == nil && t.owner != nil {
		err = t.owner.kept(t)
	}
	if err != nil {
		return fmt.Errorf("tree %s: %w: %w", t.dir, chain.ErrTreeGone, err)
	}
	return nil
}

// reachable opens and lists the root again: a file system that was shut down
// still answers stat from memory.
func (t *Tree) reachable() error {
	var st unix.Stat_t
	if err := retry(func() error { return unix.Fstat(t.root, &st) }); err != nil {
		return err
	}
	if st.Nlink == 0 {
		return errors.New("its root directory was removed")
	}
	fd, err := t.OpenPath("", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if t.derived {
		// There is no file of ours to open. A directory is listed from memory even
		// when its file system was shut down, but cannot be synced.
		return retry(func() error { return unix.Fsync(fd) })
	}
	var buf [4096]byte
	return retry(func() error {
		_, err := unix.Getdents(fd, buf[:])
		return err
	})
}

func (t *Tree) sameID() error {
	id, err := t.readID()
	if err != nil {
		return err
	}
	if id != t.id {
		return fmt.Errorf("%s names tree %s, and %s was opened", treeFile, id, t.id)
	}
	return nil
}
