package qemu

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/chainfs/chainfs/chain"
	"golang.org/x/sys/unix"
)

// searchTime bounds the search for a lock's holder: its name is a help in a
// message, nothing is decided by it.
const searchTime = 200 * time.Millisecond

// holder names the process that has locks on f, empty when it is not found: it
// may run on another host, or in a container that we do not see.
func holder(f *os.File, pid int) string {
	if pid <= 0 {
		pid = findHolder(f)
	}
	if pid <= 0 {
		return ""
	}
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return fmt.Sprintf("process %d", pid)
	}
	return fmt.Sprintf("%s (process %d)", chain.Printable(strings.TrimSpace(string(comm))), pid)
}

// findHolder searches the descriptors of all other processes for one with qemu's
// locks on the file. It reads fdinfo, which lists locks, and never stats a
// descriptor: that could be a file in our own mount, and we its server.
func findHolder(f *os.File) int {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil {
		return 0
	}
	file := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	end := time.Now().Add(searchTime)
	procs, _ := filepath.Glob("/proc/[0-9]*") // fails on a bad pattern only
	for _, dir := range procs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		infos, _ := os.ReadDir(dir + "/fdinfo") // the process may have ended
		for _, info := range infos {
			if time.Now().After(end) {
				return 0
			}
			b, err := os.ReadFile(dir + "/fdinfo/" + info.Name())
			if err == nil && hasImageLock(b, file) {
				return pid
			}
		}
	}
	return 0
}

// hasImageLock looks for lines such as
// "lock:	1: OFDLCK ADVISORY  READ -1 fe:00:1234 100 100".
func hasImageLock(fdinfo []byte, file string) bool {
	for line := range bytes.Lines(fdinfo) {
		w := strings.Fields(string(line))
		if len(w) < 9 || w[0] != "lock:" || w[6] != file {
			continue
		}
		start, err := strconv.ParseInt(w[7], 10, 64)
		if err == nil && (inPermissions(start, heldBase) || inPermissions(start, unsharedBase)) {
			return true
		}
	}
	return false
}

func inPermissions(b, base int64) bool { return b >= base && b < base+permissions }
