package qcow2

import (
	"bytes"
	"io"
	"slices"
)

// content is a file's bytes in pages, nil for one of zeros. Clones share their
// pages until one of them writes: a test keeps hundreds of them.
type content struct {
	size  int64
	pages []*contentPage
	owner *int // a page with the same owner is nobody else's
}

const contentPageSize = 4096

type contentPage struct {
	owner *int
	b     [contentPageSize]byte
}

func contentOf(b []byte) *content {
	c := &content{owner: new(int)}
	c.write(b, 0)
	return c
}

func (c *content) clone() *content {
	c.owner = new(int) // what was its own is shared from now on
	return &content{c.size, slices.Clone(c.pages), new(int)}
}

func (c *content) Size() (int64, error) { return c.size, nil }

func (c *content) ReadAt(p []byte, off int64) (int, error) {
	have := max(min(c.size-off, int64(len(p))), 0)
	for q := p[:have]; len(q) > 0; {
		i, at := off/contentPageSize, off%contentPageSize
		n := min(contentPageSize-at, int64(len(q)))
		if i < int64(len(c.pages)) && c.pages[i] != nil {
			copy(q, c.pages[i].b[at:at+n])
		} else {
			clear(q[:n])
		}
		q, off = q[n:], off+n
	}
	if have < int64(len(p)) {
		return int(have), io.EOF
	}
	return int(have), nil
}

var zeroPage [contentPageSize]byte

func (c *content) write(p []byte, off int64) {
	c.size = max(c.size, off+int64(len(p)))
	for len(p) > 0 {
		i, at := off/contentPageSize, off%contentPageSize
		n := min(contentPageSize-at, int64(len(p)))
		if !bytes.Equal(p[:n], zeroPage[:n]) || i < int64(len(c.pages)) && c.pages[i] != nil {
			copy(c.page(i)[at:], p[:n])
		}
		p, off = p[n:], off+n
	}
}

// page is a page for writing.
func (c *content) page(i int64) []byte {
	for int64(len(c.pages)) <= i {
		c.pages = append(c.pages, nil)
	}
	switch p := c.pages[i]; {
	case p == nil:
		c.pages[i] = &contentPage{owner: c.owner}
	case p.owner != c.owner:
		c.pages[i] = &contentPage{c.owner, p.b}
	}
	return c.pages[i].b[:]
}

func (c *content) truncate(size int64) {
	if size < c.size {
		whole := (size + contentPageSize - 1) / contentPageSize
		c.pages = c.pages[:min(int64(len(c.pages)), whole)]
		if i := size / contentPageSize; i < int64(len(c.pages)) && c.pages[i] != nil {
			clear(c.page(i)[size%contentPageSize:])
		}
	}
	c.size = size
}

// take makes the pages that hold [off, off+n) those of from. Sizes stay.
func (c *content) take(from *content, off, n int64) {
	first, end := off/contentPageSize, (min(off+n, c.size)+contentPageSize-1)/contentPageSize
	p := make([]byte, contentPageSize)
	for i := first; i < end; i++ {
		clear(p)
		_, _ = from.ReadAt(p, i*contentPageSize) // behind its end there are zeros
		copy(c.page(i), p)
	}
	if last := c.size / contentPageSize; last < int64(len(c.pages)) && c.pages[last] != nil {
		clear(c.page(last)[c.size%contentPageSize:])
	}
}

func (c *content) bytes() []byte {
	b := make([]byte, c.size)
	_, _ = c.ReadAt(b, 0)
	return b
}
