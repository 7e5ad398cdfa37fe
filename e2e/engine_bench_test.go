package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chainfs/chainfs/qemu/qcow2"
)

// BenchmarkEngine times the engine against "qemu-img rebase" on copies of one
// chain: 8 GiB virtual, 3 GiB in the full, 1 GiB in the parent that goes away,
// 256 MiB in the child. Each figure is the median of five runs; ratios are ours
// by qemu-img's, so that less is better.
func BenchmarkEngine(b *testing.B) {
	for _, fstype := range []string{"ext4", "xfs", "btrfs"} {
		for _, p := range []placement{{"64 KiB to 1 MiB", 16}, {"64 KiB", 1}} {
			b.Run(fstype+"/"+strings.ReplaceAll(p.name, " ", "_"), func(b *testing.B) {
				c := newBenchChain(b, benchDisk(b, fstype), p)
				for _, cold := range []bool{true, false} {
					c.race(b, fstype, cold)
				}
			})
		}
	}
}

// placement is how a layer's data is strewn over the disk: pieces of one to most
// clusters of 64 KiB at random places.
type placement struct {
	name string
	most int
}

// benchDisk is a file system of 24 GiB on a loop device.
func benchDisk(b *testing.B, fstype string) string {
	b.Helper()
	image, dir := filepath.Join(b.TempDir(), "disk"), b.TempDir()
	f, err := os.Create(image)
	check(b, err)
	check(b, f.Truncate(24<<30))
	check(b, f.Close())
	args := map[string][]string{"ext4": {"-q", "-F"}, "xfs": {"-q"}, "btrfs": {"-q"}}[fstype]
	must(b, "mkfs."+fstype, append(args, image)...)
	must(b, "mount", "-o", "loop", image, dir)
	b.Cleanup(func() { must(b, "umount", dir) })
	return dir
}

// benchChain is a chain that is never changed: runs work on copies beside it.
type benchChain struct {
	dir   string
	least int64 // bytes that the child lacks and the parent has, by qemu-img map
	own   int64 // bytes that the child has: the least for a merge down
}

func newBenchChain(b *testing.B, dir string, p placement) *benchChain {
	b.Helper()
	rng := rand.New(rand.NewPCG(1, uint64(p.most)))
	c := &benchChain{dir: dir}
	backing := ""
	for i, layer := range []struct {
		name string
		mib  int
	}{{"full", 3 << 10}, {"parent", 1 << 10}, {"child", 256}} {
		args := []string{"create", "-q", "-f", "qcow2"}
		if backing != "" {
			args = append(args, "-b", backing, "-F", "qcow2")
		}
		c.run(b, "", "qemu-img", append(args, layer.name, "8G")...)
		var script strings.Builder
		for left := layer.mib * 16; left > 0; {
			n := min(rng.IntN(p.most)+1, left)
			fmt.Fprintf(&script, "write -q -P %d %dk %dk\n", i+1, rng.IntN(8<<14-n)*64, n*64)
			left -= n
		}
		c.run(b, script.String(), "qemu-io", "-f", "qcow2", layer.name)
		backing = layer.name
	}
	c.own, c.least = c.provided(b, 0), c.provided(b, 1)
	must(b, "sync")
	return c
}

