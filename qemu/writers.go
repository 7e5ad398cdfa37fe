package qemu

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// leaseTypes are the file systems on which a read lease is refused exactly when
// somebody has the file open for writing. NFS and CIFS refuse it for other
// reasons too, so there it tells nothing.
var leaseTypes = map[int64]bool{
	unix.EXT4_SUPER_MAGIC:  true, // ext2 and ext3 have the same number
	unix.XFS_SUPER_MAGIC:   true,
	unix.BTRFS_SUPER_MAGIC: true,
	unix.TMPFS_MAGIC:       true,
}

// hasWriter reports whether any process of this host has f's file open for
// writing, whether or not it knows of qemu's locks: a copy that is still
// arriving, for instance. It asks for a read lease and gives it back at once.
// Where leases cannot tell, the answer is no.
func hasWriter(f *os.File) (bool, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return false, fmt.Errorf("look at the file system: %w", err)
	}
	if !leaseTypes[int64(fs.Type)] {
		return false, nil
	}
	_, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	if err != nil {
		// Every other error is about leases, not about the file.
		return errors.Is(err, unix.EAGAIN), nil
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK); err != nil {
		return false, fmt.Errorf("give back a lease: %w", err)
	}
	return false, nil
}

// isAlone reports whether f, which is open for writing, is the only description
// by which the file is open on this host. Where leases cannot tell, the answer
// is no.
func isAlone(f *os.File) (bool, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return false, fmt.Errorf("look at the file system: %w", err)
	}
	if !leaseTypes[int64(fs.Type)] {
		return false, nil
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		return false, nil // EAGAIN: somebody has it; anything else: leases do not work here
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK); err != nil {
		return false, fmt.Errorf("give back a lease: %w", err)
	}
	return true, nil
}
