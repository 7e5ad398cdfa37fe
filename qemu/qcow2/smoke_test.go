package qcow2

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestSmoke(t *testing.T) {
	for _, o := range []string{"cluster_size=64k", "cluster_size=512", "cluster_size=4k,refcount_bits=64", "cluster_size=4k,refcount_bits=1", "cluster_size=64k,extended_l2=on", "cluster_size=2M", "compat=0.10,cluster_size=1k", "cluster_size=64k,compression_type=zstd"} {
		for _, po := range []string{"cluster_size=64k", o, "cluster_size=4k", "cluster_size=64k,compression_type=zstd"} {
			t.Run(o+" over "+po, func(t *testing.T) { smoke(t, o, po) })
		}
	}
}

func smoke(t *testing.T, o, po string) {
	dir := t.TempDir()
	run := func(args ...string) []byte {
		t.Helper()
		c := exec.Command(args[0], args[1:]...)
		c.Dir = dir
		out, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("%q: %v %s", args, err, out)
		}
		return out
	}
	run("qemu-img", "create", "-q", "-f", "qcow2", "-o", po, "full", "16M")
	run("qemu-io", "-c", "write -P 1 0 8M", "full")
	run("qemu-img", "create", "-q", "-f", "qcow2", "-o", po, "-b", "full", "-F", "qcow2", "a", "12M")
	run("qemu-io", "-c", "write -P 2 1M 1M", "-c", "write -P 3 5000k 300k", "-c", "write -z 7M 1M", "-c", "write -P 9 300k 2k", "a")
	if po != "cluster_size=2M" {
		run("qemu-io", "-c", "write -c -P 7 6M 64k", "-c", "write -c -P 8 6400k 64k", "a")
	}
	run("qemu-img", "create", "-q", "-f", "qcow2", "-o", o, "-b", "a", "-F", "qcow2", "b", "14M")
	run("qemu-io", "-c", "write -P 4 1500k 100k", "-c", "write -P 5 5100k 3k", "b")
	run("qemu-img", "convert", "-O", "raw", "b", "before")
	before, _ := os.ReadFile(filepath.Join(dir, "before"))
	open := func(n string) *Image {
		f, err := os.OpenFile(filepath.Join(dir, n), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		im, err := Open(OSFile{f})
		if err != nil {
			t.Fatal(err)
		}
		return im
	}
	full, a, b := open("full"), open("a"), open("b")
	got := make([]byte, b.VirtualSize())
	if _, err := NewChain(b, a, full).ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, before) {
		t.Fatal("reads differently")
	}
	r, err := Absorb(context.Background(), Job{Child: b.src.(OSFile), Away: []*Image{a}, Below: []*Image{full}, Name: "full", Format: "qcow2", Moving: Moving{Verify: true}})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("%+v\n", r)
	os.Rename(filepath.Join(dir, "a"), filepath.Join(dir, "gone"))
	t.Logf("%s", run("qemu-img", "check", "b"))
	run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", "before", "b")
	f, err := Check(context.Background(), b.src)
	if err != nil || f.CorruptionCount+int(f.LeakedClusters) > 0 {
		t.Fatal(f, err)
	}
}
