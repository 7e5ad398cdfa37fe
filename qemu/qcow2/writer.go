package qcow2

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
)

// writer puts clusters into an image. All of it is beyond the old end of the
// file, or where nothing leads to, until link makes it part of the disk.
//
// The groups, each durable before the next is begun, and what a power cut inside
// one leaves (any subset of its sectors):
//
//	store   data, new tables, counts    leaked clusters
//	count   the refcount table          leaked clusters
//	link    L2 and L1 entries           each entry old or new: both read the same
//
// A writer that met an error is of no use any more: what it has in memory is not
// what the file has.
type writer struct {
	file File
	im   *Image
	refs *refcounts
	end  int64 // the cluster behind the last one in use

	placed  map[int64]int64  // guest cluster to the offset that this batch gave it
	tables  map[int64]*table // L2 tables that this batch changes, by their L1 index
	first   int64            // the first cluster of this batch
	shared  map[int64]uint64 // refcounts of this batch's clusters that are not 1
	freed   []int64          // clusters to be freed when the entries are linked
	copies  []copying
	moving  []moving
	filling []run
}

// copying is bytes of a layer to be copied.
type copying struct {
	layer    int
	src, dst int64
	n        int64
}

// moving is a compressed cluster to be moved.
type moving struct {
	packedCluster
	dst int64
}

// ErrFallback: the image is sound, and cannot be changed in place. Nothing was
// changed. A rebased copy can take its place.
var ErrFallback = errors.New("not possible in place")

func newWriter(f File, im *Image, refs *refcounts, end int64) *writer {
	w := &writer{file: f, im: im, refs: refs, end: end}
	w.reset()
	return w
}

// reset begins a new batch.
func (w *writer) reset() {
	w.placed, w.tables, w.shared = map[int64]int64{}, map[int64]*table{}, map[int64]uint64{}
	w.first, w.freed, w.copies, w.moving, w.filling = w.end, nil, nil, nil, nil
	w.refs.blocks = map[int64]*table{}
}

// table is the L2 table for a guest offset, for changing.
func (w *writer) table(guest int64) (*table, error) {
	i := guest / w.im.tableSpan()
	if t := w.tables[i]; t != nil {
		return t, nil
	}
	var b [8]byte
	if err := w.im.meta.read(b[:], int64(w.im.header.L1Offset)+i*8); err != nil {
		return nil, fmt.Errorf("read the L1 table: %w", err)
	}
	entry := newTable(0, b[:], false).get64(0)
	off, err := w.im.checkL1(entry)
	if err != nil {
		return nil, err
	}
	if off != 0 && entry&flagCopied == 0 {
		return nil, fmt.Errorf("an L2 table is shared: %w", ErrFallback)
	}
	t := newTable(off, make([]byte, w.im.cluster()), off == 0)
	if off != 0 {
		if err := w.im.meta.read(t.data, off); err != nil {
			return nil, fmt.Errorf("read an L2 table: %w", err)
		}
	}
	w.tables[i] = t
	return t, nil
}

func (w *writer) at(guest int64) int64 {
	return guest % w.im.tableSpan() / w.im.cluster() * w.im.entrySize()
}

func (w *writer) entry(guest int64) (l2Entry, error) {
	t, err := w.table(guest)
	if err != nil {
		return l2Entry{}, err
	}
	return w.im.entryOf(t.data[w.at(guest):]), nil
}

func (w *writer) put(guest int64, e l2Entry) error {
	t, err := w.table(guest)
	if err != nil {
		return err
	}
	w.im.putEntry(t.data[w.at(guest):], e)
	t.touch(w.at(guest))
	return nil
}

// place is the offset of the cluster that holds a guest cluster's data: the one
// it has, or a new one.
func (w *writer) place(guest int64) (int64, error) {
	number := guest / w.im.cluster()
	if off, is := w.placed[number]; is {
		return off, nil
	}
	e, err := w.entry(guest)
	if err != nil {
		return 0, err
	}
	off := int64(0)
	switch {
	case e.compressed() || e.host() == 0:
		off = w.end * w.im.cluster()
		w.end++
	case e.desc&flagCopied == 0:
		return 0, fmt.Errorf("a cluster is shared: %w", ErrFallback)
	default:
		off = e.host()
	}
	w.placed[number] = off
	return off, nil
}

// setData makes a range of the disk data, at the place of its clusters.
func (w *writer) setData(r run) error {
	return w.eachCluster(r, func(guest, n int64) error {
		off, err := w.place(guest)
		if err != nil {
			return err
		}
		e, err := w.entry(guest)
		if err != nil {
			return err
		}
		if e.compressed() {
			w.free(e)
			e = l2Entry{}
		}
		e.desc = uint64(off) | flagCopied // without the flag of a zero cluster
		if w.im.extended {
			bits := w.bits(guest, n)
			e.bitmap = e.bitmap&^(bits<<32) | bits
		}
		return w.put(guest, e)
	})
}

