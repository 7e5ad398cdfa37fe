package source

import (
	"cmp"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
)

// ReadDir are the entries of a directory, by name, chainfs's own included except
// for the control directory. What goes while it is read is left out; on NFS the
// server is asked about each entry, as Stat does.
func (t *Tree) ReadDir(p chain.Path) ([]chain.Entry, error) {
	fd, err := t.OpenPath(p, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, pathError("read directory", p, err)
	}
	defer unix.Close(fd) // it was only read
	names, err := namesIn(fd)
	if err != nil {
		return nil, pathError("read directory", p, err)
	}
	var all []chain.Entry
	for _, name := range names {
		if p == "" && name == chain.ControlName {
			continue
		}
		at := p.Join(name)
		var st unix.Statx_t
		err := statx(fd, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_STATX_FORCE_SYNC, &st)
		if err == unix.ENOENT {
			continue
		}
		if err != nil {
			return nil, pathError("stat", at, err)
		}
		all = append(all, entryOfStatx(at, &st))
	}
	slices.SortFunc(all, func(x, y chain.Entry) int { return cmp.Compare(x.Path, y.Path) })
	return all, nil
}

// namesIn lists an open directory. A name that is renamed meanwhile may be given
// twice by some file systems, and is listed once.
func namesIn(fd int) ([]string, error) {
	var names []string
	err := new(listing).each(fd, func(e dirent) error {
		names = append(names, string(e.name))
		return nil
	})
	slices.Sort(names)
	return slices.Compact(names), err
}
