package qcow2

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
)

// crashDisk is an image file in memory. It remembers what was done to it, and
// knows apart what a reader sees and what is durable.
type crashDisk struct {
	start   *content // as it was made
	now     *content // what reads see: the page cache
	durable *content // what is on the disk for certain
	events  []diskEvent
	synced  int // events[:synced] are in durable, or lost
}

var _ File = (*crashDisk)(nil)

type eventKind string

const (
	eventWrite    eventKind = "write"
	eventCopy     eventKind = "copy" // what it copied is in data: on disk it is a write
	eventTruncate eventKind = "truncate"
	eventSync     eventKind = "sync"
)

// diskEvent is one thing that was done.
type diskEvent struct {
	kind eventKind
	off  int64
	data []byte
	size int64 // the file's after it
}

func newCrashDisk(start *content) *crashDisk {
	return &crashDisk{start: start.clone(), now: start.clone(), durable: start.clone()}
}

func (d *crashDisk) Size() (int64, error) { return d.now.size, nil }

func (d *crashDisk) ReadAt(p []byte, off int64) (int, error) { return d.now.ReadAt(p, off) }

func (d *crashDisk) WriteAt(p []byte, off int64) (int, error) {
	d.put(eventWrite, p, off)
	return len(p), nil
}

func (d *crashDisk) put(kind eventKind, p []byte, off int64) {
	d.now.write(p, off)
	d.events = append(d.events, diskEvent{kind, off, bytes.Clone(p), d.now.size})
}

func (d *crashDisk) Truncate(size int64) error {
	d.now.truncate(size)
	d.events = append(d.events, diskEvent{kind: eventTruncate, size: size})
	return nil
}

func (d *crashDisk) CopyRange(off int64, src Source, srcOff, n int64) (int64, error) {
	p := make([]byte, n)
	m, err := src.ReadAt(p, srcOff)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	if m > 0 {
		d.put(eventCopy, p[:m], off)
	}
	return int64(m), nil
}

func (d *crashDisk) Sync() error {
	for _, e := range d.unsynced() {
		e.apply(d.durable)
	}
	d.durable.truncate(d.now.size)
	d.events = append(d.events, diskEvent{kind: eventSync, size: d.now.size})
	d.synced = len(d.events)
	return nil
}

// loseSync is what Linux leaves of a sync that failed: some of the sectors are on
// disk, none is dirty any more, and readers see what never got there.
func (d *crashDisk) loseSync(rng *rand.Rand) {
	d.durable = tear(d.durable, d.unsynced(), keepHalf, rng)
	d.synced = len(d.events)
}

// Evict has clean pages read from the disk again; what is dirty stays.
func (d *crashDisk) Evict(off, n int64) {
	fresh := d.durable.clone()
	for _, e := range d.unsynced() {
		e.apply(fresh)
	}
	d.now.take(fresh, off, n)
}

// unsynced is what was done since the last sync.
func (d *crashDisk) unsynced() []diskEvent { return d.events[d.synced:] }

func (e diskEvent) apply(c *content) {
	switch e.kind {
	case eventWrite, eventCopy:
		c.write(e.data, e.off)
	case eventTruncate:
		c.truncate(e.size)
	}
}
