package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/chainfs/chainfs/chain"
)

// BenchmarkUnlinkDuringMerges is the latency of an unlink that condemns: with no
// merge running, while eight run, and of an unlink in a plain directory, in turns.
func BenchmarkUnlinkDuringMerges(b *testing.B) {
	const merges, unlinks = 8, 40
	s := &site{t: b, tree: b.TempDir(), mnt: b.TempDir(), store: b.TempDir()}
	plain := b.TempDir()
	for i := range 2 * unlinks {
		small(b, s.tree, i, 1)
		check(b, os.WriteFile(fmt.Sprintf("%s/%d", plain, i), []byte("x"), 0o644))
	}
	for i := range merges {
		small(b, s.tree, 1000+i, 60)
	}
	options := []string{"--store", s.store, "--inline-limit", "0", "--settle", "1h", "--workers", fmt.Sprint(merges), "--limit-rate", "4M"}
	must(b, chainfs, append(append([]string{"mount"}, options...), s.tree, s.mnt)...)
	b.Cleanup(s.kill)
	unlinked := func(from int) (ours, theirs []time.Duration) {
		for i := from; i < from+unlinks; i++ {
			ours = append(ours, tookUnlink(b, fmt.Sprintf("%s/%d/T1.qcow2", s.mnt, i)))
			theirs = append(theirs, tookUnlink(b, fmt.Sprintf("%s/%d", plain, i)))
		}
		return ours, theirs
	}
	alone, theirs := unlinked(0)
	for i := range merges {
		check(b, os.Remove(fmt.Sprintf("%s/%d/T1.qcow2", s.mnt, 1000+i)))
	}
	s.begin("1000", merges)
	during, theirs2 := unlinked(unlinks)
	if n := s.running(); n != merges {
		b.Fatalf("%d merges run, want %d", n, merges)
	}
	report := func(name string, took []time.Duration) {
		b.ReportMetric(median(took).Seconds()*1e3, "ms/median("+name+")")
		b.ReportMetric(slices.Max(took).Seconds()*1e3, "ms/max("+name+")")
	}
	b.ReportMetric(0, "ns/op")
	report("alone", alone)
	report("8-merges", during)
	report("plain", append(theirs, theirs2...))
	b.ReportMetric(float64(median(during))/float64(median(alone)), "8-merges/alone")
}

// small is a chain of three whose middle has so many MiB, and its child none.
func small(b *testing.B, tree string, n, mib int) {
	b.Helper()
	dir := fmt.Sprintf("%s/%d", tree, n)
	check(b, os.Mkdir(dir, 0o755))
	must(b, "qemu-img", "create", "-q", "-f", "qcow2", dir+"/T0.qcow2", "64M")
	must(b, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "T0.qcow2", "-F", "qcow2", dir+"/T1.qcow2", "64M")
	must(b, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -q 0 %dM", mib), dir+"/T1.qcow2")
	must(b, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "T1.qcow2", "-F", "qcow2", dir+"/T2.qcow2", "65M")
}

func tookUnlink(b *testing.B, file string) time.Duration {
	b.Helper()
	start := time.Now()
	check(b, os.Remove(file))
	return time.Since(start)
}

// begin has the merges of so many chains begin, those in directories from first on,
// and returns when all run.
func (s *site) begin(first string, merges int) {
	s.t.Helper()
	for _, p := range s.ops().Pending {
		if filepath.Dir(string(p.Paths[0])) >= first && len(filepath.Dir(string(p.Paths[0]))) == len(first) {
			must(s.t, chainfs, "ops", "retry", p.Op.String(), s.mnt)
		}
	}
	for range 500 {
		if s.running() == merges {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	s.t.Fatal("the merges do not begin")
}

func (s *site) running() (n int) {
	s.t.Helper()
	for _, p := range s.ops().Running {
		if p.Act == chain.ActReclaim {
			n++
		}
	}
	return n
}

// BenchmarkBatchLater removes ten adjacent incrementals of overlapping data, the
// oldest first: each as it is unlinked, and all of them later, as one.
func BenchmarkBatchLater(b *testing.B) {
	var copied [2]int64
	var took [2]time.Duration
	for i, limit := range []string{"all", "0"} {
		s := &site{t: b, tree: b.TempDir(), mnt: b.TempDir(), store: b.TempDir()}
		overlapping(b, s.tree)
		b.Cleanup(s.kill)
		must(b, chainfs, "mount", "--store", s.store, "--inline-limit", limit, "--settle", "300ms", s.tree, s.mnt)
		start := time.Now()
		for n := 1; n <= 10; n++ {
			check(b, os.Remove(fmt.Sprintf("%s/l%d", s.mnt, n)))
		}
		must(b, chainfs, "wait", s.mnt)
		took[i], copied[i] = time.Since(start), s.copied()
		must(b, chainfs, "umount", s.mnt)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(copied[0]>>20), "MiB(one-by-one)")
	b.ReportMetric(float64(copied[1]>>20), "MiB(batch)")
	b.ReportMetric(float64(copied[1])/float64(copied[0]), "batch/one-by-one(bytes)")
	b.ReportMetric(float64(took[1])/float64(took[0]), "batch/one-by-one(time)")
}

// overlapping is a full, ten layers that rewrite parts of one another, and a child.
// The disks grow, so that each child must absorb.
func overlapping(b *testing.B, dir string) {
	b.Helper()
	rng := rand.New(rand.NewPCG(3, 3))
	for i := range 12 {
		name := fmt.Sprintf("%s/l%d", dir, i)
		args := []string{"create", "-q", "-f", "qcow2"}
		if i > 0 {
			args = append(args, "-b", fmt.Sprintf("l%d", i-1), "-F", "qcow2")
		}
		must(b, "qemu-img", append(args, name, fmt.Sprintf("%dM", 256+i))...)
		args = []string{"-f", "qcow2"}
		for range 400 {
			args = append(args, "-c", fmt.Sprintf("write -q -P %d %dk 64k", i+1, rng.IntN(4096)*64))
		}
		must(b, "qemu-io", append(args, name)...)
	}
}
