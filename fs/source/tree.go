package source

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
)

// Options say how a tree is opened.
type Options struct {
	// ReadOnly opens the tree without writing anything to it and without
	// taking the owner's lock.
	ReadOnly bool

	// Mountpoint is where the tree is to be mounted, empty for none. It is
	// shown to others who want to own the tree, and Resolve takes absolute
	// names below it for names in the tree.
	Mountpoint string
}

// Tree is an open tree. Its methods may be called concurrently, Close last.
type Tree struct {
	dir      string // as given, made absolute; for messages only
	root     int
	readOnly bool
	id       string
	derived  bool       // the id follows from the path: the tree has no tree.json
	owner    *ownerLock // nil when read-only

	mu       sync.RWMutex
	prefixes []string // guarded by mu; absolute, clean; what they name is the root

	probing sync.Mutex
	copying *Copying // guarded by probing; nil until it was found out
}

var _ chain.Files = (*Tree)(nil)

// Open opens the tree at dir, and unless it is read-only gives it an id if it
// has none and takes the owner's lock. A tree that has another writer is an
// *OwnedError.
func Open(dir string, opts Options) (*Tree, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open tree %s: %w", dir, err)
	}
	root, err := openRoot(abs)
	if err != nil {
		return nil, fmt.Errorf("open tree %s: %w", dir, err)
	}
	t := &Tree{dir: abs, root: root, readOnly: opts.ReadOnly}
	if err := t.init(opts); err != nil {
		t.Close()
		return nil, fmt.Errorf("open tree %s: %w", dir, err)
	}
	return t, nil
}

// openRoot follows symbolic links: the root is the administrator's choice.
func openRoot(dir string) (int, error) {
	var fd int
	err := retry(func() (err error) {
		fd, err = unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return err
	})
	return fd, err
}

func (t *Tree) init(opts Options) error {
	t.addPrefix(t.dir)
	if real, err := filepath.EvalSymlinks(t.dir); err == nil {
		t.addPrefix(real)
	}
	if opts.Mountpoint != "" {
		if err := t.AddMountpoint(opts.Mountpoint); err != nil {
			return err
		}
	}
	if err := t.loadID(); err != nil {
		return err
	}
	if opts.ReadOnly {
		return nil
	}
	return t.own(opts.Mountpoint)
}

// Close gives up the owner's lock and the descriptors.
func (t *Tree) Close() error {
	err := t.disown()
	if t.root >= 0 {
		unix.Close(t.root) // read-only descriptor: nothing can be lost with it
		t.root = -1
	}
	return err
}

// ID is the tree's id, 32 hexadecimal digits. A tree that was opened read-only
// and has no id of its own gets one that follows from its path.
func (t *Tree) ID() string { return t.id }

// String is the directory the tree was opened at.
func (t *Tree) String() string { return t.dir }

// AddMountpoint makes Resolve take absolute names below dir for names in the
// tree. It does not touch dir itself, which may be a mount of this process.
func (t *Tree) AddMountpoint(dir string) error {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("mountpoint %s: %w", dir, err)
	}
	t.addPrefix(abs)
	if parent, err := filepath.EvalSymlinks(filepath.Dir(abs)); err == nil {
		t.addPrefix(filepath.Join(parent, filepath.Base(abs)))
	}
	return nil
}

func (t *Tree) addPrefix(abs string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.prefixes {
		if p == abs {
			return
		}
	}
	t.prefixes = append(t.prefixes, abs)
}

// pathError is the error of every call on a path in the tree. The path is made
// printable: it ends up in logs and on terminals.
func pathError(op string, p chain.Path, err error) error {
	return &os.PathError{Op: op, Path: p.String(), Err: err}
}
