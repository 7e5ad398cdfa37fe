package qcow2

import (
	"fmt"
	"math/rand/v2"
)

// keeping is which of the sectors that were not synced a power cut keeps.
type keeping string

const (
	keepNone   keeping = "none"
	keepAll    keeping = "all"
	keepHalf   keeping = "half"
	keepFew    keeping = "few"
	keepMost   keeping = "most"
	keepWrites keeping = "writes" // whole ones, in any order
)

var keepings = []keeping{keepNone, keepAll, keepHalf, keepFew, keepMost, keepWrites}

// tornSector is what a disk writes in full or not at all.
const tornSector = 512

// cuts are the states in which a power cut may leave a disk during one run.
type cuts struct {
	events []diskEvent
	bases  []*content // what is durable after so many syncs
	ends   []int      // the index behind the events of each stretch between syncs
}

func cutsOf(d *crashDisk) *cuts {
	c := &cuts{events: d.events}
	base := d.start.clone()
	first := 0
	for i, e := range d.events {
		if e.kind != eventSync {
			continue
		}
		c.bases, c.ends = append(c.bases, base.clone()), append(c.ends, i)
		for _, done := range d.events[first:i] {
			done.apply(base)
		}
		first = i + 1
	}
	c.bases, c.ends = append(c.bases, base), append(c.ends, len(d.events))
	return c
}

// powerCut is one of them, but for the choice of sectors.
type powerCut struct {
	stretch int // between which syncs
	event   int // how many events had begun
	keep    keeping
}

func (p powerCut) String() string {
	return fmt.Sprintf("after %d syncs and %d events, keeping %s", p.stretch, p.event, p.keep)
}

// list is n cuts. The first ones are the extremes at each sync; the others are
// spread over the stretches evenly, because the one that links and the one that
// commits have the fewest events.
func (c *cuts) list(n int, rng *rand.Rand) []powerCut {
	var all []powerCut
	for i, end := range c.ends {
		all = append(all, powerCut{i, end, keepNone}, powerCut{i, end, keepAll})
	}
	rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for len(all) < n {
		all = append(all, c.random(rng.IntN(len(c.ends)), rng))
	}
	return all[:n]
}

// random is a cut in a stretch, half of them at its end. Of a few sectors each is
// as likely kept as not: nearly none or nearly all would be the extremes again.
func (c *cuts) random(stretch int, rng *rand.Rand) powerCut {
	first, end := c.first(stretch), c.ends[stretch]
	p := powerCut{stretch, end, keepings[rng.IntN(len(keepings))]}
	if rng.IntN(2) == 0 {
		p.event = first + rng.IntN(end-first+1)
	}
	sectors := 0
	for _, e := range c.events[first:p.event] {
		sectors += (len(e.data) + tornSector - 1) / tornSector
	}
	if sectors <= 8 && (p.keep == keepFew || p.keep == keepMost) {
		p.keep = keepHalf
	}
	return p
}

// first is the index of a stretch's first event.
func (c *cuts) first(stretch int) int {
	if stretch == 0 {
		return 0
	}
	return c.ends[stretch-1] + 1
}

// after is what the disk has when it comes back.
func (c *cuts) after(p powerCut, rng *rand.Rand) *content {
	return tear(c.bases[p.stretch], c.events[c.first(p.stretch):p.event], p.keep, rng)
}

// tear is a disk on which only some sectors of what was done since the last sync
// arrived, and the file's size is any of those it had.
func tear(base *content, since []diskEvent, keep keeping, rng *rand.Rand) *content {
	disk := base.clone()
	sizes := []int64{base.size}
	for _, e := range since {
		sizes = append(sizes, e.size)
		e.tear(disk, keep.chooser(rng))
	}
	size := sizes[rng.IntN(len(sizes))]
	switch keep {
	case keepNone:
		size = sizes[0]
	case keepAll:
		size = sizes[len(sizes)-1]
	}
	disk.truncate(size)
	return disk
}

// chooser decides for one event, sector by sector.
func (k keeping) chooser(rng *rand.Rand) func() bool {
	part := map[keeping]float64{keepAll: 1, keepHalf: 0.5, keepFew: 0.05, keepMost: 0.95}[k]
	if k == keepWrites {
		part = float64(rng.IntN(2))
	}
	return func() bool { return rng.Float64() < part }
}

func (e diskEvent) tear(disk *content, kept func() bool) {
	switch e.kind {
	case eventTruncate:
		if e.size < disk.size && kept() {
			disk.truncate(e.size)
		}
	case eventWrite, eventCopy:
		off := e.off
		for p := e.data; len(p) > 0; {
			n := min(tornSector-off%tornSector, int64(len(p)))
			if kept() {
				disk.write(p[:n], off)
			}
			p, off = p[n:], off+n
		}
	}
}
