package qcow2

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// refcounts are an image's reference counts (specification, "Host cluster
// management"): a table of blocks, each a cluster of counts. Changes stay in
// memory until the writer writes them.
type refcounts struct {
	im     *Image
	order  uint32           // a count has 1<<order bits
	table  *table           // whole
	blocks map[int64]*table // those that were looked at, by their index in table
}

func openRefcounts(im *Image) (*refcounts, error) {
	h := im.header
	data := make([]byte, int64(h.RefcountTableClusters)<<h.ClusterBits)
	if err := im.meta.read(data, int64(h.RefcountTableOffset)); err != nil {
		return nil, fmt.Errorf("read the refcount table: %w", err)
	}
	return &refcounts{
		im: im, order: h.RefcountOrder,
		table:  newTable(int64(h.RefcountTableOffset), data, false),
		blocks: map[int64]*table{},
	}, nil
}

// perBlock is the number of clusters that a block counts.
func (r *refcounts) perBlock() int64 { return r.im.cluster() * 8 >> r.order }

// entries is the number of blocks that the table has room for.
func (r *refcounts) entries() int64 { return int64(len(r.table.data)) / 8 }

// most is the highest count that can be stored.
func (r *refcounts) most() uint64 {
	if r.order == maxRefcountOrder {
		return 1<<63 - 1 // the specification gives 64 bits; more is never needed
	}
	return 1<<(1<<r.order) - 1
}

// offset is where block i lies, 0 when there is none.
func (r *refcounts) offset(i int64) (int64, error) {
	if i >= r.entries() {
		return 0, nil
	}
	off := r.table.get64(i)
	switch {
	case off&0x1ff != 0, off%uint64(r.im.cluster()) != 0:
		return 0, corrupt("a refcount block's offset %#x is not aligned", off)
	case off > 1<<62, int64(off) >= r.im.fileSize && off != 0 && !r.isFresh(i):
		return 0, truncated("a refcount block lies behind the end of the file, at %#x", off)
	}
	return int64(off), nil
}

func (r *refcounts) isFresh(i int64) bool { return r.blocks[i] != nil && r.blocks[i].fresh }

// block is block i, nil when there is none.
func (r *refcounts) block(i int64) (*table, error) {
	if b := r.blocks[i]; b != nil {
		return b, nil
	}
	off, err := r.offset(i)
	if err != nil || off == 0 {
		return nil, err
	}
	data := make([]byte, r.im.cluster())
	if err := r.im.meta.read(data, off); err != nil {
		return nil, fmt.Errorf("read refcount block %d: %w", i, err)
	}
	b := newTable(off, data, false)
	r.blocks[i] = b
	return b, nil
}

// get is the count of a cluster.
func (r *refcounts) get(cluster int64) (uint64, error) {
	b, err := r.block(cluster / r.perBlock())
	if err != nil || b == nil {
		return 0, err
	}
	return count(b.data, r.order, cluster%r.perBlock()), nil
}

// set changes the count of a cluster whose block exists.
func (r *refcounts) set(cluster int64, n uint64) error {
	b, err := r.block(cluster / r.perBlock())
	switch {
	case err != nil:
		return err
	case b == nil:
		return corrupt("cluster %d has no refcount block", cluster)
	case n > r.most():
		return corrupt("cluster %d would have a refcount of %d", cluster, n)
	}
	i := cluster % r.perBlock()
	if count(b.data, r.order, i) != n {
		setCount(b.data, r.order, i, n)
		b.touch(i << r.order / 8)
	}
	return nil
}

// addBlock makes block i, at off.
func (r *refcounts) addBlock(i, off int64) {
	r.blocks[i] = newTable(off, make([]byte, r.im.cluster()), true)
	r.table.put64(i, uint64(off))
}

// changed are the blocks in order of their index.
func (r *refcounts) changed() []*table {
	var is []int64
	for i, b := range r.blocks {
		if b.fresh || len(b.dirty) > 0 {
			is = append(is, i)
		}
	}
	slices.Sort(is)
	var all []*table
	for _, i := range is {
		all = append(all, r.blocks[i])
	}
	return all
}

// count reads the count i of a block. Counts of less than a byte start at the
// byte's low end (specification, "Refcount block entry").
func count(b []byte, order uint32, i int64) uint64 {
	switch order {
	case 3:
		return uint64(b[i])
	case 4:
		return uint64(binary.BigEndian.Uint16(b[i*2:]))
	case 5:
		return uint64(binary.BigEndian.Uint32(b[i*4:]))
	case 6:
		return binary.BigEndian.Uint64(b[i*8:])
	}
	bits := int64(1) << order
	return uint64(b[i*bits/8]>>(i*bits%8)) & (1<<bits - 1)
}

func setCount(b []byte, order uint32, i int64, n uint64) {
	switch order {
	case 3:
		b[i] = byte(n)
	case 4:
		binary.BigEndian.PutUint16(b[i*2:], uint16(n))
	case 5:
		binary.BigEndian.PutUint32(b[i*4:], uint32(n))
	case 6:
		binary.BigEndian.PutUint64(b[i*8:], n)
	default:
		bits := int64(1) << order
		at, shift := i*bits/8, i*bits%8
		b[at] = b[at]&^(byte(1<<bits-1)<<shift) | byte(n)<<shift
	}
}
