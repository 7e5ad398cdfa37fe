package source

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mount is the mount that a directory lies in.
type mount struct {
	point string // as the kernel writes it, with spaces as \040
	kind  string // the file system's type
}

// magics are the types whose mount cannot be found, or is called otherwise.
var magics = map[int64]string{
	unix.EXT4_SUPER_MAGIC:  "ext4",
	unix.XFS_SUPER_MAGIC:   "xfs",
	unix.BTRFS_SUPER_MAGIC: "btrfs",
	unix.TMPFS_MAGIC:       "tmpfs",
	unix.NFS_SUPER_MAGIC:   "nfs",
	unix.SMB2_SUPER_MAGIC:  "cifs",
	unix.CIFS_SUPER_MAGIC:  "cifs",
}

// mountOf finds the mount of an open directory by the kernel's number for it:
// device numbers do not do, because on btrfs each subvolume has its own.
func mountOf(fd int) (mount, error) {
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return mount{}, err
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return mount{}, err
	}
	m := findMount(mounts, mountID(info))
	if kind, err := typeByMagic(fd); err != nil || m.kind == "" || kind == "nfs" || kind == "cifs" {
		m.kind = kind
		return m, err
	}
	return m, nil
}

// typeByMagic is the number itself for one that has no name here.
func typeByMagic(fd int) (string, error) {
	var fs unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(fd, &fs) }); err != nil {
		return "", fmt.Errorf("look at the file system: %w", err)
	}
	// The number is of 32 bits, and the field on some machines a signed one.
	if kind, is := magics[int64(uint32(fs.Type))]; is {
		return kind, nil
	}
	return fmt.Sprintf("type %#x", uint32(fs.Type)), nil
}

// mountID is what a file in /proc/self/fdinfo says: "mnt_id:\t29"; see proc(5).
func mountID(info []byte) string {
	for line := range strings.Lines(string(info)) {
		if id, is := strings.CutPrefix(line, "mnt_id:"); is {
			return strings.TrimSpace(id)
		}
	}
	return ""
}

// findMount looks in /proc/self/mountinfo; see proc(5). The fields are the id, the
// parent's id, the device, the root, the mount point, the options, any number of
// others up to "-", and then the type. A mount that is not found is empty.
func findMount(mountinfo []byte, id string) mount {
	for line := range strings.Lines(string(mountinfo)) {
		left, right, _ := strings.Cut(line, " - ")
		fields, behind := strings.Fields(left), strings.Fields(right)
		if len(fields) > 4 && len(behind) > 0 && fields[0] == id {
			return mount{fields[4], behind[0]}
		}
	}
	return mount{}
}

// remote reports whether the file system is one whose server may copy.
func (m mount) remote() bool { return m.kind == "nfs" || m.kind == "cifs" }

// traffic is what the kernel has counted for a mount.
type traffic struct {
	read, written int64 // bytes that passed between this host and the server
	copies        int64 // that the server was asked for and has made; -1: not counted
}

// provesCopy: between the two, the server made a copy, and fewer than n bytes were
// written to it.
func (t traffic) provesCopy(after traffic, n int64) bool {
	return after.written-t.written < n && after.read-t.read < n &&
		(t.copies < 0 || after.copies > t.copies)
}

func (m mount) traffic() (traffic, error) {
	if m.kind == "cifs" {
		stats, err := os.ReadFile("/proc/fs/cifs/Stats")
		if err != nil {
			return traffic{}, err
		}
		return cifsTraffic(stats)
	}
	stats, err := os.ReadFile("/proc/self/mountstats")
	if err != nil {
		return traffic{}, err
	}
	return nfsTraffic(stats, m.point)
}

// errNoCounters: the kernel does not count, or in a way that is not known.
var errNoCounters = errors.New("no counters for the mount")

// nfsTraffic reads /proc/self/mountstats (fs/nfs/super.c, nfs_show_stats), the part
// of the mount at point:
//
//	device SERVER:/PATH mounted on /POINT with fstype nfs4 statvers=1.1
//		bytes:	N N N N READ WRITTEN ...
//		per-op statistics
//		        COPY: OPS ... ERRORS
//
// Of several mounts at one place, one above the other, all are counted together.
func nfsTraffic(stats []byte, point string) (t traffic, err error) {
	inside := false
	err = errNoCounters
	for line := range strings.Lines(string(stats)) {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 0:
		case fields[0] == "device":
			inside = len(fields) > 7 && fields[4] == point && strings.HasPrefix(fields[7], "nfs")
		case !inside:
		case fields[0] == "bytes:" && len(fields) > 6:
			err = t.add(fields[5], fields[6])
		case fields[0] == "COPY:" && len(fields) > 1:
			t.copies += number(fields[1])
			if len(fields) > 9 { // since Linux 5.3
				t.copies -= number(fields[9])
			}
		}
	}
	return t, err
}

// cifsTraffic reads /proc/fs/cifs/Stats (fs/smb/client/smb2ops.c, smb2_print_stats):
// "Bytes read: N  Bytes written: N" for each share. Which share is ours is hard to
// tell, and the sum proves as much.
func cifsTraffic(stats []byte) (t traffic, err error) {
	t.copies, err = -1, errNoCounters
	for line := range strings.Lines(string(stats)) {
		rest, is := strings.CutPrefix(line, "Bytes read: ")
		read, written, both := strings.Cut(rest, "Bytes written: ")
		if is && both {
			err = t.add(strings.TrimSpace(read), strings.TrimSpace(written))
		}
	}
	return t, err
}

func (t *traffic) add(read, written string) error {
	r, err := strconv.ParseInt(read, 10, 64)
	if err != nil {
		return errNoCounters
	}
	w, err := strconv.ParseInt(written, 10, 64)
	if err != nil {
		return errNoCounters
	}
	t.read, t.written = t.read+r, t.written+w
	return nil
}

// number is 0 for what is none: a counter that stands still proves no copy.
func number(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0
	}
	return n
}
