package source

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
)

// Copying is what copying costs on the tree's file system. It was tried: a type
// of file system says little (XFS shares extents or not, and an NFS server copies
// for its clients or not).
type Copying struct {
	Shares     bool   `json:"shares"`      // a copy can have the same blocks on the disk
	Server     bool   `json:"server"`      // the server copies, and no bytes come to this host
	Links      bool   `json:"links"`       // hard links
	FileSystem string `json:"file_system"` // "ext4", "xfs", "nfs", ...
}

// Free reports whether a copy moves no bytes through this host.
func (c Copying) Free() bool { return c.Shares || c.Server }

func (c Copying) String() string {
	copies := "move bytes through this host"
	switch {
	case c.Shares:
		copies = "share extents and move no bytes"
	case c.Server:
		copies = "are made by the server and move no bytes through this host"
	}
	links := "hard links"
	if !c.Links {
		links = "no hard links"
	}
	return fmt.Sprintf("%s: copies %s; %s", c.FileSystem, copies, links)
}

// probePrefix starts the names of the files that Probe makes in the tree's control
// directory. They are removed again; those of a run that was killed by the next.
const probePrefix = "probe-"

// probeSize is how much is copied on trial: several blocks of any file system, and
// more than btrfs keeps in its tables.
const probeSize = 1 << 20

// Probe finds out what copying costs on the tree's file system, by copying in the
// tree's control directory. It does so once and then knows. A tree that was opened
// read-only cannot be asked.
func (t *Tree) Probe() (Copying, error) {
	t.probing.Lock()
	defer t.probing.Unlock()
	if t.readOnly {
		return Copying{}, fmt.Errorf("probe tree %s: what a copy costs is found out by making one, and the tree was opened read-only", t.dir)
	}
	if t.copying == nil {
		c, err := t.probe()
		if err != nil {
			return Copying{}, fmt.Errorf("probe tree %s: %w", t.dir, err)
		}
		t.copying = &c
	}
	return *t.copying, nil
}

func (t *Tree) probe() (c Copying, err error) {
	dir, err := t.controlDir()
	if err != nil {
		return c, err
	}
	defer unix.Close(dir) // what was made in it is gone again
	p := &probe{dir: dir}
	// The tree has one writer, which we are: what is there is of a run that ended.
	if err := p.sweep(); err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, p.sweep()) }()
	if p.mount, err = mountOf(dir); err != nil {
		return c, err
	}
	if err := p.begin(); err != nil {
		return c, err
	}
	defer p.from.Close() // it is removed
	c.FileSystem = p.mount.kind
	for _, find := range []struct {
		what  *bool
		found func() (bool, error)
	}{{&c.Shares, p.shares}, {&c.Server, p.server}, {&c.Links, p.links}} {
		if *find.what, err = find.found(); err != nil {
			return Copying{}, err
		}
	}
	return c, nil
}

// probe is what is tried, with files of its own in dir.
type probe struct {
	dir     int
	mount   mount
	from    *os.File // probeSize bytes, durable
	counted bool     // the mount's counters saw how they were written
}

func (p *probe) sweep() error {
	fd, err := OpenBeneath(p.dir, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd) // it was only read
	names, err := namesIn(fd)
	for _, name := range names {
		if !strings.HasPrefix(name, probePrefix) {
			continue
		}
		gone := retry(func() error { return unix.Unlinkat(p.dir, name, 0) })
		if gone != nil && gone != unix.ENOENT {
			err = errors.Join(err, pathError("remove", chain.Path(chain.ControlName).Join(name), gone))
		}
	}
	return err
}

func (p *probe) name() string {
	var raw [8]byte
	rand.Read(raw[:]) // does not fail
	return probePrefix + hex.EncodeToString(raw[:])
}

func (p *probe) create() (*os.File, error) {
	name := p.name()
	path := chain.Path(chain.ControlName).Join(name)
	fd, err := OpenBeneath(p.dir, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, pathError("create", path, err)
	}
	return os.NewFile(uintptr(fd), path.String()), nil
}

// begin makes what is copied from. It is durable, so that nothing that is written
// later is of this.
func (p *probe) begin() (err error) {
	if p.from, err = p.create(); err != nil {
		return err
	}
	before, noneBefore := p.traffic()
	data := make([]byte, probeSize)
	rand.Read(data) // not to be compressed, nor to be found a copy of anything
	if _, err = p.from.Write(data); err == nil {
		err = p.from.Sync()
	}
	if err != nil {
		p.from.Close() // that it cannot be written is what is reported
		return err
	}
	after, noneAfter := p.traffic()
	p.counted = noneBefore == nil && noneAfter == nil && after.written-before.written >= probeSize
	return nil
}

func (p *probe) traffic() (traffic, error) {
	if !p.mount.remote() {
		return traffic{}, errNoCounters
	}
	return p.mount.traffic()
}

// shares: the file system clones files. qemu-img and package qcow2 share extents
// exactly there, by FICLONE and by copy_file_range(2).
func (p *probe) shares() (bool, error) {
	to, err := p.create()
	if err != nil {
		return false, err
	}
	defer to.Close() // it is removed
	err = retry(func() error { return unix.IoctlFileClone(int(to.Fd()), int(p.from.Fd())) })
	if err == nil {
		err = to.Sync() // NFS may learn only now that its server cannot
	}
	return err == nil, notHere("clone", err)
}

// serverTries is how often a copy is watched: others, who write to the same mount
// meanwhile, can make it look as if its bytes had passed.
const serverTries = 3

// server: the file system is on a server, and copy_file_range(2) moved nothing
// through this host. Linux falls back to moving it by itself and says nothing, so
// its own counters are looked at.
func (p *probe) server() (bool, error) {
	if !p.counted {
		return false, nil // nothing could be proved
	}
	for range serverTries {
		before, err := p.traffic()
		if err != nil {
			return false, err
		}
		if copied, err := p.copy(); err != nil || !copied {
			return false, err
		}
		after, err := p.traffic()
		if err != nil || before.provesCopy(after, probeSize) {
			return err == nil, err
		}
	}
	return false, nil
}

// copy has the kernel copy the file, durably, and reports whether it did.
func (p *probe) copy() (bool, error) {
	to, err := p.create()
	if err != nil {
		return false, err
	}
	defer to.Close() // it is removed
	for off := int64(0); off < probeSize; {
		in, out, n := off, off, 0
		err := retry(func() (err error) {
			n, err = unix.CopyFileRange(int(p.from.Fd()), &in, int(to.Fd()), &out, int(probeSize-off), 0)
			return err
		})
		if err != nil || n == 0 {
			return false, notHere("copy", err)
		}
		off += int64(n)
	}
	err = retry(func() error { return unix.Fsync(int(to.Fd())) })
	return err == nil, err
}

func (p *probe) links() (bool, error) {
	from, err := p.create()
	if err != nil {
		return false, err
	}
	defer from.Close() // it is removed
	name := chain.Path(from.Name()).Base()
	err = linkat(p.dir, name, p.dir, p.name())
	if errors.Is(err, chain.ErrNoLinks) {
		return false, nil
	}
	return err == nil, err
}

// notHere is nil for the errors that say that the file system cannot, and nothing
// about the files or the disk.
func notHere(what string, err error) error {
	switch err {
	case nil, unix.EXDEV, unix.EINVAL, unix.ENOSYS, unix.EOPNOTSUPP, unix.ENOTTY, unix.EPERM:
		return nil
	}
	return fmt.Errorf("%s a file: %w", what, err)
}
