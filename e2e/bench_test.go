package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The benchmarks print figures that are measured side by side in one run:
//
//	make bench

// fill makes vms*10 valid images, ten in a chain, each in a directory of its
// own. One pair of images is made by qemu-img and its bytes are used for all.
func fill(t testing.TB, tree string, vms int) {
	t.Helper()
	full, inc := template(t)
	for v := range vms {
		for i := range 10 {
			dir := filepath.Join(tree, fmt.Sprintf("i-2-%05d-VM", v), fmt.Sprintf("T%d", i))
			check(t, os.MkdirAll(dir, 0o755))
			data := full
			if i > 0 {
				data = bytes.Replace(inc, []byte("../T0/"), []byte(fmt.Sprintf("../T%d/", i-1)), 1)
			}
			writeSparse(t, filepath.Join(dir, "root.0a1b2c3d.qcow2"), data)
		}
	}
}

func template(t testing.TB) (full, inc []byte) {
	t.Helper()
	dir := t.TempDir()
	check(t, os.MkdirAll(dir+"/T0", 0o755))
	check(t, os.MkdirAll(dir+"/T1", 0o755))
	const name = "root.0a1b2c3d.qcow2"
	must(t, "qemu-img", "create", "-q", "-f", "qcow2", dir+"/T0/"+name, "10G")
	must(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "../T0/"+name, "-F", "qcow2", dir+"/T1/"+name)
	full, err := os.ReadFile(dir + "/T0/" + name)
	check(t, err)
	inc, err = os.ReadFile(dir + "/T1/" + name)
	check(t, err)
	if n := binary.BigEndian.Uint32(inc[16:]); string(inc[binary.BigEndian.Uint64(inc[8:]):][:n]) != "../T0/"+name {
		t.Fatalf("the template's backing name is not where the specification puts it")
	}
	return full, inc
}

func writeSparse(t testing.TB, name string, data []byte) {
	t.Helper()
	f, err := os.Create(name)
	check(t, err)
	zero := make([]byte, 4096)
	for off := 0; off < len(data); off += len(zero) {
		if piece := data[off:min(off+len(zero), len(data))]; !bytes.Equal(piece, zero[:len(piece)]) {
			_, err := f.WriteAt(piece, int64(off))
			check(t, err)
		}
	}
	check(t, f.Truncate(int64(len(data))))
	check(t, f.Close())
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func must(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

func timed(t testing.TB, name string, args ...string) time.Duration {
	t.Helper()
	start := time.Now()
	must(t, name, args...)
	return time.Since(start)
}

func median(ds []time.Duration) time.Duration {
	slices.Sort(ds)
	return ds[len(ds)/2]
}

func dropCaches(t testing.TB) {
	t.Helper()
	unix.Sync()
	check(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
}

// BenchmarkScan is the rate at which the headers of 10,000 images are read and
// indexed, against a walk of the same tree by find, which only reads times and
// sizes. Medians of five; each time is that of a whole process.
func BenchmarkScan(b *testing.B) {
	const images = 10000
	tree := b.TempDir()
	fill(b, tree, images/10)
	time.Sleep(3 * time.Second) // headers of files younger than this are read twice
	var cold, first, warm, find, findCold []time.Duration
	for i := range 5 {
		store := filepath.Join(b.TempDir(), strconv.Itoa(i))
		dropCaches(b)
		findCold = append(findCold, timed(b, "find", tree, "-size", "+1k", "-newermt", "2000-01-01", "-path", "nothing"))
		dropCaches(b)
		cold = append(cold, timed(b, chainfs, "scan", "--store", store+"c", tree))
		first = append(first, timed(b, chainfs, "scan", "--store", store+"f", tree))
		warm = append(warm, timed(b, chainfs, "scan", "--store", store+"f", tree))
		find = append(find, timed(b, "find", tree, "-size", "+1k", "-newermt", "2000-01-01", "-path", "nothing"))
	}
	rate := func(ds []time.Duration) float64 { return images / median(ds).Seconds() }
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(rate(cold), "headers/s(cold-disk)")
	b.ReportMetric(rate(first), "headers/s(cached)")
	b.ReportMetric(rate(warm), "images/s(unchanged)")
	b.ReportMetric(float64(median(cold))/float64(median(findCold)), "cold/find")
	b.ReportMetric(float64(median(warm))/float64(median(find)), "unchanged/find")
}

// BenchmarkUnlinkTail is the latency of unlinking a tail through the mount
// against unlinking a file in the plain directory, in turns, in a tree of the
// given number of images: every one of them is looked at before the unlink.
func BenchmarkUnlinkTail(b *testing.B) {
	for _, images := range []int{100, 1000, 10000} {
		b.Run(fmt.Sprint(images), func(b *testing.B) { benchUnlink(b, images) })
	}
}

func benchUnlink(b *testing.B, images int) {
	s := &site{tree: b.TempDir(), mnt: b.TempDir(), store: b.TempDir()}
	fill(b, s.tree, images/10)
	plain := b.TempDir()
	fill(b, plain, images/10)
	time.Sleep(3 * time.Second)
	must(b, chainfs, "mount", "--store", s.store, s.tree, s.mnt)
	defer must(b, chainfs, "umount", s.mnt)
	var ours, theirs []time.Duration
	for v := range min(images/10, 50) {
		tail := fmt.Sprintf("i-2-%05d-VM/T9/root.0a1b2c3d.qcow2", v)
		start := time.Now()
		check(b, unix.Unlink(filepath.Join(s.mnt, tail)))
		ours = append(ours, time.Since(start))
		start = time.Now()
		check(b, unix.Unlink(filepath.Join(plain, tail)))
		theirs = append(theirs, time.Since(start))
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(ours).Seconds()*1e3, "ms/unlink(mount)")
	b.ReportMetric(median(theirs).Seconds()*1e3, "ms/unlink(plain)")
	b.ReportMetric(float64(median(ours))/float64(median(theirs)), "ratio")
}

// BenchmarkIdleMemory is the resident memory of a daemon that has nothing to do
// and 100,000 images in its index; the aim is less than 100 MiB.
func BenchmarkIdleMemory(b *testing.B) {
	s := &site{tree: b.TempDir(), mnt: b.TempDir(), store: b.TempDir()}
	fill(b, s.tree, 10000)
	must(b, chainfs, "mount", "--store", s.store, s.tree, s.mnt)
	after := residentMiB(b, s.pid())
	must(b, chainfs, "umount", s.mnt)
	must(b, chainfs, "mount", "--store", s.store, s.tree, s.mnt)
	defer must(b, chainfs, "umount", s.mnt)
	time.Sleep(10 * time.Second)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(after, "MiB(after-first-scan)")
	b.ReportMetric(residentMiB(b, s.pid()), "MiB(idle)")
}

func residentMiB(t testing.TB, pid int) float64 {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	check(t, err)
	for _, line := range strings.Split(string(data), "\n") {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			kib, err := strconv.ParseFloat(f[1], 64)
			check(t, err)
			return kib / 1024
		}
	}
	t.Fatalf("process %d has no VmRSS", pid)
	return 0
}
