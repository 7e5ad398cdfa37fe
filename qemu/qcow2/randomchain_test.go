package qcow2

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// randomChain is a chain of images made by QEMU, and a choice of what is to be
// deleted from it.
type randomChain struct {
	*imageDir
	rng      *rand.Rand
	layers   []*randomLayer // the bottom first
	child    int            // this layer absorbs
	away     int            // so many layers right below it
	features map[string]bool
}

// randomLayer is one image of it.
type randomLayer struct {
	name        string
	raw         bool
	v2          bool
	clusterBits int
	extended    bool
	lazy        bool
	narrow      bool // a snapshot may need more references than can be counted
	snapshots   bool
	killed      bool // it was not closed
	dirty       bool // and says so
	size        int64
}

func (l *randomLayer) format() string {
	if l.raw {
		return "raw"
	}
	return "qcow2"
}

func (l *randomLayer) cluster() int64 { return 1 << l.clusterBits }

// newRandomChain makes 2 to 6 images on top of each other, at times with a raw
// file at the bottom.
func newRandomChain(t testing.TB, rng *rand.Rand) *randomChain {
	c := &randomChain{imageDir: newImageDir(t), rng: rng, features: map[string]bool{}}
	bits := c.clusterSizes()
	size := c.guestSize(bits)
	if c.chance(25) {
		c.addRaw(size)
	}
	for i, b := range bits {
		c.addLayer(fmt.Sprintf("l%d", i), b, c.sizeNear(size))
	}
	c.choose()
	return c
}

// chance is true in so many of a hundred cases.
func (c *randomChain) chance(percent int) bool { return c.rng.IntN(100) < percent }

func (c *randomChain) has(feature string, args ...any) {
	c.features[fmt.Sprintf(feature, args...)] = true
}

// clusterSizes are those of the layers, as bits: all the same, or mixed. The
// largest are rare, because such images are slow to read.
func (c *randomChain) clusterSizes() []int {
	common := []int{9, 9, 10, 11, 12, 12, 13, 14, 15, 16, 16, 16, 17, 18}
	pick := func() int {
		if c.chance(9) {
			return 19 + c.rng.IntN(3)
		}
		return common[c.rng.IntN(len(common))]
	}
	bits := make([]int, 2+c.rng.IntN(5))
	one := pick()
	same := c.chance(40)
	for i := range bits {
		bits[i] = one
		if !same {
			bits[i] = pick()
		}
	}
	if !same {
		c.has("mixed cluster sizes")
	}
	return bits
}

func (c *randomChain) guestSize(bits []int) int64 {
	most := int64(8 << 20)
	switch smallest, largest := slices.Min(bits), slices.Max(bits); {
	case smallest <= 10:
		most = 3 << 20 // tens of thousands of clusters otherwise
	case largest >= 20:
		most = 32 << 20
	case largest >= 18:
		most = 16 << 20
	}
	return c.align(1<<20+c.rng.Int64N(most), 512)
}

func (c *randomChain) align(n, to int64) int64 { return max(n/to*to, to) }

// sizeNear is a layer's size: mostly as all others, else shorter or longer, and
// in no relation to clusters.
func (c *randomChain) sizeNear(size int64) int64 {
	switch {
	case c.chance(60):
		return size
	case c.chance(50):
		return c.align(c.rng.Int64N(size), 512)
	}
	return c.align(size+c.rng.Int64N(size), 512)
}

// addRaw puts a raw file at the bottom, with holes, and an end inside a sector.
func (c *randomChain) addRaw(size int64) {
	size = c.sizeNear(size)
	if c.chance(50) {
		size += 1 + c.rng.Int64N(510)
		c.has("raw base, odd size")
	}
	b := make([]byte, size)
	p := c.read("p0")
	for range 4 {
		off := c.rng.Int64N(size)
		copy(b[off:min(off+c.rng.Int64N(size/4), size)], p)
	}
	c.write("base.raw", b)
	c.commands = append(c.commands, fmt.Sprintf("# base.raw: %d random bytes", size))
	c.layers = append(c.layers, &randomLayer{name: "base.raw", raw: true, size: size})
	c.has("raw base")
}

