package qcow2

import (
	"bytes"
	"fmt"
	"strings"
)

// addLayer makes an image on top of those there are, and fills it.
func (c *randomChain) addLayer(name string, bits int, size int64) {
	l := &randomLayer{name: name, clusterBits: bits, size: size}
	if c.chance(6) { // a short header's slack may not hold another of this length
		l.name += "-" + strings.Repeat("x", 30+c.rng.IntN(200))
		c.has("long name")
	}
	c.has("clusters %d", l.cluster())
	args := []string{"qemu-img", "create", "-q", "-f", "qcow2", "-o", c.options(l)}
	if below := c.down(len(c.layers)); len(below) > 0 {
		args = append(args, "-b", below[0].name, "-F", below[0].format())
	}
	c.run(append(args, l.name, fmt.Sprint(l.size))...)
	c.layers = append(c.layers, l)
	c.fill(l)
}

// options is what qemu-img create takes, in a combination that it accepts.
func (c *randomChain) options(l *randomLayer) string {
	all := []string{fmt.Sprintf("cluster_size=%d", l.cluster())}
	l.v2 = c.chance(20)
	if l.v2 {
		c.has("v2")
		all = append(all, "compat=0.10")
	} else {
		c.has("v3")
		all = append(all, c.optionsV3(l)...)
	}
	// QEMU has preallocation above a parent only for extended L2 entries.
	if (len(c.layers) == 0 || l.extended) && c.chance(30) {
		p := []string{"metadata", "falloc", "full"}[c.rng.IntN(3)]
		c.has("preallocation %s", p)
		all = append(all, "preallocation="+p)
	}
	return strings.Join(all, ",")
}

func (c *randomChain) optionsV3(l *randomLayer) []string {
	bits := 16
	if c.chance(50) {
		bits = 1 << c.rng.IntN(7)
	}
	l.narrow = bits < 8
	c.has("refcount %d", bits)
	all := []string{fmt.Sprintf("refcount_bits=%d", bits)}
	if l.clusterBits >= 14 && c.chance(40) {
		l.extended = true
		c.has("extended L2")
		all = append(all, "extended_l2=on")
	}
	if l.lazy = c.chance(20); l.lazy {
		c.has("lazy refcounts")
		all = append(all, "lazy_refcounts=on")
	}
	compression := []string{"zlib", "zstd"}[c.rng.IntN(2)]
	c.has("%s", compression)
	return append(all, "compression_type="+compression)
}

// fill writes to a layer in one or two rounds. What is between them, snapshots and
// bitmaps, is changed by the second.
func (c *randomChain) fill(l *randomLayer) {
	if !l.v2 && c.chance(12) {
		c.addBitmap(l, "early")
	}
	c.io(l.name, c.commandsFor(l, 1+c.rng.IntN(10))...)
	again := c.chance(40)
	if c.chance(7) && !l.narrow {
		c.run("qemu-img", "snapshot", "-c", "s", l.name)
		l.snapshots, again = true, true
		c.has("snapshot")
	}
	if !l.v2 && c.chance(8) {
		c.addBitmap(l, "late")
	}
	if again {
		c.io(l.name, c.commandsFor(l, 1+c.rng.IntN(5))...)
	}
	if l.lazy && c.chance(20) {
		c.kill(l)
	}
}

func (c *randomChain) addBitmap(l *randomLayer, name string) {
	args := []string{"qemu-img", "bitmap", "--add", "-f", "qcow2", "-g", fmt.Sprint(512 << c.rng.IntN(9))}
	c.has("bitmap")
	if c.chance(30) {
		args = append(args, "--disable")
		c.has("bitmap, disabled")
	}
	c.run(append(args, l.name, name)...)
	if c.chance(30) {
		c.run("qemu-img", "bitmap", "--add", "-f", "qcow2", l.name, name+"2")
	}
}

