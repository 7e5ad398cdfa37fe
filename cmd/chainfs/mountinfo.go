package main

import (
	"bufio"
	"io"
	"os"
	"strconv"
	"strings"
)

// mountEntry is one line of /proc/self/mountinfo, see proc_pid_mountinfo(5).
type mountEntry struct {
	Device   string // major:minor
	Root     string // the directory of the file system that is mounted
	Point    string // where
	Type     string
	Source   string
	ReadOnly bool // the file system is, not just this mount of it
	UID      int  // of a FUSE mount: whose daemon serves it
}

// fuseType is the type of our mounts.
const fuseType = "fuse.chainfs"

// readMounts lists the mounts of this process, in the kernel's order: of two at
// the same place the later one covers the earlier.
func readMounts() ([]mountEntry, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close() // it was only read
	return parseMounts(f)
}

func parseMounts(r io.Reader) ([]mountEntry, error) {
	var all []mountEntry
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20) // overlay mounts have lines of many pages
	for lines.Scan() {
		if m, ok := parseMount(lines.Text()); ok {
			all = append(all, m)
		}
	}
	return all, lines.Err()
}

// parseMount reads a line such as
//
//	36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
func parseMount(line string) (mountEntry, bool) {
	front, back, ok := strings.Cut(line, " - ")
	f, b := strings.Fields(front), strings.Fields(back)
	if !ok || len(f) < 6 || len(b) < 3 {
		return mountEntry{}, false
	}
	m := mountEntry{Device: f[2], Root: unescape(f[3]), Point: unescape(f[4]), Type: b[0], Source: unescape(b[1])}
	for _, option := range strings.Split(b[2], ",") {
		key, value, _ := strings.Cut(option, "=")
		switch key {
		case "ro":
			m.ReadOnly = true
		case "user_id":
			m.UID, _ = strconv.Atoi(value) // written by the kernel
		}
	}
	return m, true
}

// unescape undoes \040 and the like.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// mountAt is the chainfs mount that path, absolute and clean, lies in.
func mountAt(mounts []mountEntry, path string) (mountEntry, bool) {
	var best mountEntry
	found := false
	for _, m := range mounts {
		if within(path, m.Point) && (!found || len(m.Point) >= len(best.Point)) {
			best, found = m, true
		}
	}
	return best, found && best.Type == fuseType
}
