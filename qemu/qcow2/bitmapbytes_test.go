package qcow2

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// bitmapBytes is all that an image's bitmaps say, in a form that does not depend
// on where they lie (specification, "Bitmaps extension").
func bitmapBytes(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	src := OSFile{f}
	size, err := src.Size()
	if err != nil {
		return "", err
	}
	h, err := ReadHeader(f, size)
	if err != nil {
		return "", err
	}
	e := h.extension(ExtBitmaps)
	if e == nil {
		return "no bitmaps", nil
	}
	dir := make([]byte, binary.BigEndian.Uint64(e.Data[8:]))
	if _, err := f.ReadAt(dir, int64(binary.BigEndian.Uint64(e.Data[16:]))); err != nil {
		return "", fmt.Errorf("read the bitmap directory: %w", err)
	}
	all := []string{fmt.Sprintf("autoclear %#x", h.Autoclear)}
	for range binary.BigEndian.Uint32(e.Data) {
		extra, n := int(binary.BigEndian.Uint32(dir[20:])), int(binary.BigEndian.Uint16(dir[18:]))
		bits, err := oneBitmap(f, h.ClusterSize(), dir)
		if err != nil {
			return "", err
		}
		// Behind the table's place: its size, flags, type, granularity, name.
		all = append(all, fmt.Sprintf("%x %q %q", dir[8:18], dir[24+extra:24+extra+n], bits))
		dir = dir[(24+extra+n+7)&^7:]
	}
	return strings.Join(all, "\n"), nil
}

// oneBitmap is the bits of the bitmap whose directory entry comes first in dir.
func oneBitmap(f io.ReaderAt, cluster int64, dir []byte) ([]byte, error) {
	table := make([]byte, 8*int64(binary.BigEndian.Uint32(dir[8:])))
	if _, err := f.ReadAt(table, int64(binary.BigEndian.Uint64(dir))); err != nil {
		return nil, fmt.Errorf("read a bitmap's table: %w", err)
	}
	var bits []byte
	for entry := range slices.Chunk(table, 8) {
		e := binary.BigEndian.Uint64(entry)
		b := make([]byte, cluster)
		switch off := e & 0x00fffffffffffe00; {
		case off != 0:
			if _, err := f.ReadAt(b, int64(off)); err != nil {
				return nil, fmt.Errorf("read a bitmap: %w", err)
			}
		case e&1 != 0:
			for i := range b {
				b[i] = 0xff
			}
		}
		bits = append(bits, b...)
	}
	return bits, nil
}
