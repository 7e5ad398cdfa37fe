package qcow2

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// fiemap is struct fiemap of linux/fiemap.h, with room for one extent.
type fiemap struct {
	start, length uint64
	flags         uint32
	mapped, count uint32
	_             uint32
	extent        fiemapExtent
}

type fiemapExtent struct {
	logical, physical, length uint64
	_                         [2]uint64
	flags                     uint32
	_                         [3]uint32
}

const (
	fiemapSync  = 0x1        // what is dirty in the page cache may go to another place
	fsIocFiemap = 0xC020660B // FS_IOC_FIEMAP

	// Shared with another file is the only thing that may be said of an extent: all
	// else (not allocated yet, encoded, unwritten, ...) means that the place does
	// not tell the content.
	fiemapLast   = 0x1
	fiemapShared = 0x2000
)

// sameBlocks is how many bytes from off on are the very blocks of the disk that
// other has from otherOff on, of n at most: then they are equal, and reading them
// twice would prove nothing. 0 where that cannot be told.
func sameBlocks(f Source, off int64, other Source, otherOff, n int64) int64 {
	a, ok := unwrap(f).(OSFile)
	b, also := unwrap(other).(OSFile)
	if !ok || !also || !a.besides(b) {
		return 0
	}
	done := int64(0)
	for done < n {
		at, room := a.place(off+done, n-done)
		to, also := b.place(otherOff+done, n-done)
		if at == 0 || at != to {
			break
		}
		done += min(room, also)
	}
	return done
}

// besides reports whether two files lie in one file system: places in two say
// nothing about each other. Two subvolumes of btrfs look like two.
func (f OSFile) besides(other OSFile) bool {
	var a, b unix.Stat_t
	return unix.Fstat(int(f.Fd()), &a) == nil && unix.Fstat(int(other.Fd()), &b) == nil && a.Dev == b.Dev
}

// unwrap is the file below one that is patched in memory: its data is the file's.
func unwrap(f Source) Source {
	if p, ok := f.(patched); ok {
		return p.Source
	}
	return f
}

// place is where on the device the byte at off lies, and how many follow it there;
// 0 for what is not shared.
func (f OSFile) place(off, n int64) (at uint64, room int64) {
	m := fiemap{start: uint64(off), length: uint64(n), flags: fiemapSync, count: 1}
	_, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fsIocFiemap, uintptr(unsafe.Pointer(&m)))
	if e != 0 || m.mapped == 0 {
		return 0, 0
	}
	x := m.extent
	in := uint64(off) - x.logical
	if x.logical > uint64(off) || x.length <= in || x.flags&^fiemapLast != fiemapShared {
		return 0, 0
	}
	return x.physical + in, int64(min(x.length-in, uint64(n)))
}
