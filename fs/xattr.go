package fs

import (
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
)

// attrPrefix starts the extended attributes that are computed. They can be read
// by name and are not listed, so that a copy with attributes does not carry
// them away.
const attrPrefix = "user.chainfs."

// attrs are the computed attributes of an image. A file that is no image has
// only "why", and that only when it cannot be deleted.
var attrs = map[string]func(chain.Info) string{
	"kind":     func(i chain.Info) string { return i.Kind.String() },
	"parent":   func(i chain.Info) string { return string(i.Parent) },
	"children": func(i chain.Info) string { return joinPaths(i.Children) },
	"position": func(i chain.Info) string { return strconv.Itoa(int(i.Position)) },
	"why":      func(i chain.Info) string { return i.Reason },
}

// joinPaths puts each path on a line of its own.
func joinPaths(ps []chain.Path) string {
	var names []string
	for _, p := range ps {
		names = append(names, string(p))
	}
	return strings.Join(names, "\n")
}

// computed is the value of an attribute of ours.
func (n *node) computed(ctx ctxt, name string) (string, syscall.Errno) {
	if name == "tree" && n.IsRoot() {
		return n.mount.opts.TreeID, 0
	}
	value := attrs[name]
	p, ok := n.path()
	if value == nil || !ok || p == "" {
		return "", syscall.ENODATA
	}
	info, err := n.mount.tree.Look(ctx, p)
	if err != nil {
		return "", errnoOf(err)
	}
	if info.ID == 0 && (name != "why" || info.Decision != chain.Refused) {
		return "", syscall.ENODATA
	}
	return value(info), 0
}

// Getxattr implements getxattr(2).
func (n *node) Getxattr(ctx ctxt, attr string, dest []byte) (uint32, syscall.Errno) {
	if name, ours := strings.CutPrefix(attr, attrPrefix); ours {
		value, errno := n.computed(ctx, name)
		if errno != 0 || len(value) > len(dest) {
			return uint32(len(value)), orRange(errno)
		}
		return uint32(copy(dest, value)), 0
	}
	return n.withXattr(func(path string) (int, error) { return unix.Getxattr(path, attr, dest) })
}

// orRange is errno, or that the buffer is too small.
func orRange(errno syscall.Errno) syscall.Errno {
	if errno == 0 {
		return syscall.ERANGE
	}
	return errno
}

// Setxattr implements setxattr(2).
func (n *node) Setxattr(_ ctxt, attr string, data []byte, flags uint32) syscall.Errno {
	if strings.HasPrefix(attr, attrPrefix) || n.isOurs() {
		return syscall.EPERM
	}
	_, errno := n.withXattr(func(path string) (int, error) { return 0, unix.Setxattr(path, attr, data, int(flags)) })
	return errno
}

// Removexattr implements removexattr(2).
func (n *node) Removexattr(_ ctxt, attr string) syscall.Errno {
	if strings.HasPrefix(attr, attrPrefix) || n.isOurs() {
		return syscall.EPERM
	}
	_, errno := n.withXattr(func(path string) (int, error) { return 0, unix.Removexattr(path, attr) })
	return errno
}

// Listxattr implements listxattr(2).
func (n *node) Listxattr(_ ctxt, dest []byte) (uint32, syscall.Errno) {
	return n.withXattr(func(path string) (int, error) { return unix.Listxattr(path, dest) })
}

// withXattr calls f with a path that leads to the file itself, be it a
// symbolic link.
func (n *node) withXattr(f func(path string) (int, error)) (uint32, syscall.Errno) {
	fd, release, errno := n.fd(nil)
	if errno != 0 {
		return 0, errno
	}
	defer release()
	size, err := f(procPath(fd))
	return uint32(max(size, 0)), errnoOf(err)
}
