package qcow2

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
)

// disk is a File in memory that remembers in what order it was written, so that
// a power cut can be made at any moment afterwards.
type disk struct {
	data []byte
	log  []event
	fail func(call string) error // asked before each call; nil for a disk that works
}

// event is a call that reaches the disk: bytes at off, a new size, or a sync.
type event struct {
	sync bool
	size int64 // of a truncation
	off  int64
	data []byte // nil for a truncation
}

var _ File = (*disk)(nil)

func (d *disk) ask(call string) error {
	if d.fail == nil {
		return nil
	}
	return d.fail(call)
}

func (d *disk) Size() (int64, error) { return int64(len(d.data)), nil }

func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	if err := d.ask("read"); err != nil {
		return 0, err
	}
	if off >= int64(len(d.data)) {
		return 0, io.EOF
	}
	n := copy(p, d.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// short is an error after which a part of what was asked for was done all the same.
type short struct {
	error
	part float64
}

func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	err := d.ask("write")
	if s := (short{}); errors.As(err, &s) {
		// Sectors are written in full: the page cache takes no less at once.
		end := (off + int64(float64(len(p))*s.part)) / sectorSize * sectorSize
		if err = s.error; end > off {
			p = p[:end-off]
		} else if err != nil {
			return 0, err
		}
	} else if err != nil {
		return 0, err
	}
	d.apply(event{off: off, data: append([]byte{}, p...)})
	return len(p), err
}

func (d *disk) Truncate(size int64) error {
	if err := d.ask("truncate"); err != nil {
		return err
	}
	d.apply(event{size: size})
	return nil
}

func (d *disk) Sync() error {
	if err := d.ask("sync"); err != nil {
		return err
	}
	d.log = append(d.log, event{sync: true})
	return nil
}

func (d *disk) CopyRange(off int64, src Source, srcOff, n int64) (int64, error) {
	err := d.ask("copy")
	if s := (short{}); errors.As(err, &s) {
		n, err = int64(float64(n)*s.part), s.error
	} else if err != nil {
		return 0, err
	}
	p := make([]byte, n)
	m, readErr := src.ReadAt(p, srcOff)
	if readErr != nil && !errors.Is(readErr, io.EOF) {
		return 0, readErr
	}
	if m > 0 {
		d.apply(event{off: off, data: p[:m]})
	}
	return int64(m), err
}

func (d *disk) apply(e event) {
	d.log = append(d.log, e)
	d.data = e.on(d.data)
}

// on is a file's content after the event.
func (e event) on(data []byte) []byte {
	size := int64(len(data))
	switch {
	case e.sync:
		return data
	case e.data == nil:
		size = e.size
	default:
		size = max(size, e.off+int64(len(e.data)))
	}
	if size <= int64(len(data)) {
		clear(data[size:]) // what a later extension brings back is zero
		data = data[:size]
	} else {
		data = append(data, make([]byte, size-int64(len(data)))...)
	}
	copy(data[min(e.off, size):], e.data)
	return data
}

// cut is what is on the disk after a power cut behind the first n events of a
// run that began with start: all that was synced, and of the rest each sector or
// not. keep is the share of sectors that made it.
func cut(start []byte, log []event, n int, keep float64, rng *rand.Rand) []byte {
	synced := 0
	for i, e := range log[:n] {
		if e.sync {
			synced = i
		}
	}
	data := append([]byte{}, start...)
	for i, e := range log[:n] {
		if i <= synced {
			data = e.on(data)
			continue
		}
		for _, part := range e.sectors() {
			if rng.Float64() < keep {
				data = part.on(data)
			}
		}
	}
	return data
}

// sectors splits a write at the borders of sectors.
func (e event) sectors() []event {
	if e.data == nil {
		return []event{e}
	}
	var all []event
	for off, data := e.off, e.data; len(data) > 0; {
		n := min(sectorSize-off%sectorSize, int64(len(data)))
		all = append(all, event{off: off, data: data[:n]})
		off, data = off+n, data[n:]
	}
	return all
}

func (e event) String() string {
	switch {
	case e.sync:
		return "sync"
	case e.data == nil:
		return fmt.Sprintf("truncate %d", e.size)
	}
	return fmt.Sprintf("write %d at %d", len(e.data), e.off)
}
