package source

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
)

// maxLinks is how many symbolic links the kernel follows, see
// path_resolution(7).
const maxLinks = 40

// Resolve follows a backing name that stands in a file in directory dir, as the
// kernel would, without ever looking outside the tree. The names it meets were
// written by guests and tenants.
//
// What does not exist, or cannot be a directory, is no error: the rest of the
// name is then joined as text, and the caller finds nothing there. A loop of
// symbolic links ends at the link where the kernel gives up, which is no image
// either. An error means that the tree could not be read.
func (t *Tree) Resolve(dir chain.Path, name string) (chain.Resolution, error) {
	if name == "" || strings.IndexByte(name, 0) >= 0 {
		return chain.Resolution{}, fmt.Errorf("resolve %q in %s: %w", name, dir, errors.New("no file can have this name"))
	}
	r := resolver{tree: t, at: dir}
	r.push(name)
	if err := r.run(); err != nil {
		return chain.Resolution{}, fmt.Errorf("resolve %q in %s: %w", name, dir, err)
	}
	if r.external {
		return chain.Resolution{External: true, Links: r.links}, nil
	}
	return chain.Resolution{Path: r.at, Links: r.links}, nil
}

// resolver is a resolution under way.
type resolver struct {
	tree     *Tree
	at       chain.Path // resolved so far, free of symbolic links
	rest     []string   // names still to be resolved, the next one last
	links    []chain.Path
	external bool
	missing  bool // at does not exist or is no directory: the rest is text
}

// push puts a name before what is still to be resolved. An absolute one starts
// over at the root, or leaves the tree.
func (r *resolver) push(name string) {
	if strings.HasPrefix(name, "/") {
		below, ok := r.tree.belowPrefix(name)
		if !ok {
			r.external = true
			return
		}
		r.at, name = "", below
	}
	parts := strings.Split(name, "/")
	for i := len(parts) - 1; i >= 0; i-- {
		if parts[i] != "" && parts[i] != "." {
			r.rest = append(r.rest, parts[i])
		}
	}
}

func (r *resolver) run() error {
	for len(r.rest) > 0 && !r.external {
		name := r.rest[len(r.rest)-1]
		r.rest = r.rest[:len(r.rest)-1]
		if err := r.step(name); err != nil {
			return err
		}
	}
	return nil
}

// step resolves one name.
func (r *resolver) step(name string) error {
	if name == ".." {
		if r.at == "" {
			r.leave()
		}
		r.at = r.at.Dir()
		return nil
	}
	p := r.at.Join(name)
	if r.missing {
		r.at = p
		return nil
	}
	target, err := r.tree.readLink(p)
	switch {
	case err == unix.EINVAL: // exists and is no link
		r.at = p
	case err == unix.ENOENT, err == unix.ENOTDIR, err == unix.ENAMETOOLONG:
		r.at, r.missing = p, true
	case err != nil:
		return err
	case len(r.links) == maxLinks:
		r.at, r.missing, r.rest = p, true, nil
	default:
		r.links = append(r.links, p)
		r.push(target)
	}
	return nil
}

// leave goes above the root. The name may come back, as ../nas/vm/a does from
// the tree at /srv/nas; to take that for a name outside would leave what it
// leads to without protection.
func (r *resolver) leave() {
	var rest strings.Builder
	for i := len(r.rest) - 1; i >= 0; i-- {
		rest.WriteString("/" + r.rest[i])
	}
	below, ok := r.tree.belowSibling(rest.String())
	if !ok {
		r.external = true
		return
	}
	r.rest = nil
	r.push(below)
}

// readLink is readlinkat: EINVAL for what is not a symbolic link.
func (t *Tree) readLink(p chain.Path) (string, error) {
	dir, name, release, err := t.At(p)
	if err != nil {
		return "", err
	}
	defer release()
	buf := make([]byte, unix.PathMax)
	var n int
	err = retry(func() (err error) {
		n, err = unix.Readlinkat(dir, name, buf)
		return err
	})
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// belowPrefix is what an absolute name is relative to the root, when it starts
// with the root's own path on the NAS or in a mount. What follows the prefix is
// kept as it is: ".." after a symbolic link is not what the text says.
func (t *Tree) belowPrefix(name string) (string, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.cutLongest(name)
}

// belowSibling is belowPrefix for a name that starts beside the root.
func (t *Tree) belowSibling(name string) (string, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, prefix := range t.prefixes {
		if below, ok := t.cutLongest(filepath.Dir(prefix) + name); ok {
			return below, true
		}
	}
	return "", false
}

// cutLongest is called with mu held.
func (t *Tree) cutLongest(name string) (string, bool) {
	best, found := "", false
	for _, prefix := range t.prefixes {
		if rest, ok := cutPrefix(name, prefix); ok && (!found || len(rest) < len(best)) {
			best, found = rest, true
		}
	}
	return best, found
}

// cutPrefix compares name by name, so that // and /./ do not matter. A ".."
// before the prefix ends is resolved as text, which is all that can be known
// of the world outside.
func cutPrefix(name, prefix string) (string, bool) {
	want := names(prefix)
	var have []string
	rest := name
	for rest != "" && !slices.Equal(have, want) {
		var next string
		next, rest, _ = strings.Cut(rest, "/")
		switch next {
		case "", ".":
		case "..":
			have = have[:max(len(have)-1, 0)]
		default:
			have = append(have, next)
		}
	}
	return strings.TrimLeft(rest, "/"), slices.Equal(have, want)
}

func names(path string) []string {
	return strings.FieldsFunc(path, func(c rune) bool { return c == '/' })
}
