package qcow2

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"
)

// What the flags of FuzzAbsorb ask for.
const (
	flagVerify = 1 << iota
	flagFull   // the child becomes a full: nothing stays below
	flagSmall  // a disk that is soon full
	flagTwo    // two parents go away
)

func FuzzAbsorb(f *testing.F) {
	fuzzTB = f
	f.Fuzz(func(t *testing.T, set byte, patch []byte, flags byte, off, n int64) {
		layers := layersOf(t, set, patch)
		if len(layers) < 2 {
			return
		}
		j := absorbCase{t: t, layers: layers, flags: flags}
		j.run()
	})
}

// absorbCase is an absorb of spoilt images, and what is known from before it.
type absorbCase struct {
	t      *testing.T
	layers []*Image
	flags  byte
	file   *memFile
	job    Job
	before [][]byte // by sector; nil where it could not be read
}

func (a *absorbCase) run() {
	a.file = a.layers[0].src.(*memFile)
	header := a.layers[0].header
	a.setUp()
	if header.BackingName == a.job.Name {
		return // nothing would be done
	}
	a.before = sectorsOf(a.layers)
	found, checkErr := Check(context.Background(), a.file)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err := Absorb(ctx, a.job)
	if errors.Is(err, context.DeadlineExceeded) {
		a.t.Skip("takes long")
	}
	now, headerErr := ReadHeader(a.file, int64(len(a.file.b)))
	if headerErr != nil {
		a.t.Fatalf("%v; the header is broken: %v", err, headerErr)
	}
	if err != nil {
		if now.BackingName != header.BackingName || now.BackingFormat != header.BackingFormat {
			a.t.Errorf("%v, and the header names %q", err, now.BackingName)
		}
		a.compare(err, a.layers[1:])
		return
	}
	if now.BackingName != a.job.Name || a.job.Name != "" && now.BackingFormat != a.job.Format {
		a.t.Errorf("the header names %q", now.BackingName)
	}
	a.compare(nil, a.job.Below)
	if checkErr != nil || found.CorruptionCount > 0 {
		a.t.Fatalf("absorbed into a broken image: %+v, %v", found, checkErr)
	}
	a.check(found)
}

func (a *absorbCase) setUp() {
	away := 1
	if a.flags&flagTwo != 0 && len(a.layers) > 2 {
		away = 2
	}
	a.job = Job{Child: a.file, Away: a.layers[1 : 1+away], Below: a.layers[1+away:],
		Name: "other", Format: "qcow2", Moving: Moving{Verify: a.flags&flagVerify != 0}}
	if a.flags&flagFull != 0 {
		a.job.Away, a.job.Below, a.job.Name, a.job.Format = a.layers[1:], nil, "", ""
	}
	if a.flags&flagSmall != 0 {
		a.file.most = int64(len(a.file.b)) + 4096
	}
}

func (a *absorbCase) check(before *Findings) {
	after, err := Check(context.Background(), a.file)
	if err != nil || after.CorruptionCount > 0 || after.LeakedClusters > before.LeakedClusters {
		a.t.Errorf("got %+v, %v, before %+v", after, err, before)
	}
}

// compare reads the child over what is below it now.
func (a *absorbCase) compare(absorb error, below []*Image) {
	child, err := Open(a.file)
	if err != nil {
		a.t.Fatalf("%v; the child cannot be opened any more: %v", absorb, err)
	}
	after := sectorsOf(append([]*Image{child}, below...))
	if len(after) != len(a.before) {
		a.t.Fatalf("%v; the disk has %d sectors, had %d", absorb, len(after), len(a.before))
	}
	for i, want := range a.before {
		if want != nil && !bytes.Equal(after[i], want) {
			a.t.Fatalf("%v; sector %d reads differently", absorb, i)
		}
	}
}

// sectorsOf reads the start of a chain.
func sectorsOf(layers []*Image) [][]byte {
	c := NewChain(layers...)
	all := make([][]byte, min(c.VirtualSize(), 256<<10)/sectorSize)
	for i := range all {
		p := make([]byte, sectorSize)
		if _, err := c.ReadAt(p, int64(i)*sectorSize); err == nil {
			all[i] = p
		}
	}
	return all
}
