package qcow2

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestSmokeMerge(t *testing.T) {
	for _, o := range []string{"cluster_size=64k", "cluster_size=512", "cluster_size=4k,refcount_bits=64", "cluster_size=4k,refcount_bits=1", "cluster_size=64k,extended_l2=on", "cluster_size=2M", "compat=0.10,cluster_size=1k", "cluster_size=64k,compression_type=zstd"} {
		t.Run(o, func(t *testing.T) { smokeMerge(t, o) })
	}
}

func smokeMerge(t *testing.T, o string) {
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
	run("qemu-img", "create", "-q", "-f", "qcow2", "-o", o, "full", "16M")
	run("qemu-io", "-c", "write -P 1 0 8M", "full")
	run("qemu-img", "create", "-q", "-f", "qcow2", "-o", o, "-b", "full", "-F", "qcow2", "a", "14M")
	io := []string{"qemu-io", "-c", "write -P 2 1M 1M", "-c", "write -P 3 5000k 300k", "-c", "write -z 7M 1M", "-c", "write -P 9 300k 2k", "-c", "write -z 9M 64k", "a"}
	if o != "cluster_size=2M" {
		io = append(io, "-c", "write -c -P 7 6M 64k", "-c", "write -c -P 8 6400k 64k", "-c", "write -c -P 8 10M 64k")
	}
	run(io...)
	run("qemu-img", "create", "-q", "-f", "qcow2", "-o", o, "-b", "a", "-F", "qcow2", "b", "14M")
	io = []string{"qemu-io", "-c", "write -P 4 1500k 100k", "-c", "write -P 5 5100k 3k", "-c", "write -z 6M 30k", "-c", "write -z 1200k 100k", "-c", "write -P 4 11M 1M", "-c", "write -P 4 10M 2k", "b"}
	if o != "cluster_size=2M" {
		io = append(io, "-c", "write -c -P 7 12M 64k", "-c", "write -c -P 8 6400k 64k", "-c", "write -c -P 8 1M 64k")
	}
	run(io...)
	run("qemu-img", "convert", "-O", "raw", "b", "before")
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
	a, b := open("a"), open("b")
	for range 2 {
		r, err := MergeDown(context.Background(), MergeJob{Parent: a.src.(OSFile), Child: b, Moving: Moving{Verify: true}})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%+v", r)
		t.Logf("%s", run("qemu-img", "check", "a"))
		run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", "before", "a")
		run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", "before", "b")
	}
}
