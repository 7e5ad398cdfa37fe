package source

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
)

// ownerFile carries the lock of the tree's one writer.
const ownerFile = chain.Path(chain.ControlName + "/owner.lock")

// Owner is who writes to a tree.
type Owner struct {
	Host       string    `json:"host"`
	PID        int       `json:"pid"`
	Mountpoint string    `json:"mountpoint,omitempty"`
	Since      time.Time `json:"since"`
}

// OwnedError is a tree that another chainfs writes to.
type OwnedError struct {
	Owner // zero when the owner has not written its name yet
}

func (e *OwnedError) Error() string {
	if e.Host == "" {
		return "the tree is owned by another chainfs, which has not said where it runs; stop it, or mount read-only"
	}
	where := ""
	if e.Mountpoint != "" {
		where = ", mounted at " + chain.Printable(e.Mountpoint)
	}
	return fmt.Sprintf("the tree is owned by process %d on host %s%s, since %s; unmount it there, or mount read-only here",
		e.PID, chain.Printable(e.Host), where, e.Since.Format(time.RFC3339))
}

// ownerLock is the lock while it is held: by the open file description, so that
// it excludes this process as well, and ends with the process in any case.
type ownerLock struct {
	file *os.File
}

// lockTries bounds the race with an owner that removes the file.
const lockTries = 10

// own takes the owner's lock and writes who has it.
func (t *Tree) own(mountpoint string) error {
	for range lockTries {
		lock, err := t.lockOwnerFile()
		if err != nil {
			return err
		}
		if lock.kept(t) != nil {
			lock.file.Close() // a lock on a file that is no longer in the tree excludes nobody
			continue
		}
		t.owner = lock
		return lock.write(mountpoint)
	}
	return fmt.Errorf("lock %s: it is replaced again and again", ownerFile)
}

// lockOwnerFile opens the file for root alone: whoever can read a file can take
// a read lock on it, and so keep the owner out.
func (t *Tree) lockOwnerFile() (*ownerLock, error) {
	dir, err := t.controlDir()
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	fd, err := OpenBeneath(dir, ownerFile.Base(), unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, pathError("open", ownerFile, err)
	}
	if err := regular(fd); err != nil {
		unix.Close(fd)
		return nil, pathError("open", ownerFile, err)
	}
	f := os.NewFile(uintptr(fd), ownerFile.String())
	if err := lockWhole(f); err != nil {
		defer f.Close() // nothing was written
		return nil, lockError(f, err)
	}
	return &ownerLock{f}, nil
}

func lockWhole(f *os.File) error {
	whole := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	return retry(func() error { return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &whole) })
}

func lockError(f *os.File, err error) error {
	if err != unix.EAGAIN && err != unix.EACCES {
		return pathError("lock", ownerFile, err)
	}
	e := &OwnedError{}
	data, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil || json.Unmarshal(data, &e.Owner) != nil {
		e.Owner = Owner{} // the lock is what counts; the name is a courtesy
	}
	return e
}

func (l *ownerLock) write(mountpoint string) error {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	data, err := json.Marshal(Owner{host, os.Getpid(), mountpoint, time.Now().UTC().Truncate(time.Second)})
	if err != nil {
		return err
	}
	if err := l.file.Truncate(0); err != nil {
		return err
	}
	if _, err := l.file.WriteAt(append(data, '\n'), 0); err != nil {
		return err
	}
	return l.file.Sync() // on NFS this is what shows it to other hosts
}

// kept reports an error when the locked file is not the one in the tree: then
// somebody removed it, and another writer can lock a new one.
func (l *ownerLock) kept(t *Tree) error {
	var held, named unix.Stat_t
	if err := retry(func() error { return unix.Fstat(int(l.file.Fd()), &held) }); err != nil {
		return pathError("stat", ownerFile, err)
	}
	dir, name, release, err := t.At(ownerFile)
	if err != nil {
		return pathError("stat", ownerFile, err)
	}
	defer release()
	if err := fstatat(dir, name, &named); err != nil {
		return pathError("stat", ownerFile, err)
	}
	if held.Ino != named.Ino || held.Dev != named.Dev {
		return fmt.Errorf("%s was replaced: another writer may own the tree", ownerFile)
	}
	return nil
}

// disown truncates before it unlocks, so that what the file says is never an
// owner that is gone, except after a crash.
func (t *Tree) disown() error {
	if t.owner == nil {
		return nil
	}
	f := t.owner.file
	t.owner = nil
	return errors.Join(f.Truncate(0), f.Close())
}
