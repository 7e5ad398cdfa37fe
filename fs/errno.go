package fs

import (
	"context"
	"errors"
	iofs "io/fs"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
)

type ctxt = context.Context

// errnos says what the kernel is told for an error of package chain, the first
// that matches. What is not here is the errno that the error wraps, or EIO.
var errnos = []struct {
	is    func(error) bool
	errno syscall.Errno
}{
	{isRefused, syscall.EBUSY},
	{isErr(context.Canceled), syscall.EINTR},
	{isErr(context.DeadlineExceeded), syscall.EINTR},
	{isErr(chain.ErrTreeGone), syscall.EIO},
	{isErr(chain.ErrVerify), syscall.EIO},
	{isErr(chain.ErrChanged), syscall.EBUSY},
}

func isErr(target error) func(error) bool {
	return func(err error) bool { return errors.Is(err, target) }
}

func isRefused(err error) bool {
	var refused *chain.RefusedError
	return errors.As(err, &refused)
}

// errnoOf translates an error at the edge to the kernel. ENOSYS never leaves:
// the kernel would take it for "this operation does not exist" and stop asking.
func errnoOf(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	for _, e := range errnos {
		if e.is(err) {
			return e.errno
		}
	}
	var errno unix.Errno
	switch {
	case errors.As(err, &errno) && errno != unix.ENOSYS && errno != 0:
		return errno
	case errors.Is(err, iofs.ErrNotExist):
		return syscall.ENOENT
	case errors.Is(err, iofs.ErrPermission):
		return syscall.EPERM
	}
	return syscall.EIO
}

// swallowed are the errnos that rm -f takes for "it was not there".
var swallowed = map[syscall.Errno]bool{
	syscall.ENOENT: true, syscall.ENOTDIR: true, syscall.EINVAL: true, syscall.EILSEQ: true,
}
