package source

import (
	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
)

func fstatat(dir int, name string, st *unix.Stat_t) error {
	return retry(func() error { return unix.Fstatat(dir, name, st, unix.AT_SYMLINK_NOFOLLOW) })
}

func statx(dir int, name string, flags int, st *unix.Statx_t) error {
	return retry(func() error {
		return unix.Statx(dir, name, flags|unix.AT_NO_AUTOMOUNT, unix.STATX_BASIC_STATS, st)
	})
}

// entryOf is the entry for a file as fstatat reports it.
func entryOf(p chain.Path, st *unix.Stat_t) chain.Entry {
	return chain.Entry{
		Path: p,
		Type: typeOf(st.Mode),
		Identity: chain.Identity{
			Inode: st.Ino,
			Size:  st.Size,
			MTime: st.Mtim.Nano(),
			CTime: st.Ctim.Nano(),
		},
		Allocated: st.Blocks * 512,
		Device:    st.Dev,
	}
}

// entryOfStatx is the same from statx. Both must agree to the nanosecond, or
// an image would look changed.
func entryOfStatx(p chain.Path, st *unix.Statx_t) chain.Entry {
	return chain.Entry{
		Path: p,
		Type: typeOf(uint32(st.Mode)),
		Identity: chain.Identity{
			Inode: st.Ino,
			Size:  int64(st.Size),
			MTime: nano(st.Mtime),
			CTime: nano(st.Ctime),
		},
		Allocated: int64(st.Blocks) * 512,
		Device:    unix.Mkdev(st.Dev_major, st.Dev_minor),
	}
}

func nano(ts unix.StatxTimestamp) int64 { return ts.Sec*1e9 + int64(ts.Nsec) }

func typeOf(mode uint32) chain.FileType {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return chain.Regular
	case unix.S_IFDIR:
		return chain.Directory
	case unix.S_IFLNK:
		return chain.Symlink
	}
	return chain.Other
}
