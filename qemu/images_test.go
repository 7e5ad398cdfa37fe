package qemu

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/chainfs/chainfs/chain"
)

// leak makes n clusters of 64 KiB that are counted and nobody's.
func (tr *tree) leak(p chain.Path, n int) {
	tr.t.Helper()
	b, err := os.ReadFile(tr.host(p))
	if err != nil {
		tr.t.Fatal(err)
	}
	const cluster = 64 << 10
	b = append(b, make([]byte, (len(b)+cluster-1)/cluster*cluster-len(b))...)
	block := binary.BigEndian.Uint64(b[binary.BigEndian.Uint64(b[48:]):])
	for range n {
		binary.BigEndian.PutUint16(b[int(block)+len(b)/cluster*2:], 1)
		b = append(b, make([]byte, cluster)...)
	}
	if err := os.WriteFile(tr.host(p), b, 0o644); err != nil {
		tr.t.Fatal(err)
	}
}

func TestCheckAndRepairImage(t *testing.T) {
	needQemu(t)
	tr := newTree(t)
	tr.chain()
	tr.leak("1/a", 5)
	before := tr.guest("2/b")
	images := NewImages(tr)
	found, err := images.CheckImage(t.Context(), "1/a")
	if err != nil || found.Corruptions > 0 || found.LeakedClusters != 5 || found.LeakedBytes != 5<<16 {
		t.Fatalf("got %+v, %v", found, err)
	}
	freed, err := images.RepairLeaks(t.Context(), "1/a", found.Identity)
	if err != nil || freed != 5<<16 {
		t.Errorf("got %d, %v", freed, err)
	}
	tr.qemu("qemu-img", "check", "-f", "qcow2", "1/a")
	if after := tr.guest("2/b"); after != before {
		t.Errorf("the guest reads %s, read %s", after, before)
	}
	again, err := images.CheckImage(t.Context(), "1/a")
	if err != nil || again.LeakedClusters > 0 || again.Identity == found.Identity {
		t.Errorf("afterwards: %+v, %v", again, err)
	}
	if use, err := NewLocks(tr).InUse("1/a"); err != nil || use != (chain.Use{}) {
		t.Errorf("afterwards it is used: %+v, %v", use, err)
	}
}

func TestRepairRefused(t *testing.T) {
	needQemu(t)
	for name, c := range map[string]struct {
		spoil func(tr *tree)
		want  string
	}{
		"a writer":        {func(tr *tree) { tr.open("a") }, "a is open for writing by qemu-io (process "},
		"a reader":        {func(tr *tree) { tr.open("a", "-r") }, "a is open for reading by qemu-io (process "},
		"changed":         {func(tr *tree) { tr.write("a", "5", "3M") }, chain.ErrChanged.Error()},
		"gone":            {func(tr *tree) { os.Remove(tr.host("a")) }, "no such file"},
		"a symbolic link": {func(tr *tree) { os.Rename(tr.host("a"), tr.host("b")); os.Symlink("b", tr.host("a")) }, "open a: "},
		"a directory":     {func(tr *tree) { os.Remove(tr.host("a")); os.Mkdir(tr.host("a"), 0o755) }, "not a regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			tr := newTree(t)
			tr.create("a", "")
			tr.leak("a", 2)
			images := NewImages(tr)
			found, err := images.CheckImage(t.Context(), "a")
			if err != nil {
				t.Fatal(err)
			}
			c.spoil(tr)
			before, _ := os.ReadFile(tr.host("a"))
			freed, err := images.RepairLeaks(t.Context(), "a", found.Identity)
			if err == nil || !strings.Contains(err.Error(), c.want) || freed != 0 {
				t.Errorf("got %d, %v, want %s", freed, err, c.want)
			}
			if after, _ := os.ReadFile(tr.host("a")); string(after) != string(before) {
				t.Error("it was changed")
			}
		})
	}
}

// An image that is being written cannot be judged: its tables are in qemu's memory.
func TestCheckImageInUse(t *testing.T) {
	needQemu(t)
	tr := newTree(t)
	tr.create("a", "")
	_, end := tr.open("a")
	images := NewImages(tr)
	_, err := images.CheckImage(t.Context(), "a")
	checkRefused(t, err, nil, "a is open for writing by qemu-io")
	end()
	tr.open("a", "-r")
	if _, err := images.CheckImage(t.Context(), "a"); err != nil {
		t.Errorf("with a reader: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := images.CheckImage(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
}
