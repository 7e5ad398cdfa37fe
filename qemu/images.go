package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/qemu/qcow2"
)

// Images looks into the images of a tree. It is a chain.ImageChecker.
type Images struct {
	files chain.Files
}

var _ chain.ImageChecker = (*Images)(nil)

// NewImages looks into the images of a tree.
func NewImages(files chain.Files) *Images { return &Images{files} }

// CheckImage finds what "qemu-img check" finds. Unlike that it takes no lock: a
// lock of ours would have deletions refused for as long as the check takes, and
// keep a backup job from opening its image. Instead it looks for writers, and
// afterwards whether anybody wrote meanwhile.
func (c *Images) CheckImage(ctx context.Context, p chain.Path) (chain.ImageReport, error) {
	f, err := c.files.Open(p)
	if err != nil {
		return chain.ImageReport{}, fmt.Errorf("open %s: %w", p, err)
	}
	defer f.Close() // it was only read
	before, err := quiet(f, p)
	if err != nil {
		return chain.ImageReport{}, err
	}
	found, err := qcow2.Check(ctx, qcow2.OSFile{File: f})
	if ctx.Err() != nil {
		return chain.ImageReport{}, ctx.Err()
	}
	after, changed := quiet(f, p)
	if changed == nil && after != before {
		changed = fmt.Errorf("%s: %w", p, chain.ErrChanged)
	}
	if changed != nil {
		return chain.ImageReport{}, changed
	}
	return reportOf(found, err, before, p)
}

// quiet is the identity of a file that nobody has open for writing.
func quiet(f *os.File, p chain.Path) (chain.Identity, error) {
	use, err := useOf(f)
	if err != nil {
		return chain.Identity{}, fmt.Errorf("look for users of %s: %w", p, err)
	}
	if use.Writer {
		return chain.Identity{}, refuseInUse(p, use)
	}
	st, err := stat(f)
	return identityOf(&st), err
}

// reportOf says in chain's words what was found, or what kept Check from going on.
func reportOf(found *qcow2.Findings, err error, identity chain.Identity, p chain.Path) (chain.ImageReport, error) {
	out := chain.ImageReport{Identity: identity}
	format := (*qcow2.FormatError)(nil)
	switch {
	case errors.As(err, &format) && !errors.Is(err, qcow2.ErrUnsupported):
		out.Corruptions, out.Example = 1, format.Reason
		return out, nil
	case err != nil:
		return out, fmt.Errorf("check %s: %w", p, err)
	}
	out.Corruptions, out.StaleFlags = found.CorruptionCount, found.StaleFlags
	if len(found.Corruptions) > 0 {
		out.Example = found.Corruptions[0]
	}
	out.LeakedClusters, out.LeakedBytes = found.LeakedClusters, found.LeakedBytes
	out.Dirty, out.Unrepairable = found.Dirty, found.Unrepairable
	return out, nil
}

// RepairLeaks removes an image's leaks in place.
func (c *Images) RepairLeaks(ctx context.Context, p chain.Path, identity chain.Identity) (freed int64, err error) {
	dir, err := c.files.OpenDir(p.Dir())
	if err != nil {
		return 0, fmt.Errorf("open directory %s: %w", p.Dir(), err)
	}
	defer dir.Close() // nothing was written through it
	lock, err := openBelow(dir, p, unix.O_RDONLY)
	if err != nil {
		return 0, err
	}
	defer lock.Close() // it was only read; the locks go with it
	if err := lockUnused(lock, p); err != nil {
		return 0, err
	}
	// Only now: a descriptor of ours that writes would look like somebody else's.
	f, err := openBelow(dir, p, unix.O_RDWR)
	if err != nil {
		return 0, err
	}
	for _, each := range []*os.File{lock, f} {
		st, err := stat(each)
		if err == nil && identityOf(&st) != identity {
			err = fmt.Errorf("%s: %w", p, chain.ErrChanged)
		}
		if err != nil {
			return 0, errors.Join(err, f.Close())
		}
	}
	freed, err = qcow2.RepairLeaks(ctx, qcow2.OSFile{File: f})
	if err != nil {
		err = fmt.Errorf("repair %s: %w", p, err)
	}
	return freed, errors.Join(err, f.Close())
}

// openBelow opens a regular file in its directory. Its access time stays, where
// that may be: it tells when a user read it.
func openBelow(dir *os.File, p chain.Path, mode int) (*os.File, error) {
	// O_NONBLOCK: a FIFO put in its place must not stop us.
	mode |= unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	fd, err := unix.Openat(int(dir.Fd()), p.Base(), mode|unix.O_NOATIME, 0)
	if errors.Is(err, unix.EPERM) {
		fd, err = unix.Openat(int(dir.Fd()), p.Base(), mode, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", p, err)
	}
	f := os.NewFile(uintptr(fd), p.Base())
	st, err := stat(f)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = fmt.Errorf("%s is not a regular file: %w", p, chain.ErrChanged)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// lockUnused keeps every qemu from writing to an image, and refuses one that
// anybody has open, be it for reading: a reader keeps tables in memory and could
// turn into a writer ("block-commit").
func lockUnused(f *os.File, p chain.Path) error {
	locked := LockImage(f)
	if locked != nil && !errors.Is(locked, ErrLocked) {
		return fmt.Errorf("lock %s: %w", p, locked)
	}
	use, err := useOf(f)
	switch {
	case err != nil:
		return fmt.Errorf("look for users of %s: %w", p, err)
	case locked != nil, use.Locked, use.Writer:
		use.Locked = true // whoever it was may be gone by now; the lock was not taken all the same
		return refuseInUse(p, use)
	}
	return nil
}
