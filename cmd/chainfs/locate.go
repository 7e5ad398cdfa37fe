package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/cmd/chainfs/control"
)

// place is where a path that a user gave leads: into a tree, by way of its
// mount or not.
type place struct {
	given   string
	path    chain.Path // in the tree
	tree    string     // the tree's id; empty for a directory that is no tree
	root    string     // the tree's directory, when it was not found by a mount
	mount   *mountEntry
	sockets []string
}

// locate finds the tree that a path leads into: the chainfs mount it lies in,
// or else the nearest directory above it that is a tree.
func locate(ctx context.Context, given string) (place, error) {
	real, err := inTime(ctx, func() (string, error) { return resolve(given) })
	mounts, mountsErr := readMounts()
	if mountsErr != nil {
		return place{}, mountsErr
	}
	if err != nil {
		// Inside a mount that is dead, or busy in just this directory, the text
		// of the path has to do.
		abs, absErr := filepath.Abs(given)
		if m, ok := mountAt(mounts, abs); absErr != nil || !ok || errors.Is(err, fs.ErrNotExist) {
			return place{}, pathError(given, err)
		} else if errors.Is(err, unix.ENOTCONN) {
			return place{}, deadMount(m)
		}
		real = abs
	}
	if m, ok := mountAt(mounts, real); ok {
		return inMount(ctx, given, real, m, mounts)
	}
	return inTree(ctx, given, real)
}

// locateGone is locate for what may have been deleted, and the directories that
// it was in with it: it climbs to the nearest one that is there.
func locateGone(ctx context.Context, given string) (place, error) {
	at, err := locate(ctx, given)
	abs, absErr := filepath.Abs(given)
	for rest := ""; isGone(err) && absErr == nil && abs != "/"; {
		rest = filepath.Join(filepath.Base(abs), rest)
		abs = filepath.Dir(abs)
		at, err = locate(ctx, strings.TrimSuffix(abs, "/")+"/") // a link to a directory is followed
		if err == nil {
			at.given, at.path = given, at.path.Join(rest)
		}
	}
	return at, err
}

// isGone reports whether a path could not be located because it, or a directory
// on the way to it, is not there.
func isGone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR)
}

func pathError(given string, err error) error {
	var wrapped *fs.PathError
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	return fmt.Errorf("%s: %w", chain.Printable(given), err)
}

func deadMount(m mountEntry) error {
	return fmt.Errorf("the mount at %s is dead, its daemon has ended; unmount it (chainfs umount %s) and mount %s again",
		m.Point, m.Point, m.Source)
}

// inMount is a path in a mount. m may be a bind mount of a directory of it: the
// mount's own root tells the tree's id.
func inMount(ctx context.Context, given, real string, m mountEntry, mounts []mountEntry) (place, error) {
	p, ok := chain.NewPath(filepath.Join(below(m.Root, "/"), below(real, m.Point)))
	if !ok {
		return place{}, fmt.Errorf("%s: is not in the mount at %s", chain.Printable(given), m.Point)
	}
	root, ok := rootOf(m, mounts)
	if !ok {
		return place{}, fmt.Errorf("%s: the mount it is bound from cannot be seen from here; use a path in that mount", chain.Printable(given))
	}
	id, err := inTime(ctx, func() (string, error) { return treeAttr(root.Point) })
	switch {
	case errors.Is(err, unix.ENOTCONN):
		return place{}, deadMount(root)
	case err != nil:
		return place{}, fmt.Errorf("the mount at %s: %w", root.Point, err)
	}
	at := place{given: given, path: p, tree: id, mount: &root}
	readOnlyAt := ""
	if root.ReadOnly {
		readOnlyAt = root.Point
	}
	at.sockets = sockets(control.Name(id, readOnlyAt), root.UID)
	return at, nil
}

// rootOf is the mount of the whole file system of which m is a part.
func rootOf(m mountEntry, mounts []mountEntry) (mountEntry, bool) {
	if m.Root == "/" {
		return m, true
	}
	for _, o := range mounts {
		if o.Device == m.Device && o.Root == "/" {
			return o, true
		}
	}
	return mountEntry{}, false
}

// treeAttr reads the tree's id from the root of its mount.
func treeAttr(root string) (string, error) {
	var id [64]byte
	n, err := unix.Getxattr(root, "user.chainfs.tree", id[:])
	return string(id[:max(n, 0)]), err
}

// sockets are the places where a daemon may listen, the likeliest first.
func sockets(name string, uids ...int) []string {
	var all []string
	met := map[string]bool{}
	for _, uid := range append(uids, os.Geteuid(), 0) {
		if dir := control.Dir(uid); !met[dir] {
			met[dir] = true
			all = append(all, filepath.Join(dir, name))
		}
	}
	return all
}

// inTree is a path outside of all mounts.
func inTree(ctx context.Context, given, real string) (place, error) {
	_, err := inTime(ctx, func() (fs.FileInfo, error) { return os.Lstat(real) })
	if err != nil {
		return place{}, pathError(given, err)
	}
	return inTime(ctx, func() (place, error) {
		for dir := real; ; dir = filepath.Dir(dir) {
			id, err := readTreeID(dir)
			switch {
			case err == nil:
				p, _ := chain.NewPath(below(real, dir)) // clean and below by construction
				return place{given: given, path: p, tree: id, root: dir, sockets: sockets(control.Name(id, ""))}, nil
			case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR):
				return place{}, err
			case dir == "/":
				return place{given: given, root: real}, nil
			}
		}
	})
}

// readTreeID reads the id of the tree at dir.
func readTreeID(dir string) (string, error) {
	name := filepath.Join(dir, chain.ControlName, "tree.json")
	text, err := os.ReadFile(name)
	if err != nil {
		return "", err
	}
	var record struct{ ID string }
	if err := json.Unmarshal(text, &record); err != nil || record.ID == "" {
		return "", fmt.Errorf("%s is damaged; restore it, or remove it to give the tree a new id", name)
	}
	return record.ID, nil
}
