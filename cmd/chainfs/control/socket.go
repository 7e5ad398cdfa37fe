package control

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Dir is where the sockets of a user's daemons are: /run/chainfs for root.
func Dir(uid int) string {
	if uid == 0 {
		return "/run/chainfs"
	}
	run := "/run/user/" + strconv.Itoa(uid)
	if own := os.Getenv("XDG_RUNTIME_DIR"); own != "" && uid == os.Geteuid() {
		run = own
	}
	if _, err := os.Stat(run); err != nil {
		return filepath.Join(os.TempDir(), "chainfs-"+strconv.Itoa(uid))
	}
	return filepath.Join(run, "chainfs")
}

// Name is the file name of the socket of the tree's writer; with a mountpoint
// it is that of a read-only mount there, of which a tree can have many.
func Name(tree, readOnlyAt string) string {
	if readOnlyAt == "" {
		return tree + ".sock"
	}
	sum := sha256.Sum256([]byte(readOnlyAt))
	return tree + "." + hex.EncodeToString(sum[:4]) + ".sock"
}

// Listener is a control socket. While it is open nobody else listens at its path.
type Listener struct {
	net.Listener
	path string
	lock *os.File
}

// Listen listens at path, once whoever listened there before has let go.
// A socket that a dead process left is replaced.
func Listen(path string) (*Listener, error) {
	if err := privateDir(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	lock, err := lockFile(path, unix.LOCK_EX, patience)
	if err != nil {
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	l, err := listen(path)
	if err != nil {
		lock.Close() // the lock goes with it
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	return &Listener{l, path, lock}, nil
}

func listen(path string) (net.Listener, error) {
	// The lock is ours, so what is there is of a process that is gone.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // Release does, while the lock is held
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// Release closes the socket, removes it, and gives up the lock: from then on
// the tree is free. The listener may be closed already.
func (l *Listener) Release() error {
	if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	err := os.Remove(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, l.lock.Close())
}

// WaitReleased waits until nobody holds the tree whose socket is at path.
func WaitReleased(path string, timeout time.Duration) error {
	lock, err := lockFile(path, unix.LOCK_SH, timeout)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return lock.Close()
}

var errHeld = errors.New("another chainfs process holds it")

// lockFile locks the file beside the socket. It stays there for good: to remove
// it would leave one process with a lock on a file that others do not see.
func lockFile(path string, how int, timeout time.Duration) (*os.File, error) {
	flags := os.O_RDWR | unix.O_NOFOLLOW
	if how == unix.LOCK_EX {
		flags |= os.O_CREATE
	}
	f, err := os.OpenFile(path+".lock", flags, 0o600)
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(timeout); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR || time.Now().After(end) {
			f.Close()
			if err == unix.EWOULDBLOCK {
				err = errHeld
			}
			return nil, err
		}
	}
}

// privateDir makes a directory of mode 0700 and refuses one that others made:
// in a directory for everybody they could be waiting for us there.
func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return fmt.Errorf("look at %s: %w", dir, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s is not a directory of ours; remove it", dir)
	}
	if st.Mode&0o077 != 0 {
		return os.Chmod(dir, 0o700)
	}
	return nil
}
