package qemu

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/chainfs/chainfs/chain"
	"golang.org/x/sys/unix"
)

// mounts is what qemu-img sees of the world.
//
// It must never see our own mount: qemu-img would wait for us, and we, with a
// directory's lock held by the kernel, for qemu-img. So it runs in a mount
// namespace in which that mount is gone; and where an image has an absolute name,
// the tree itself is put at the mountpoint instead. A working directory reached
// by descriptor is not enough: where the mount covers the tree, ".." up to the
// tree's root steps into it.
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

// enter gives the calling thread its namespace and makes dir its working
// directory. The thread must end afterwards.
func (m *mounts) enter(dir *os.File) error {
	// A thread shares its working directory with the others.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare the working directory: %w", err)
	}
	if err := unix.Fchdir(int(dir.Fd())); err != nil {
		return fmt.Errorf("enter %s: %w", chain.Printable(dir.Name()), err)
	}
	if m.root == nil {
		return nil
	}
	trees, err := m.cloneTree()
	if err != nil {
		return err
	}
	defer trees.close()
	// The working directory moves into the new namespace. Descriptors do not.
	err = unix.Unshare(unix.CLONE_NEWNS)
	if errors.Is(err, unix.EPERM) && !m.absolute && !m.overlap() {
		return nil // relative names stay in the tree, and nothing covers it
	}
	if err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	// Nothing that follows may reach the host's mounts.
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := m.leaveMount(); err != nil {
		return err
	}
	return trees.show()
}

// overlap reports whether the mountpoint and the tree are within one another.
func (m *mounts) overlap() bool {
	a, b := strings.TrimRight(m.source, "/")+"/", strings.TrimRight(m.mountpoint, "/")+"/"
	return strings.HasPrefix(a, b) || strings.HasPrefix(b, a)
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

// treeMounts are mounts of the tree's root that are in no namespace yet, in the
// order in which they are to be put at their places.
type treeMounts []treeMount

type treeMount struct {
	fd int
	at string // where absolute names look for it
}

// cloneTree makes the mounts that absolute names need. It comes before the new
// namespace, because a descriptor of the old one cannot be cloned in it.
func (m *mounts) cloneTree() (treeMounts, error) {
	if !m.absolute {
		return nil, nil
	}
	var trees treeMounts
	for _, at := range []string{m.source, m.mountpoint} {
		if at == "" || len(trees) > 0 && trees[0].at == at {
			continue
		}
		const flags = unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_EMPTY_PATH
		fd, err := unix.OpenTree(int(m.root.Fd()), "", flags)
		if err != nil {
			trees.close()
			return nil, fmt.Errorf("clone the mount of the tree: %w", err)
		}
		trees = append(trees, treeMount{fd, at})
	}
	return trees, nil
}

// show puts each mount at its place.
func (t treeMounts) show() error {
	for _, tree := range t {
		if err := unix.MoveMount(tree.fd, "", unix.AT_FDCWD, tree.at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("show the tree at %s: %w", chain.Printable(tree.at), err)
		}
	}
	return nil
}

// close drops the mounts that were not shown; those that were stay.
func (t treeMounts) close() {
	for _, tree := range t {
		unix.Close(tree.fd)
	}
}