// choose decides what is deleted: one or several adjacent layers. If the bottom is
// among them the child becomes a full.
func (c *randomChain) choose() {
	c.child = 1 + c.rng.IntN(len(c.layers)-1)
	c.away = 1
	if c.chance(70) {
		c.away = 1 + c.rng.IntN(c.child)
	}
	if c.away > 1 {
		c.has("several away")
	}
	if c.away == c.child {
		c.has("becomes a full")
	}
	for i, l := range c.layers[:c.child] {
		if l.size < c.layers[c.child].size && i >= c.child-c.away {
			c.has("away is shorter than the child")
		}
	}
	c.commands = append(c.commands, fmt.Sprintf("# the child is %s; the %d below it go away", c.layers[c.child].name, c.away))
}

// below is the layers from the new parent down, awayLayers those in between, both
// the top first.
func (c *randomChain) below() []*randomLayer { return c.down(c.child - c.away) }

func (c *randomChain) awayLayers() []*randomLayer { return c.down(c.child)[:c.away] }

// down is the n lowest layers, the top first.
func (c *randomChain) down(n int) []*randomLayer {
	all := slices.Clone(c.layers[:n])
	slices.Reverse(all)
	return all
}

// The generator must make what it promises; a proof over chains that all look the
// same proves little.
func TestRandomChains(t *testing.T) {
	needQemu(t)
	seed := uint64(1) // a random one would now and then lack a rare feature
	if *seedFlag != defaultSeed {
		seed = testSeed(t)
	}
	n := 100
	if testing.Short() {
		n = 20
	}
	counts := map[string]int{}
	for i := range n {
		t.Run(fmt.Sprint(seed+uint64(i)), func(t *testing.T) {
			c := newRandomChain(t, rngOf(seed+uint64(i)))
			for _, l := range c.layers {
				if !l.raw {
					c.checkRandomLayer(l)
				}
			}
			for f := range c.features {
				counts[f]++
			}
		})
	}
	if t.Failed() {
		return
	}
	for _, f := range randomFeatures {
		if counts[f] == 0 && n == 100 {
			t.Errorf("no chain of %d has %q", n, f)
		}
	}
	for _, f := range slices.Sorted(maps.Keys(counts)) {
		if !slices.Contains(randomFeatures, f) {
			t.Errorf("%q is not in the list of features", f)
		}
		t.Logf("%4d %s", counts[f], f)
	}
}

func (c *randomChain) checkRandomLayer(l *randomLayer) {
	c.t.Helper()
	out, err := c.try("qemu-img", "info", "-f", "qcow2", "--backing-chain", l.name)
	if err != nil {
		c.t.Errorf("%s does not open: %v\n%s", l.name, err, out)
	}
	if l.killed {
		return
	}
	if out, err := c.try("qemu-img", "check", "-f", "qcow2", l.name); err != nil {
		c.t.Errorf("%s is not sound to begin with: %v\n%s", l.name, err, out)
	}
}

// randomFeatures are all that a chain may have.
var randomFeatures = strings.Split(strings.TrimSpace(`
v2
v3
extended L2
refcount 1
refcount 2
refcount 4
refcount 8
refcount 16
refcount 32
refcount 64
zlib
zstd
lazy refcounts
dirty
preallocation metadata
preallocation falloc
preallocation full
clusters 512
clusters 1024
clusters 2048
clusters 4096
clusters 8192
clusters 16384
clusters 32768
clusters 65536
clusters 131072
clusters 262144
clusters 524288
clusters 1048576
clusters 2097152
mixed cluster sizes
raw base
raw base, odd size
long name
write
write -z
write -z -u
discard
write -c
grow
shrink
bitmap
bitmap, disabled
snapshot
several away
becomes a full
away is shorter than the child`), "\n")