// setZero makes a range of the disk zeros.
func (w *writer) setZero(r run) error {
	if w.im.version < 3 {
		return w.setZeroData(r)
	}
	return w.eachCluster(r, func(guest, n int64) error {
		e, err := w.entry(guest)
		if err != nil {
			return err
		}
		if e.compressed() {
			w.free(e)
			e = l2Entry{}
		}
		if !w.im.extended {
			w.free(e)
			return w.put(guest, l2Entry{desc: flagZero})
		}
		bits := w.bits(guest, n)
		e.bitmap = e.bitmap&^bits | bits<<32 // a cluster that it has stays its own
		return w.put(guest, e)
	})
}

// setZeroData is setZero for version 2, which has no zero clusters. A new cluster
// is a hole in the file; one that was there is filled.
func (w *writer) setZeroData(r run) error {
	return w.eachCluster(r, func(guest, n int64) error {
		off, err := w.place(guest)
		if err != nil {
			return err
		}
		if off < w.first*w.im.cluster() {
			w.filling = append(w.filling, run{guest, n})
		}
		return w.setData(run{guest, n})
	})
}

// bits are the subclusters of a range inside one cluster.
func (w *writer) bits(guest, n int64) uint64 {
	from := guest % w.im.cluster() / w.im.unit()
	to := (guest%w.im.cluster() + n + w.im.unit() - 1) / w.im.unit()
	return (1<<to - 1) &^ (1<<from - 1)
}

// eachCluster calls f for the part of r in each cluster.
func (w *writer) eachCluster(r run, f func(guest, n int64) error) error {
	for end := r.guest + r.n; r.guest < end; {
		n := min(w.im.cluster()-r.guest%w.im.cluster(), end-r.guest)
		if err := f(r.guest, n); err != nil {
			return err
		}
		r.guest += n
	}
	return nil
}

// free notes that an entry will lead nowhere any more.
func (w *writer) free(e l2Entry) {
	off, n := e.host(), w.im.cluster()
	if e.compressed() {
		off, n = w.im.packed(e)
	}
	if off == 0 {
		return
	}
	for i := off / w.im.cluster(); i <= (off+n-1)/w.im.cluster(); i++ {
		w.freed = append(w.freed, i)
	}
}

// add takes a batch in: places for all of it, in the order in which the layers'
// files have it, so that neighbours there become neighbours here.
func (w *writer) add(b *batch) error {
	slices.SortFunc(b.pieces, func(x, y piece) int {
		return cmp.Or(cmp.Compare(x.layer, y.layer), cmp.Compare(x.host, y.host))
	})
	for _, p := range b.pieces {
		if err := w.addPiece(p); err != nil {
			return err
		}
	}
	for _, r := range b.mixed {
		w.filling = append(w.filling, r)
		if err := w.setData(r); err != nil {
			return err
		}
	}
	for _, r := range b.zeros {
		if err := w.setZero(r); err != nil {
			return err
		}
	}
	return w.addPacked(b.packed)
}

func (w *writer) addPiece(p piece) error {
	err := w.eachCluster(p.run, func(guest, n int64) error {
		off, err := w.place(guest)
		if err != nil {
			return err
		}
		w.copy(copying{p.layer, p.host + guest - p.guest, off + guest%w.im.cluster(), n})
		return nil
	})
	if err != nil {
		return err
	}
	return w.setData(p.run)
}

// copy notes bytes to be copied, in one call with those before where it can be.
func (w *writer) copy(c copying) {
	if n := len(w.copies); n > 0 {
		last := &w.copies[n-1]
		if last.layer == c.layer && last.src+last.n == c.src && last.dst+last.n == c.dst {
			last.n += c.n
			return
		}
	}
	w.copies = append(w.copies, c)
}

// addPacked places compressed clusters, sector by sector one behind the other.
// Each cluster of the file counts those that touch it.
func (w *writer) addPacked(all []packedCluster) error {
	if len(all) == 0 {
		return nil
	}
	slices.SortFunc(all, func(x, y packedCluster) int {
		return cmp.Or(cmp.Compare(x.layer, y.layer), cmp.Compare(x.host, y.host))
	})
	cluster := w.im.cluster()
	next := w.end * cluster
	for _, p := range all {
		if w.full(next, p.n) {
			next = (next + cluster - 1) / cluster * cluster
		}
		e, ok := w.im.pack(next, p.n)
		if !ok {
			return fmt.Errorf("a compressed cluster would lie too far behind: %w", ErrFallback)
		}
		old, err := w.entry(p.guest)
		if err != nil {
			return err
		}
		w.free(old)
		if err := w.put(p.guest, e); err != nil {
			return err
		}
		w.moving = append(w.moving, moving{p, next})
		_, n := w.im.packed(e)
		for i := next / cluster; i <= (next+n-1)/cluster; i++ {
			w.shared[i]++
		}
		next += n
	}
	w.end = (next + cluster - 1) / cluster
	return nil
}

