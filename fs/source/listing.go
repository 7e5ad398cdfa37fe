package source

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// listing reads directories with getdents64(2) itself: os.File.ReadDir sorts
// and allocates for each entry what a walk does not need. The buffer is used
// again for each directory.
type listing struct {
	buf [32 << 10]byte
}

// dirent is one name in a directory.
type dirent struct {
	name  []byte // good until the next one is read
	inode uint64 // of a mount point that of the directory below the mount
	kind  uint8  // DT_DIR and so on; DT_UNKNOWN where the file system does not say
}

// direntName is where the name starts in a struct linux_dirent64: after
// d_ino, d_off (8 bytes each), d_reclen (2) and d_type (1). See getdents64(2).
const direntName = 19

// each calls f with every entry of the directory but "." and "..". A buffer
// that was not filled is no sign of the end: network file systems answer with
// what they have.
func (l *listing) each(fd int, f func(dirent) error) error {
	for {
		var n int
		err := retry(func() (err error) {
			n, err = unix.Getdents(fd, l.buf[:])
			return err
		})
		if err != nil || n == 0 {
			return err
		}
		if err := eachDirent(l.buf[:n], f); err != nil {
			return err
		}
	}
}

func eachDirent(buf []byte, f func(dirent) error) error {
	for len(buf) > 0 {
		if len(buf) < direntName {
			return fmt.Errorf("directory entry of %d bytes", len(buf))
		}
		size := int(binary.NativeEndian.Uint16(buf[16:18]))
		if size <= direntName || size > len(buf) {
			return fmt.Errorf("directory entry says it has %d of %d bytes", size, len(buf))
		}
		d := dirent{inode: binary.NativeEndian.Uint64(buf), kind: buf[18]}
		d.name, _, _ = bytes.Cut(buf[direntName:size], []byte{0})
		buf = buf[size:]
		if string(d.name) == "." || string(d.name) == ".." {
			continue
		}
		if err := f(d); err != nil {
			return err
		}
	}
	return nil
}

// digest is the same for two listings of a directory with the same names for
// the same files, in whatever order they come.
type digest uint64

// add hashes with FNV-1a: the inode number's eight bytes, then the name.
func (d *digest) add(e dirent) {
	const offset, prime = 14695981039346656037, 1099511628211
	h := uint64(offset)
	for i := range 8 {
		h = (h ^ e.inode>>(8*i)&0xff) * prime
	}
	for _, c := range e.name {
		h = (h ^ uint64(c)) * prime
	}
	*d += digest(h | 1)
}
