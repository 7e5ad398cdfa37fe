package qcow2

import (
	"container/list"
	"errors"
	"fmt"
	"io"
	"sync"
)

// Metadata is read in blocks of this size, whatever the cluster size is: a table
// of a 2 MiB cluster is not read as a whole for one entry, nor 512 bytes at a time
// from an image with small clusters.
const metaBlock = 64 << 10

// metaBlocks bounds the cache of one image: 4 MiB, with 64 KiB clusters the tables
// for 32 GiB of the disk.
const metaBlocks = 64

// Images in a chain share chainBlocks, 32 MiB, as long as each has minBlocks: one
// for the L1 table and one for an L2 table.
const (
	chainBlocks = 512
	minBlocks   = 2
)

// metaCache reads tables. It may be used by several goroutines.
type metaCache struct {
	src  io.ReaderAt
	size int64

	mu     sync.Mutex
	blocks map[int64]*list.Element // by number; guarded by mu
	recent list.List               // of *cachedBlock, the last used first; guarded by mu
	most   int                     // how many blocks are kept; guarded by mu
}

type cachedBlock struct {
	number int64
	data   []byte // never changed once it is here
}

func newMetaCache(src io.ReaderAt, size int64) *metaCache {
	return &metaCache{src: src, size: size, blocks: map[int64]*list.Element{}, most: metaBlocks}
}

// view is what the cache has from off on in one piece: at least min(8, n) bytes
// when off is a multiple of 8, at most n. It must not be changed.
//
// Behind the end of the file, where a table's last cluster need not have been
// written in full, there are zeros, as for QEMU. Whether a table starts inside the
// file is asked by those who know where it does.
func (m *metaCache) view(off, n int64) ([]byte, error) {
	if off < 0 || off >= m.size+1<<maxClusterBits {
		return nil, truncated("a table lies behind the end of the file")
	}
	b, err := m.block(off / metaBlock)
	if err != nil {
		return nil, err
	}
	b = b[off%metaBlock:]
	return b[:min(int64(len(b)), n)], nil
}

// read fills p with metadata at off.
func (m *metaCache) read(p []byte, off int64) error {
	for len(p) > 0 {
		b, err := m.view(off, int64(len(p)))
		if err != nil {
			return err
		}
		n := copy(p, b)
		p, off = p[n:], off+int64(n)
	}
	return nil
}

func (m *metaCache) block(number int64) ([]byte, error) {
	m.mu.Lock()
	if e := m.blocks[number]; e != nil {
		m.recent.MoveToFront(e)
		m.mu.Unlock()
		return e.Value.(*cachedBlock).data, nil
	}
	m.mu.Unlock()
	data, err := m.load(number)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.blocks[number]; e != nil { // another was faster
		return e.Value.(*cachedBlock).data, nil
	}
	m.blocks[number] = m.recent.PushFront(&cachedBlock{number, data})
	m.shrink()
	return data, nil
}

// limit lowers how many blocks are kept.
func (m *metaCache) limit(most int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.most = min(m.most, most)
	m.shrink()
}

// shrink needs mu.
func (m *metaCache) shrink() {
	for m.recent.Len() > m.most {
		last := m.recent.Remove(m.recent.Back()).(*cachedBlock)
		delete(m.blocks, last.number)
	}
}

// load reads a block, or what the file has of it.
func (m *metaCache) load(number int64) ([]byte, error) {
	off := number * metaBlock
	data := make([]byte, metaBlock)
	want := max(min(m.size-off, metaBlock), 0)
	if want == 0 {
		return data, nil
	}
	n, err := m.src.ReadAt(data[:want], off)
	if int64(n) == want {
		return data, nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = fmt.Errorf("the file shrank: %w", io.ErrUnexpectedEOF)
	}
	return nil, fmt.Errorf("read %d bytes at %d: %w", want, off, err)
}

// forget drops all blocks, after the file was changed.
func (m *metaCache) forget(size int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.blocks = map[int64]*list.Element{}
	m.recent.Init()
	m.size = size
}
