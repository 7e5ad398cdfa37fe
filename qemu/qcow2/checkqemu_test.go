package qcow2

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// What QEMU makes with snapshots and bitmaps, whose tables are shared or lie
// beside each other, is sound.
func TestCheckAcceptsSnapshotsAndBitmaps(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("needs qemu-img: ", err)
	}
	for _, options := range []string{"cluster_size=512", "cluster_size=4k,refcount_bits=64", "cluster_size=64k,extended_l2=on", "cluster_size=2M"} {
		name := filepath.Join(t.TempDir(), "x")
		for _, args := range [][]string{
			{"qemu-img", "create", "-q", "-f", "qcow2", "-o", options, name, "64M"},
			{"qemu-io", "-f", "qcow2", "-c", "write -P 1 0 3M", "-c", "write -z 20M 1M", name},
			{"qemu-img", "snapshot", "-c", "one", name},
			{"qemu-img", "bitmap", "--add", "-f", "qcow2", name, "b0"},
			{"qemu-img", "bitmap", "--add", "-g", "512", "-f", "qcow2", name, "b1"},
			{"qemu-io", "-f", "qcow2", "-c", "write -P 2 1M 1M", "-c", "write -c -P 3 40M 4M", name},
			{"qemu-img", "snapshot", "-c", "two", name},
			{"qemu-io", "-f", "qcow2", "-c", "write -P 4 1500k 100k", "-c", "write -P 4 41M 1k", name},
			{"qemu-img", "check", "-q", "-f", "qcow2", name},
		} {
			if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%q: %v\n%s", args, err, out)
			}
		}
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		found, err := Check(context.Background(), OSFile{f})
		if err != nil || found.CorruptionCount > 0 || found.LeakedClusters > 0 {
			t.Errorf("%s: got %+v, %v", options, found, err)
		}
	}
}
