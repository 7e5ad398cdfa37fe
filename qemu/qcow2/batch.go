package qcow2

// A batch is what an absorb moves between two rounds of syncs. It is bounded, so
// that memory is, whatever the image's size.
const (
	maxBatchClusters = 1 << 18
	maxBatchTables   = 64 << 20 // bytes of L2 tables that are changed

	// maxBatchBytes bounds what is moved for nothing when the work is cancelled: what
	// is not linked is given back, and a job that is gone on with begins its batch anew.
	maxBatchBytes = 512 << 20
)

// run is a range of a disk.
type run struct{ guest, n int64 }

// piece is a run of plain data that lies in one piece in a layer's file.
type piece struct {
	run
	layer int
	host  int64
}

// packedCluster is a compressed cluster that is moved as it is.
type packedCluster struct {
	guest   int64
	layer   int
	host, n int64
}

// batch is a part of the work, in the units of the image that is written.
type batch struct {
	geometry
	pieces []piece
	mixed  []run // to be read as the guest reads it, and written
	zeros  []run
	packed []packedCluster

	maxBytes                int64 // 0 for no bound
	clusters, tables, bytes int64 // how much of the bounds is used
	last                    int64 // the last L2 table that is counted
}

func newBatch(g geometry, maxBytes int64) *batch {
	return &batch{geometry: g, maxBytes: maxBytes, last: -1}
}

func (b *batch) empty() bool {
	return len(b.pieces)+len(b.mixed)+len(b.zeros)+len(b.packed) == 0
}

// takeData is take for what has to be moved. The bound is one of whole clusters.
func (b *batch) takeData(guest, n int64) int64 {
	if b.maxBytes > 0 {
		n = min(n, (b.maxBytes-b.bytes)/b.cluster()*b.cluster())
	}
	n = b.take(guest, n)
	b.bytes += n
	return n
}

// take is how much of a run fits into the batch, in whole units, and counts it.
func (b *batch) take(guest, n int64) int64 {
	n = min(n, (maxBatchClusters-b.clusters)<<b.clusterBits-guest%b.cluster())
	room := max(maxBatchTables/b.cluster(), 1) - b.tables
	first := guest / b.tableSpan()
	if first == b.last {
		room++
	}
	if n = min(n, (first+room)*b.tableSpan()-guest); n <= 0 {
		return 0
	}
	b.clusters += (guest+n-1)/b.cluster() - guest/b.cluster() + 1
	last := (guest + n - 1) / b.tableSpan()
	b.tables += last - max(first-1, b.last)
	b.last = last
	return n
}

// Work is how much an absorb has to do.
type Work struct {
	Data       int64 // bytes to be copied from layers' files as they are
	Mixed      int64 // bytes to be read through the chain and written
	Compressed int64 // bytes of compressed clusters to be moved as they are
	Zeros      int64 // bytes of the disk that become zero clusters; nothing is moved
	Clusters   int64 // clusters that change hands
}

// Bytes is what is read and written besides tables.
func (w Work) Bytes() int64 { return w.Data + w.Mixed + w.Compressed }

func (w *Work) add(b *batch) {
	for _, p := range b.pieces {
		w.Data += p.n
	}
	for _, r := range b.mixed {
		w.Mixed += r.n
	}
	for _, r := range b.zeros {
		w.Zeros += r.n
	}
	for _, p := range b.packed {
		w.Compressed += p.n
	}
	w.Clusters += b.clusters
}

// runs calls f for all that the batch changes on the disk.
func (b *batch) runs(f func(run) error) error {
	for _, p := range b.pieces {
		if err := f(p.run); err != nil {
			return err
		}
	}
	for _, list := range [][]run{b.mixed, b.zeros} {
		for _, r := range list {
			if err := f(r); err != nil {
				return err
			}
		}
	}
	for _, p := range b.packed {
		if err := f(run{p.guest, b.cluster()}); err != nil {
			return err
		}
	}
	return nil
}
