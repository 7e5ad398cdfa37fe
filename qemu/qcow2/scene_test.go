package qcow2

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// scene is a small chain full <- a1 <- ... <- child, in memory, made by qemu-img.
type scene struct {
	name   string
	child  []byte
	layers [][]byte // below the child, its parent first
	away   int      // how many go away
	want   []byte   // what the guest reads
	about  string   // what was done to it last, for messages
}

// kinds of scene: options of the child, of the parents, the disk's size.
var sceneKinds = []struct {
	name, child, parents string
	size                 int64
	away                 int
}{
	{"512", "cluster_size=512", "cluster_size=512", 256 << 10, 1},
	{"4k", "cluster_size=4k", "cluster_size=4k", 1 << 20, 1},
	{"4k two away", "cluster_size=4k", "cluster_size=4k", 1 << 20, 2},
	{"64k", "", "", 4 << 20, 1},
	{"2M", "cluster_size=2M", "cluster_size=2M", 8 << 20, 1},
	{"64k over 4k", "", "cluster_size=4k", 2 << 20, 1},
	{"4k over 64k", "cluster_size=4k", "", 2 << 20, 1},
	{"extended", "extended_l2=on,cluster_size=16k", "extended_l2=on,cluster_size=16k", 1 << 20, 1},
	{"extended over plain", "extended_l2=on,cluster_size=64k", "cluster_size=4k", 2 << 20, 1},
	{"version 2", "compat=0.10,cluster_size=4k", "cluster_size=4k", 1 << 20, 1},
	{"refcounts of a bit", "refcount_bits=1,cluster_size=4k", "cluster_size=4k", 1 << 20, 1},
	// A table of one cluster with 64 entries of 64 counts: 2 MiB fill it.
	{"refcount table grows", "refcount_bits=64,cluster_size=512", "cluster_size=512", 4 << 20, 1},
	{"zstd", "compression_type=zstd,cluster_size=4k", "compression_type=zstd,cluster_size=4k", 1 << 20, 1},
	{"zlib under zstd", "compression_type=zstd,cluster_size=4k", "cluster_size=4k", 1 << 20, 1},
	{"onto nothing", "cluster_size=4k", "cluster_size=4k", 1 << 20, 3},
}

// scenes makes one scene of each kind.
func scenes(t testing.TB, rng *rand.Rand) []scene {
	t.Helper()
	needQemuImg(t)
	var all []scene
	for _, k := range sceneKinds {
		s := scene{name: k.name, away: k.away}
		dir := quickDir(t)
		s.make(t, dir, "l0", "", k.parents, k.size, rng)
		s.make(t, dir, "l1", "l0", k.parents, k.size-32<<10, rng) // shorter than those above
		s.make(t, dir, "l2", "l1", k.parents, k.size, rng)
		s.make(t, dir, "child", "l2", k.child, k.size, rng)
		for _, name := range []string{"l2", "l1", "l0"} {
			s.layers = append(s.layers, readFile(t, filepath.Join(dir, name)))
		}
		s.child = readFile(t, filepath.Join(dir, "child"))
		runIn(t, dir, "qemu-img", "convert", "-O", "raw", "child", "raw")
		s.want = readFile(t, filepath.Join(dir, "raw"))
		all = append(all, s)
	}
	return all
}

// make makes one layer with random writes of all kinds.
func (s *scene) make(t testing.TB, dir, name, backing, opts string, size int64, rng *rand.Rand) {
	t.Helper()
	args := []string{"create", "-q", "-f", "qcow2"}
	if opts != "" {
		args = append(args, "-o", opts)
	}
	if backing != "" {
		args = append(args, "-b", backing, "-F", "qcow2")
	}
	runIn(t, dir, "qemu-img", append(args, name, fmt.Sprint(size))...)
	var writes []string
	share := 3
	if backing == "" {
		share = 1
	}
	// Compressed first, each to its own place: over what is there already qemu
	// writes nothing compressed.
	if opts != "cluster_size=2M" {
		for _, n := range rng.Perm(int(size / (64 << 10)))[:2] {
			writes = append(writes, "-c", fmt.Sprintf("write -c -P %d %d 64k", rng.IntN(255)+1, n*64<<10))
		}
	}
	for range 12 {
		n := (rng.Int64N(size/int64(8*share)/512) + 1) * 512
		off := rng.Int64N((size-n)/512+1) * 512
		verb := fmt.Sprintf("write -P %d", rng.IntN(255)+1)
		if rng.IntN(6) == 0 && !strings.Contains(opts, "compat=0.10") {
			verb = "write -z"
		}
		writes = append(writes, "-c", fmt.Sprintf("%s %d %d", verb, off, min(n, size-off)))
	}
	runIn(t, dir, "qemu-io", append(append([]string{"-f", "qcow2"}, writes...), name)...)
}

func runIn(t testing.TB, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func needQemuImg(t testing.TB) {
	t.Helper()
	for _, program := range []string{"qemu-img", "qemu-io"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip("needs real images: ", err)
		}
	}
}

// below opens the layers from the i-th on.
func (s *scene) below(t testing.TB, i int) []*Image {
	t.Helper()
	var all []*Image
	for _, b := range s.layers[i:] {
		im, err := Open(&disk{data: b})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, im)
	}
	return all
}

// job is the absorb of the scene on a disk.
func (s *scene) job(t testing.TB, d *disk, verify bool) Job {
	t.Helper()
	layers := s.below(t, 0)
	j := Job{Child: d, Away: layers[:s.away], Below: layers[s.away:], Moving: Moving{Verify: verify}}
	if len(j.Below) > 0 {
		j.Name, j.Format = s.newName(), "qcow2"
	}
	return j
}

func (s *scene) newName() string {
	if s.away == len(s.layers) {
		return ""
	}
	return fmt.Sprintf("l%d", len(s.layers)-1-s.away)
}

// reads compares what the child's guest reads, through whatever parent its header
// names, and reports whether that is the new one.
func (s *scene) reads(t testing.TB, data []byte) (done bool) {
	t.Helper()
	child, err := Open(&disk{data: data})
	if err != nil {
		t.Fatalf("%s: the child cannot be opened: %v", s.name, err)
	}
	first := 0
	switch child.header.BackingName {
	case s.newName():
		done, first = true, s.away
	case "l2":
	default:
		t.Fatalf("%s: the child names %q", s.name, child.header.BackingName)
	}
	got := make([]byte, child.virtual)
	chain := NewChain(append([]*Image{child}, s.below(t, first)...)...)
	if _, err := chain.ReadAt(got, 0); err != nil {
		t.Fatalf("%s: %v %s", s.name, err, s.about)
	}
	if !bytes.Equal(got, s.want) {
		t.Fatalf("%s: the guest reads something else (new parent: %v) %s", s.name, done, s.about)
	}
	return done
}

// sound checks the child's metadata, and its leaks where there may be none.
func (s *scene) sound(t testing.TB, data []byte, leaks bool) {
	t.Helper()
	f, err := Check(context.Background(), &disk{data: data})
	if err != nil {
		t.Fatalf("%s: %v %s", s.name, err, s.about)
	}
	if f.CorruptionCount > 0 {
		t.Fatalf("%s: %q (%s)", s.name, f.Corruptions, s.about)
	}
	if !leaks && f.LeakedClusters > 0 {
		t.Fatalf("%s: %d leaked clusters (%s)", s.name, f.LeakedClusters, s.about)
	}
}