// kill ends a writer that had not closed the image: its refcounts may stay stale,
// its bitmaps in use.
func (c *randomChain) kill(l *randomLayer) {
	args := ioArgs(l.name, append(c.commandsFor(l, 2), "flush", "sigraise 9"))
	if out, err := c.try(args...); err == nil || !strings.Contains(err.Error(), "killed") {
		c.t.Fatalf("%s: %v\n%s", shellWords(args), err, out)
	}
	l.killed = true
	b := c.read(l.name)
	h, err := ReadHeader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		c.t.Fatal(err)
	}
	if l.dirty = h.Has(Dirty); l.dirty { // not when it had allocated nothing
		c.has("dirty")
	}
}

// commandsFor is n qemu-io commands, and at times a resize among them.
func (c *randomChain) commandsFor(l *randomLayer, n int) []string {
	all := c.compressed(l)
	for range n {
		all = append(all, c.command(l))
	}
	if c.chance(12) && !l.snapshots {
		all = append(all, c.resize(l))
		for range 2 {
			all = append(all, c.command(l))
		}
	}
	return all
}

func (c *randomChain) resize(l *randomLayer) string {
	old := l.size
	// QEMU cannot have version 2 hide what a longer parent has behind the old end.
	if c.chance(50) && !(l.v2 && len(c.layers) > 1) {
		l.size = c.align(l.size+c.rng.Int64N(l.size), 512)
	} else {
		l.size = c.align(1+c.rng.Int64N(l.size), 512)
	}
	if l.size >= old {
		c.has("grow")
	} else {
		c.has("shrink")
	}
	return fmt.Sprintf("truncate %d", l.size)
}

// command is one that changes a random range. Most start and end anywhere.
func (c *randomChain) command(l *randomLayer) string {
	off, n := c.randomRange(l)
	kind := "write"
	switch k := c.rng.IntN(100); {
	case k < 15:
		kind = "write -z"
	case k < 25:
		kind = "write -z -u"
	case k < 37:
		kind = "discard"
	}
	c.has("%s", kind)
	if kind != "write" {
		return fmt.Sprintf("%s %d %d", kind, off, n)
	}
	if c.chance(20) {
		return fmt.Sprintf("write -P %d %d %d", c.rng.IntN(256), off, n)
	}
	return fmt.Sprintf("write -s p%d %d %d", c.rng.IntN(patternFiles), off, n)
}

// randomRange is a range of the layer's disk, near the size of a cluster or a few.
func (c *randomChain) randomRange(l *randomLayer) (off, n int64) {
	off = c.rng.Int64N(l.size)
	most := max(4*l.cluster(), 64<<10)
	if c.chance(20) {
		most = max(most, 512<<10)
	}
	n = 1 + c.rng.Int64N(most)
	switch c.rng.IntN(4) {
	case 0: // whole clusters
		off, n = off/l.cluster()*l.cluster(), (n+l.cluster()-1)/l.cluster()*l.cluster()
	case 1: // whole sectors
		off, n = off/512*512, (n+511)/512*512
	}
	if c.chance(10) { // up to the end of the disk, which may be inside a cluster
		n = min(2*most, l.size)
		off = l.size - n
	}
	return off, min(n, l.size-off)
}

// compressed is writes of compressed clusters. They come first in a process and
// do not overlap: QEMU 7.2 goes on to fill a cluster with compressed data after all
// that was in it was overwritten and the cluster became another's, which
// "qemu-img check" then calls corrupt.
func (c *randomChain) compressed(l *randomLayer) []string {
	var all []string
	if c.chance(60) {
		return nil
	}
	for off := c.rng.Int64N(l.size); off < l.size && len(all) < 4; off += c.rng.Int64N(l.size) {
		off = off / l.cluster() * l.cluster()
		n := min((1+c.rng.Int64N(4))*l.cluster(), l.size-off) // the last one may be a part
		all = append(all, fmt.Sprintf("write -c -s p%d %d %d", c.rng.IntN(patternFiles), off, n))
		off += n
		c.has("write -c")
	}
	return all
}
