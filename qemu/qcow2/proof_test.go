package qcow2

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var chainsFlag = flag.Int("chains", 60, "how many random chains TestProof makes")

// Whatever a chain looks like: after an absorb every image that stays reads as
// before without those that go away, and QEMU finds nothing wrong. One chain alone
// is repeated with its test's name as -seed and -chains 1.
func TestProof(t *testing.T) {
	needQemu(t)
	seed := testSeed(t)
	ways := map[string]int{}
	for i := range *chainsFlag {
		t.Run(fmt.Sprint(seed+uint64(i)), func(t *testing.T) {
			p := newProof(t, seed+uint64(i))
			p.chainReads()
			ways[p.absorb()]++
		})
	}
	t.Logf("%d chains went these ways: %v", *chainsFlag, ways)
	if ways["native"] < *chainsFlag/2 && !t.Failed() {
		t.Errorf("only %d of %d chains were absorbed natively", ways["native"], *chainsFlag)
	}
}

// proof is one chain and all that was known of it before.
type proof struct {
	*randomChain
	t       *testing.T
	guests  [][]byte // what a guest reads, by layer
	files   [][]byte // the files
	bitmaps string   // the child's
}

func newProof(t *testing.T, seed uint64) *proof {
	p := &proof{randomChain: newRandomChain(t, rngOf(seed)), t: t}
	for _, l := range p.layers {
		p.files = append(p.files, p.read(l.name))
		if l.raw {
			p.guests = append(p.guests, p.files[0])
		} else {
			p.guests = append(p.guests, p.raw(l.name))
		}
	}
	if p.childLayer().dirty {
		return p // its bitmaps need not be readable
	}
	var err error
	if p.bitmaps, err = bitmapBytes(p.path(p.childLayer().name)); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *proof) childLayer() *randomLayer { return p.layers[p.child] }

// chainReads: every layer reads as qemu-img reads it, in full and in any part.
func (p *proof) chainReads() {
	p.t.Helper()
	for i, want := range p.guests {
		layers := p.open(p.down(i + 1))
		if err := sees(want, layers...); err != nil {
			p.t.Fatalf("%s, in full: %v", p.layers[i].name, err)
		}
		chain, err := engineOpen(layers...)
		if err != nil {
			p.t.Fatal(err)
		}
		for range 30 {
			off := p.rng.Int64N(int64(len(want)))
			n := 1 + p.rng.Int64N(min(int64(len(want))-off, 100<<10))
			// What lies behind the end is zeros: a longer layer above sees that.
			got := make([]byte, n+p.rng.Int64N(1000))
			if _, err := chain.ReadAt(got, off); err != nil {
				p.t.Fatalf("%s, %d bytes at %d: %v", p.layers[i].name, len(got), off, err)
			}
			part := make([]byte, len(got))
			copy(part, want[off:])
			if err := firstDifference(got, part); err != nil {
				p.t.Fatalf("%s, %d bytes at %d: %v", p.layers[i].name, len(got), off, err)
			}
		}
	}
}

// open opens layers for reading.
func (p *proof) open(layers []*randomLayer) []testLayer {
	p.t.Helper()
	var all []testLayer
	for _, l := range layers {
		all = append(all, testLayer{p.file(l.name, os.O_RDONLY), l.raw})
	}
	return all
}

func (p *proof) file(name string, flags int) OSFile {
	p.t.Helper()
	f, err := os.OpenFile(p.path(name), flags, 0)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { f.Close() })
	return OSFile{f}
}

// absorb does it, looks at everything, and tells which way it went.
func (p *proof) absorb() string {
	p.t.Helper()
	j := testJob{
		child: p.file(p.childLayer().name, os.O_RDWR),
		away:  p.open(p.awayLayers()), below: p.open(p.below()),
		verify: p.chance(50),
	}
	j.batch = smallBatch(j.child)
	if below := p.below(); len(below) > 0 {
		j.name, j.format = below[0].name, below[0].format()
	}
	err := engineAbsorb(j)
	p.othersUnchanged()
	if fellBack(err) {
		return p.checkFallback(err)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	for _, l := range p.awayLayers() {
		p.remove(l.name)
	}
	p.checkHeader(j)
	p.checkGuests()
	p.checkByQemu()
	if got, err := bitmapBytes(p.path(p.childLayer().name)); err != nil || got != p.bitmaps {
		p.t.Errorf("the bitmaps changed (%v): got\n%.2000s\nwant\n%.2000s", err, got, p.bitmaps)
	}
	return "native"
}

// checkByQemu: no corruption, and no leak that a killed writer had not left.
func (p *proof) checkByQemu() {
	p.t.Helper()
	out, err := p.try("qemu-img", "check", "-f", "qcow2", p.childLayer().name)
	leaky := err != nil && strings.Contains(out, "leaked clusters were found") && !strings.Contains(out, "errors were found")
	if err != nil && !(leaky && p.childLayer().killed) {
		p.t.Errorf("qemu-img check: %v\n%s", err, out)
	}
}

// checkFallback: only for a reason, and then nothing is changed.
func (p *proof) checkFallback(err error) string {
	p.t.Helper()
	l := p.childLayer()
	if !bytes.Equal(p.read(l.name), p.files[p.child]) {
		p.t.Errorf("it fell back (%v) and changed the file", err)
	}
	switch {
	case l.dirty:
		return "fallback: dirty"
	case l.snapshots:
		return "fallback: snapshots"
	case l.clusterBits == minClusterBits, l.clusterBits == minClusterBits+1 && p.features["long name"]:
		return "fallback: no room in the header"
	}
	p.t.Errorf("it fell back without a reason that is known: %v", err)
	return "fallback: unknown"
}

// othersUnchanged: only the child is written to.
func (p *proof) othersUnchanged() {
	p.t.Helper()
	for i, l := range p.layers {
		if i != p.child && !bytes.Equal(p.read(l.name), p.files[i]) {
			p.t.Errorf("%s was written to", l.name)
		}
	}
}

// checkGuests: by QEMU, without what went away.
func (p *proof) checkGuests() {
	p.t.Helper()
	for i := p.child; i < len(p.layers); i++ {
		if err := firstDifference(p.raw(p.layers[i].name), p.guests[i]); err != nil {
			p.t.Errorf("%s reads differently: %v", p.layers[i].name, err)
		}
	}
}

func (p *proof) checkHeader(j testJob) {
	p.t.Helper()
	var got info
	out := p.run("qemu-img", "info", "-f", "qcow2", "--output=json", p.childLayer().name)
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		p.t.Fatal(errors.Join(err, errors.New(out)))
	}
	if got.Backing != j.name || got.BackingFormat != j.format {
		p.t.Errorf("got parent %q (%s), want %q (%s)", got.Backing, got.BackingFormat, j.name, j.format)
	}
	if got.VirtualSize != uint64(len(p.guests[p.child])) {
		p.t.Errorf("got a disk of %d bytes, want %d", got.VirtualSize, len(p.guests[p.child]))
	}
}
