package source

import (
	"context"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
)

// Rmdir removes an empty directory and makes that durable.
func (t *Tree) Rmdir(p chain.Path) error {
	dir, name, release, err := t.At(p)
	if err != nil {
		return pathError("remove directory", p, err)
	}
	defer release()
	if err := retry(func() error { return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR) }); err != nil {
		return pathError("remove directory", p, err)
	}
	return t.SyncDir(p.Dir())
}

// Directories are those of paths that are directories, and all directories
// below them, in an order in which they can be removed. Hidden ones are left out:
// they are removed already for their users.
func (t *Tree) Directories(ctx context.Context, paths []chain.Path) ([]chain.Path, error) {
	var dirs []chain.Path
	for _, p := range paths {
		if e, err := t.Stat(p); err != nil {
			return nil, err
		} else if e.Type == chain.Directory {
			dirs = append(dirs, p)
		}
	}
	named := len(dirs)
	if named == 0 {
		return nil, nil
	}
	err := t.Walk(ctx, chain.Walker{
		Unreadable: func(chain.Path, error) {}, // it will turn out not to be empty
		Visit: func(e chain.Entry) error {
			if e.Type == chain.Directory && !chain.InHidden(e.Path) && slices.ContainsFunc(dirs[:named], e.Path.Within) {
				dirs = append(dirs, e.Path)
			}
			return nil
		},
	})
	slices.Sort(dirs)
	dirs = slices.Compact(dirs)
	slices.Reverse(dirs) // a name sorts before the names that it begins
	return dirs, err
}

// OnlyHidden reports whether a directory has hidden names alone, or none: there
// is nothing left in it for its user.
func (t *Tree) OnlyHidden(p chain.Path) (bool, error) {
	dir, err := t.OpenDir(p)
	if err != nil {
		return false, err
	}
	defer dir.Close() // it is only read
	var list listing
	only := true
	err = list.each(int(dir.Fd()), func(e dirent) error {
		only = only && chain.IsHidden(string(e.name))
		return nil
	})
	if err != nil {
		return false, pathError("list directory", p, err)
	}
	return only, nil
}
