package source

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"

	"golang.org/x/sys/unix"
)

// listing reads directories with getdents64(2) itself: os.File.ReadDir sorts
// and allocates for each entry what a walk does not need. The buffer is used
// again for each directory.
type listing struct {
	buf [32 << 10]byte
}

// direntName is where the name starts in a struct linux_dirent64: after
// d_ino, d_off (8 bytes each), d_reclen (2) and d_type (1). See getdents64(2).
const direntName = 19

// each calls f with every name of the directory but "." and "..".
func (l *listing) each(fd int, f func(name []byte) error) error {
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

func eachDirent(buf []byte, f func(name []byte) error) error {
	for len(buf) > 0 {
		if len(buf) < direntName {
			return fmt.Errorf("directory entry of %d bytes", len(buf))
		}
		size := int(binary.NativeEndian.Uint16(buf[16:18]))
		if size <= direntName || size > len(buf) {
			return fmt.Errorf("directory entry says it has %d of %d bytes", size, len(buf))
		}
		name, _, _ := bytes.Cut(buf[direntName:size], []byte{0})
		buf = buf[size:]
		if string(name) == "." || string(name) == ".." {
			continue
		}
		if err := f(name); err != nil {
			return err
		}
	}
	return nil
}

// digest is the same for two listings of a directory with the same names, in
// whatever order they come.
type digest uint64

func (d *digest) add(name []byte) {
	h := fnv.New64a()
	h.Write(name)
	*d += digest(h.Sum64() | 1)
}
