package qcow2

import (
	"fmt"
	"math/rand/v2"

	"golang.org/x/sys/unix"
)

// callKind is what can fail.
type callKind string

const (
	callAny        callKind = "any"
	callRead       callKind = "read"
	callParentRead callKind = "parent read"
	callWrite      callKind = "write"
	callCopy       callKind = "copy"
	callTruncate   callKind = "truncate"
	callSync       callKind = "sync"
)

// fault is what goes wrong.
type fault struct {
	kind  callKind
	n     int        // the call's number among those of the kind, from 1 on; 0 for none
	err   unix.Errno // 0 with short: fewer bytes, and no error
	short bool       // half of the bytes get through
	dead  bool       // nothing works any more afterwards
}

func (f fault) String() string {
	s := fmt.Sprintf("%s %d: %v", f.kind, f.n, f.err)
	if f.err == 0 {
		s = fmt.Sprintf("%s %d: no error", f.kind, f.n)
	}
	if f.short {
		s += ", short"
	}
	if f.dead {
		s += ", dead from there on"
	}
	return s
}

// faults counts the calls of one run and fails those that are to fail. All the
// files of a run share it.
type faults struct {
	fault
	calls map[callKind]int
	hit   bool
	over  bool // the disk is dead
	rng   *rand.Rand
}

func newFaults(f fault, rng *rand.Rand) *faults {
	return &faults{fault: f, calls: map[callKind]int{}, rng: rng}
}

// heal ends all faults: the disk was replaced, space was made.
func (f *faults) heal() { f.fault, f.over = fault{}, false }

// call counts a call of n bytes. Before err is returned, pass bytes must be done.
func (f *faults) call(kind callKind, n int64) (pass int64, err error, failed bool) {
	f.calls[kind]++
	f.calls[callAny]++
	if f.over {
		return 0, unix.EIO, true
	}
	if f.n == 0 || f.kind != kind && f.kind != callAny || f.calls[f.kind] != f.n {
		return 0, nil, false
	}
	f.hit, f.over = true, f.dead
	if f.short {
		pass = n / 2
	}
	if f.err == 0 {
		return pass, nil, true
	}
	return pass, f.err, true
}

// faultySource is a parent.
type faultySource struct {
	Source
	faults *faults
}

func (s faultySource) ReadAt(p []byte, off int64) (int, error) {
	return s.faults.read(callParentRead, s.Source, p, off)
}

func (f *faults) read(kind callKind, src Source, p []byte, off int64) (int, error) {
	pass, err, failed := f.call(kind, int64(len(p)))
	if !failed {
		return src.ReadAt(p, off)
	}
	n, _ := src.ReadAt(p[:pass], off)
	return n, err
}

// faultyFile is the image that is changed.
type faultyFile struct {
	*crashDisk
	faults *faults
}

var _ File = faultyFile{}

func (f faultyFile) ReadAt(p []byte, off int64) (int, error) {
	return f.faults.read(callRead, f.crashDisk, p, off)
}

// WriteAt that fails half-way ends between two sectors: one is never in parts.
func (f faultyFile) WriteAt(p []byte, off int64) (int, error) {
	pass, err, failed := f.faults.call(callWrite, int64(len(p)))
	if !failed {
		return f.crashDisk.WriteAt(p, off)
	}
	if pass = (off+pass)/tornSector*tornSector - off; pass <= 0 {
		return 0, err
	}
	n, _ := f.crashDisk.WriteAt(p[:pass], off)
	return n, err
}

func (f faultyFile) CopyRange(off int64, src Source, srcOff, n int64) (int64, error) {
	pass, err, failed := f.faults.call(callCopy, n)
	if !failed {
		return f.crashDisk.CopyRange(off, src, srcOff, n)
	}
	if pass == 0 {
		return 0, err
	}
	m, _ := f.crashDisk.CopyRange(off, src, srcOff, pass)
	return m, err
}

func (f faultyFile) Truncate(size int64) error {
	if _, err, failed := f.faults.call(callTruncate, 0); failed {
		return err
	}
	return f.crashDisk.Truncate(size)
}

func (f faultyFile) Sync() error {
	if _, err, failed := f.faults.call(callSync, 0); failed {
		f.loseSync(f.faults.rng)
		return err
	}
	return f.crashDisk.Sync()
}
