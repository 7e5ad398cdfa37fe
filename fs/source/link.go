package source

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
)

// Link gives the regular file at from a second name, to. A symbolic link at from
// is not followed, and a name that is taken is fs.ErrExist. Where the file system
// has no links, or not for this file, the error is chain.ErrNoLinks and the errno
// as well. The new name is durable once its directory was synced.
func (t *Tree) Link(from, to chain.Path) error {
	if err := t.link(from, to); err != nil {
		return &os.LinkError{Op: "link", Old: from.String(), New: to.String(), Err: err}
	}
	return nil
}

func (t *Tree) link(from, to chain.Path) error {
	return t.atBoth(from, to, func(oldDir int, oldName string, newDir int, newName string) error {
		// Some file systems link a FIFO or a symbolic link, too. Whoever puts one there
		// from here on gets a second name for what is his anyway.
		var st unix.Stat_t
		if err := fstatat(oldDir, oldName, &st); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFREG {
			return errNotRegular
		}
		return linkat(oldDir, oldName, newDir, newName)
	})
}

// linkat is linkat(2) with what says "no links here" made chain.ErrNoLinks. An
// EPERM can be about this one file (fs.protected_hardlinks, an immutable file),
// which comes to the same: it can have no second name.
func linkat(oldDir int, oldName string, newDir int, newName string) error {
	err := retry(func() error { return unix.Linkat(oldDir, oldName, newDir, newName, 0) })
	switch err {
	case unix.EPERM, unix.EOPNOTSUPP, unix.ENOSYS, unix.EMLINK:
		return fmt.Errorf("%w: %w", chain.ErrNoLinks, err)
	}
	return err
}