func (c *benchChain) run(b *testing.B, stdin, name string, args ...string) string {
	b.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Stdin = c.dir, strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		b.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// provided is what qemu-img says that the child's guest reads from an image so
// deep below it.
func (c *benchChain) provided(b *testing.B, depth int) (bytes int64) {
	b.Helper()
	var extents []struct {
		Length int64
		Depth  int
		Data   bool
	}
	check(b, json.Unmarshal([]byte(c.run(b, "", "qemu-img", "map", "--output=json", "child")), &extents))
	for _, e := range extents {
		if e.Depth == depth && e.Data {
			bytes += e.Length
		}
	}
	return bytes
}

// contender is one way to remove the parent from under the child.
type contender struct {
	name string
	run  func(b *testing.B, c *benchChain) (moved int64)
}

var contenders = []contender{
	{"qemu-img rebase", func(b *testing.B, c *benchChain) int64 {
		c.run(b, "", "qemu-img", "rebase", "-f", "qcow2", "-F", "qcow2", "-b", "full", "child.run")
		return 0
	}},
	{"absorb", func(b *testing.B, c *benchChain) int64 { return c.absorb(b, false) }},
	{"absorb, verified", func(b *testing.B, c *benchChain) int64 { return c.absorb(b, true) }},
	{"merge down", func(b *testing.B, c *benchChain) int64 { return c.down(b) }},
}

func (c *benchChain) open(b *testing.B, name string) (qcow2.OSFile, *qcow2.Image) {
	b.Helper()
	f, err := os.OpenFile(filepath.Join(c.dir, name), os.O_RDWR, 0)
	check(b, err)
	b.Cleanup(func() { f.Close() })
	im, err := qcow2.Open(qcow2.OSFile{File: f})
	check(b, err)
	return qcow2.OSFile{File: f}, im
}

func (c *benchChain) absorb(b *testing.B, verify bool) int64 {
	child, _ := c.open(b, "child.run")
	_, parent := c.open(b, "parent")
	_, full := c.open(b, "full")
	r, err := qcow2.Absorb(context.Background(), qcow2.Job{
		Child: child, Away: []*qcow2.Image{parent}, Below: []*qcow2.Image{full},
		Name: "full", Format: "qcow2", Moving: qcow2.Moving{Verify: verify},
	})
	check(b, err)
	return r.Bytes()
}

func (c *benchChain) down(b *testing.B) int64 {
	parent, _ := c.open(b, "parent.run")
	_, child := c.open(b, "child.run")
	r, err := qcow2.MergeDown(context.Background(), qcow2.MergeJob{Parent: parent, Child: child})
	check(b, err)
	return r.Bytes()
}

// race lets each contender run five times, in turn, each time on fresh copies.
func (c *benchChain) race(b *testing.B, fstype string, cold bool) {
	b.Helper()
	times, moved := map[string][]time.Duration{}, map[string]int64{}
	for range 5 {
		for _, x := range contenders {
			if x.name == "merge down" && fstype != "ext4" {
				continue // never chosen where extents are shared
			}
			c.prepare(b, cold, x.name == "merge down")
			start := time.Now()
			moved[x.name] = x.run(b, c)
			times[x.name] = append(times[x.name], time.Since(start))
		}
	}
	theirs := medianOf(times["qemu-img rebase"])
	for _, x := range contenders {
		if len(times[x.name]) == 0 {
			continue
		}
		ours, least := medianOf(times[x.name]), c.least
		if x.name == "merge down" {
			least = c.own
		}
		b.Logf("%-5s %-4s %-17s %8.3f s  ratio %.3f  moved %d MiB of at least %d MiB",
			fstype, map[bool]string{true: "cold", false: "warm"}[cold], x.name, ours.Seconds(),
			float64(ours)/float64(theirs), moved[x.name]>>20, least>>20)
	}
}

func medianOf(all []time.Duration) time.Duration {
	slices.Sort(all)
	return all[len(all)/2]
}

// prepare makes copies to work on, and empties or fills the page cache.
func (c *benchChain) prepare(b *testing.B, cold, parent bool) {
	b.Helper()
	names := []string{"child"}
	if parent {
		names = append(names, "parent")
	}
	for _, name := range names {
		c.run(b, "", "cp", "--reflink=auto", name, name+".run")
	}
	must(b, "sync")
	check(b, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
	if !cold {
		c.run(b, "", "sh", "-c", "cat full parent child child.run > /dev/null")
		if parent {
			c.run(b, "", "sh", "-c", "cat parent.run > /dev/null")
		}
	}
}

// BenchmarkVirtualSize times the removal of an empty parent from an empty chain:
// what the disk's size alone costs.
func BenchmarkVirtualSize(b *testing.B) {
	for _, tib := range []int{1, 8, 64} {
		c := &benchChain{dir: b.TempDir()}
		size := fmt.Sprintf("%dT", tib)
		c.run(b, "", "qemu-img", "create", "-q", "-f", "qcow2", "full", size)
		c.run(b, "", "qemu-img", "create", "-q", "-f", "qcow2", "-b", "full", "-F", "qcow2", "parent", size)
		c.run(b, "", "qemu-img", "create", "-q", "-f", "qcow2", "-b", "parent", "-F", "qcow2", "child", size)
		times := map[string][]time.Duration{}
		for range 5 {
			for _, x := range contenders[:2] {
				c.run(b, "", "cp", "child", "child.run")
				start := time.Now()
				x.run(b, c)
				times[x.name] = append(times[x.name], time.Since(start))
			}
		}
		ours, theirs := medianOf(times["absorb"]), medianOf(times["qemu-img rebase"])
		b.Logf("%2d TiB, empty: ours %.4f s, qemu-img %.3f s, ratio %.5f", tib, ours.Seconds(), theirs.Seconds(), float64(ours)/float64(theirs))
	}
}

// BenchmarkBatch removes ten adjacent incrementals, all at once and one at a time
// from the oldest on, as "find -mtime -delete" does. Each rewrites a part of what
// the others do.
func BenchmarkBatch(b *testing.B) {
	c := &benchChain{dir: benchDisk(b, "ext4")}
	rng := rand.New(rand.NewPCG(2, 2))
	const layers = 12 // a full, ten that go away, and the child
	for i := range layers {
		args := []string{"create", "-q", "-f", "qcow2"}
		if i > 0 {
			args = append(args, "-b", fmt.Sprintf("l%d", i-1), "-F", "qcow2")
		}
		c.run(b, "", "qemu-img", append(args, fmt.Sprintf("l%d", i), "2G")...)
		var script strings.Builder
		for range 1000 {
			fmt.Fprintf(&script, "write -q -P %d %dk 64k\n", i+1, rng.IntN(2<<14)*64)
		}
		c.run(b, script.String(), "qemu-io", "-f", "qcow2", fmt.Sprintf("l%d", i))
	}
	var together, single []time.Duration
	var bytesTogether, bytesSingle int64
	for range 5 {
		bytesTogether = c.timed(b, &together, func() int64 { return c.removeTo(b, 11, 1) })
		bytesSingle = c.timed(b, &single, func() (n int64) {
			for i := 2; i <= 11; i++ {
				n += c.removeTo(b, i, i-1)
			}
			return n
		})
	}
	b.Logf("10 incrementals: at once %.3f s, %d MiB; one at a time %.3f s, %d MiB; ratio %.3f in time, %.3f in bytes",
		medianOf(together).Seconds(), bytesTogether>>20, medianOf(single).Seconds(), bytesSingle>>20,
		float64(medianOf(together))/float64(medianOf(single)), float64(bytesTogether)/float64(bytesSingle))
}

func (c *benchChain) timed(b *testing.B, times *[]time.Duration, f func() int64) int64 {
	b.Helper()
	for i := range 12 {
		c.run(b, "", "cp", fmt.Sprintf("l%d", i), fmt.Sprintf("l%d.run", i))
	}
	must(b, "sync")
	start := time.Now()
	n := f()
	*times = append(*times, time.Since(start))
	return n
}

// removeTo has image child absorb all from first on that is below it, onto l0.
func (c *benchChain) removeTo(b *testing.B, child, first int) int64 {
	b.Helper()
	f, _ := c.open(b, fmt.Sprintf("l%d.run", child))
	var away []*qcow2.Image
	for i := child - 1; i >= first; i-- {
		_, im := c.open(b, fmt.Sprintf("l%d.run", i))
		away = append(away, im)
	}
	_, full := c.open(b, "l0.run")
	r, err := qcow2.Absorb(context.Background(), qcow2.Job{
		Child: f, Away: away, Below: []*qcow2.Image{full}, Name: "l0", Format: "qcow2",
	})
	check(b, err)
	return r.Bytes()
}
