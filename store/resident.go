package store

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// releaseTables takes the pages of Badger's tables out of this process. Loading
// the index reads all of them once; they are clean pages of a file, which the
// kernel has in its cache anyway and maps again when they are read. Without this
// they would count as memory of a daemon that never looks at them again.
func (s *Store) releaseTables() {
	if s.dir == "" {
		return // in memory: there are no tables
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return // it only saves memory
	}
	defer maps.Close() // only read from
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		line := lines.Text()
		name := line[strings.LastIndexByte(line, ' ')+1:]
		if !strings.HasPrefix(name, s.dir+"/") || !strings.HasSuffix(name, ".sst") {
			continue
		}
		var from, to uintptr
		if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err == nil {
			// An error leaves the pages where they are.
			unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED)
		}
	}
}