// full reports whether a cluster that the bytes would lie in can count no more.
func (w *writer) full(off, n int64) bool {
	for i := off / w.im.cluster(); i <= (off+n-1)/w.im.cluster(); i++ {
		if w.shared[i] >= w.refs.most() {
			return true
		}
	}
	return false
}

// allocate gives places to new tables, and counts all new clusters.
func (w *writer) allocate() error {
	for _, i := range w.indexes() {
		if t := w.tables[i]; t.fresh {
			t.off = w.end * w.im.cluster()
			w.end++
		}
	}
	if err := w.addBlocks(); err != nil {
		return err
	}
	if w.end > (offsetMask+sectorSize)>>w.im.clusterBits {
		return fmt.Errorf("the file would be longer than offsets can tell: %w", ErrFallback)
	}
	for i := w.first; i < w.end; i++ {
		n := uint64(1)
		if shared := w.shared[i]; shared > 0 {
			n = shared
		}
		if err := w.refs.set(i, n); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) indexes() []int64 {
	var is []int64
	for i := range w.tables {
		is = append(is, i)
	}
	slices.Sort(is)
	return is
}

// addBlocks makes the refcount blocks that are missing for the new clusters,
// the blocks' own included, and a longer refcount table where one is needed.
func (w *writer) addBlocks() error {
	if w.end == w.first {
		return nil
	}
	per := w.refs.perBlock()
	end, table := w.end, int64(0)
	var missing []int64
	for need := end + 1; need > end; { // until the blocks count themselves, too
		missing = missing[:0]
		for i := w.first / per; i <= (end-1)/per; i++ {
			off, err := w.refs.offset(i)
			if err != nil {
				return err
			}
			if off == 0 {
				missing = append(missing, i)
			}
		}
		if last := (end - 1) / per; last >= w.refs.entries() {
			// Half as long again, so that it does not grow with every batch.
			table = ((last+1)*3/2*8 + w.im.cluster() - 1) / w.im.cluster()
			// Asked here, or the blocks for a table of any size would be listed first.
			if table*w.im.cluster() > maxRefcountBytes {
				return fmt.Errorf("the refcount table would be longer than %d bytes: %w", maxRefcountBytes, ErrFallback)
			}
		}
		if need = w.end + int64(len(missing)) + table; need > end {
			end, need = need, need+1
		}
	}
	// In order, behind all else but a longer table: the last block counts itself,
	// and each other one is counted by itself or one behind it.
	at := w.end
	if table > 0 {
		w.growTable(at+int64(len(missing)), table)
	}
	for n, i := range missing {
		w.refs.addBlock(i, (at+int64(n))*w.im.cluster())
	}
	w.end = end
	return nil
}

// growTable moves the refcount table into new clusters; the old ones are freed
// once the header names the new.
func (w *writer) growTable(at, clusters int64) {
	old := w.refs.table
	data := make([]byte, clusters*w.im.cluster())
	copy(data, old.data)
	w.refs.table = newTable(at*w.im.cluster(), data, true)
	for i := range int64(len(old.data)) / w.im.cluster() {
		w.freed = append(w.freed, old.off/w.im.cluster()+i)
	}
}

// linkWrites are the writes that make the batch part of the disk.
func (w *writer) linkWrites() ([]write, error) {
	var all []write
	l1 := map[int64]*table{} // sectors of the L1 table, by number
	for _, i := range w.indexes() {
		t := w.tables[i]
		if !t.fresh {
			all = append(all, t.writes()...)
			continue
		}
		sector := i * 8 / sectorSize
		if l1[sector] == nil {
			off := int64(w.im.header.L1Offset) + sector*sectorSize
			data := make([]byte, min(int64(w.im.header.L1Size)*8-sector*sectorSize, sectorSize))
			if err := w.im.meta.read(data, off); err != nil {
				return nil, fmt.Errorf("read the L1 table: %w", err)
			}
			l1[sector] = newTable(off, data, false)
		}
		l1[sector].put64(i-sector*sectorSize/8, uint64(t.off)|flagCopied)
	}
	for _, t := range l1 {
		all = append(all, t.writes()...)
	}
	slices.SortFunc(all, func(x, y write) int { return cmp.Compare(x.off, y.off) })
	return all, nil
}

func (w *writer) write(ctx context.Context, all []write) error {
	for _, x := range all {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := writeAt(w.file, x.data, x.off); err != nil {
			return err
		}
	}
	return nil
}
