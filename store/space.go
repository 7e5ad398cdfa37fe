package store

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
)

// minFree is the free space, in bytes, without which nothing is written. A
// write is not all that follows from it: the write-ahead log it fills becomes a
// table (8 MiB), a new log and a new value log begin (sparse, 16 and 8 MiB), and
// a compaction writes the upper levels (16 and 10 MiB) anew before it deletes
// the old ones. All of these go through memory maps, and a map of a full disk
// ends the process with SIGBUS.
const minFree = 64 << 20

// checkSpace returns an error that wraps ENOSPC when the disk under dir is
// nearly full. Others can fill it in the moment after; the margin is for that too.
func checkSpace(dir string) error {
	var st unix.Statfs_t
	for {
		err := unix.Statfs(dir, &st)
		if err == nil {
			break
		}
		if err != unix.EINTR {
			return fmt.Errorf("look at the free space of store %s: %w", dir, err)
		}
	}
	// Bavail leaves out what is reserved for root, though we may be root: that is
	// for repairs, not for us.
	if free := int64(st.Bavail) * st.Frsize; free < minFree {
		return fmt.Errorf("store %s: %s are free on its disk and %s are needed: %w",
			dir, chain.Size(free), chain.Size(minFree), unix.ENOSPC)
	}
	return nil
}

// room is checkSpace before a write.
func (s *Store) room() error {
	if s.dir == "" {
		return nil
	}
	return checkSpace(s.dir)
}
