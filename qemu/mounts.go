package qemu

import (
	"errors"
	"fmt"
	"os"

	"github.com/chainfs/chainfs/chain"
	"golang.org/x/sys/unix"
)

// mounts is what qemu-img sees of the world.
//
// It must never see our own mount: qemu-img would wait for us, and we, with a
// directory's lock held by the kernel, for qemu-img. So it runs in a mount
// namespace in which that mount is gone; and where an image has an absolute name,
// the tree itself is put at the mountpoint instead.
type mounts struct {
	absolute   bool // an absolute name has to be followed
	mountpoint string
	source     string
	root       *os.File // the tree's root; nil when no namespace is needed
}

// open opens the root of the tree.
func (m *mounts) open(files chain.Files, opts Options) error {
	if opts.Mountpoint == "" || m.root != nil {
		return nil
	}
	root, err := files.OpenDir("")
	if err != nil {
		return fmt.Errorf("open the tree's root: %w", err)
	}
	m.root, m.mountpoint, m.source = root, opts.Mountpoint, opts.Source
	return nil
}

func (m *mounts) close() {
	if m.root != nil {
		m.root.Close()
	}
}

// enter gives the calling thread its namespace. The thread must end afterwards.
func (m *mounts) enter() error {
	if m.root == nil {
		return nil
	}
	// A thread shares its working directory with the others. Ours leads to the
	// root of the tree, because unshare takes the working directory along into
	// the new namespace; a descriptor stays in the old one and cannot be bound.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare the working directory: %w", err)
	}
	if err := unix.Fchdir(int(m.root.Fd())); err != nil {
		return fmt.Errorf("enter the tree's root: %w", err)
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		if errors.Is(err, unix.EPERM) && !m.absolute {
			return nil // relative names stay in the tree, whatever is mounted
		}
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	// Nothing that follows may reach the host's mounts.
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := m.leaveMount(); err != nil {
		return err
	}
	return m.showTree()
}

// maxStacked is how many mounts on top of each other are removed.
const maxStacked = 16

// leaveMount removes our mount, without asking it anything: the kernel looks up
// a mountpoint for unmounting without going into it.
func (m *mounts) leaveMount() error {
	for range maxStacked {
		err := unix.Unmount(m.mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) {
			return nil // nothing is mounted there any more
		}
		if err != nil {
			return fmt.Errorf("leave the mount %s: %w", chain.Printable(m.mountpoint), err)
		}
	}
	return fmt.Errorf("more than %d mounts on %s", maxStacked, chain.Printable(m.mountpoint))
}

// showTree puts the tree where absolute names look for it. The working directory
// is its root.
func (m *mounts) showTree() error {
	if !m.absolute {
		return nil
	}
	for _, at := range []string{m.source, m.mountpoint} {
		if at == "" {
			continue
		}
		if err := unix.Mount(".", at, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("show the tree at %s: %w", chain.Printable(at), err)
		}
	}
	return nil
}
