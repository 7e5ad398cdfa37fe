package source

import (
	"strings"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
)

// beneath keeps a resolution below its directory: no "..", no absolute path, no
// symbolic link of any kind.
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_SYMLINKS

// maxPiece is the longest path given to one call: PATH_MAX with its NUL, less
// some room.
const maxPiece = unix.PathMax - 96

// maxAgain bounds the repetitions of a call that answers EAGAIN, which openat2
// does while others rename directories.
const maxAgain = 1000

// retry repeats a call that a signal interrupted. Network file systems answer
// EINTR where local ones never do, and Go sends itself signals to preempt.
func retry(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

// OpenBeneath opens path below the directory dirfd without following any
// symbolic link. The path is not empty and shorter than PATH_MAX.
func OpenBeneath(dirfd int, path string, flags int, mode uint32) (int, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Mode:    uint64(mode),
		Resolve: beneath,
	}
	for try := 0; ; try++ {
		fd, err := unix.Openat2(dirfd, path, &how)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN && try < maxAgain:
		default:
			return fd, err
		}
	}
}

// OpenPath opens p, of any length, below the root. The flags are those of
// open(2); a last element that is a symbolic link is ELOOP, or opened itself
// with O_PATH|O_NOFOLLOW. Other errors are plain errnos.
func (t *Tree) OpenPath(p chain.Path, flags int, mode uint32) (int, error) {
	dir, rest := t.root, string(p)
	if rest == "" {
		rest = "."
	}
	for len(rest) > maxPiece {
		piece, tail := cutPiece(rest)
		fd, err := OpenBeneath(dir, piece, unix.O_PATH|unix.O_DIRECTORY, 0)
		t.release(dir)
		if err != nil {
			return -1, err
		}
		dir, rest = fd, tail
	}
	fd, err := OpenBeneath(dir, rest, flags, mode)
	t.release(dir)
	return fd, err
}

// cutPiece cuts a long path at the last slash that leaves a short first piece.
// A first name that is itself too long stays, for the kernel to refuse.
func cutPiece(path string) (piece, rest string) {
	i := strings.LastIndexByte(path[:maxPiece], '/')
	if i < 0 {
		i = strings.IndexByte(path, '/')
	}
	if i < 0 {
		return path, "."
	}
	return path[:i], path[i+1:]
}

// release closes a descriptor that was opened on the way to a file.
func (t *Tree) release(fd int) {
	if fd != t.root {
		unix.Close(fd) // opened with O_PATH: there is nothing to lose
	}
}

// At opens the directory that holds p, for the calls of the at-family with
// name. The root is "." in itself. The caller calls release when done with
// dirfd. The error is a plain errno.
func (t *Tree) At(p chain.Path) (dirfd int, name string, release func(), err error) {
	if p == "" {
		return t.root, ".", func() {}, nil
	}
	dir, name := p.Dir(), p.Base()
	switch {
	case name == "..": // the at-family, unlike openat2, would follow it out
		return -1, "", nil, unix.EXDEV
	case name == "" || name == ".": // no chain.Path ends so
		return -1, "", nil, unix.EINVAL
	case dir == "":
		return t.root, name, func() {}, nil
	}
	fd, err := t.OpenPath(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return -1, "", nil, err
	}
	return fd, name, func() { unix.Close(fd) }, nil
}
