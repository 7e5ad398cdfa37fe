package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
	"testing"
)

// A refcount block that is named by one sector of the refcount table may be counted
// in a block that another sector names: wherever the power goes, none is in use and
// not counted.
func TestPowerCutsInRefcountTable(t *testing.T) {
	d := newImageDir(t)
	// A table of 64 entries is full at 2 MiB; QEMU has made a longer one here.
	d.run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "full", "12M")
	d.io("full", "write -s p0 0 600k", "write -s p1 11M 800k")
	d.createOn("full", "child", "cluster_size=512,refcount_bits=64", "12M")
	d.io("child", "write -s p2 4M 5M")
	start, parent := contentOf(d.read("child")), contentOf(d.read("full"))
	guest := d.raw("child")

	disk := newCrashDisk(start)
	count := [2]int{}
	step := func(label string) {
		switch label {
		case "ABSORB:COUNT":
			count[0] = len(disk.events)
		case "ABSORB:VERIFY":
			count[1] = len(disk.events)
		}
	}
	away, err := Open(parent)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Absorb(context.Background(), Job{Child: disk, Away: []*Image{away}, Moving: Moving{Step: step}}); err != nil {
		t.Fatal(err)
	}
	h, err := ReadHeader(disk, disk.now.size)
	if err != nil {
		t.Fatal(err)
	}
	table := make([]byte, int64(h.RefcountTableClusters)<<h.ClusterBits)
	if _, err := start.ReadAt(table, int64(h.RefcountTableOffset)); err != nil || binary.BigEndian.Uint64(table) == 0 {
		t.Fatalf("the table is new, so that the header names it in one write: %v", err)
	}

	at := start.clone()
	for _, e := range disk.events[:count[0]] {
		e.apply(at)
	}
	pending := []diskEvent{}
	sectors := 0
	look := func(about string, left *content) {
		if _, err := checked(left); err != nil {
			t.Errorf("%s: %v", about, err)
		} else if err := sees(guest, testLayer{src: left}, testLayer{src: parent}); err != nil {
			t.Errorf("%s: %v", about, err)
		}
	}
	for _, e := range append(disk.events[count[0]:count[1]:count[1]], diskEvent{kind: eventSync}) {
		if e.kind != eventSync {
			pending, sectors = append(pending, e), sectors+(len(e.data)+tornSector-1)/tornSector
			continue
		}
		whole := diskEvent{}
		for _, p := range pending {
			whole.data = append(whole.data, p.data...)
		}
		// Each subset of one sector, and of all but one.
		for n := range (len(whole.data) + tornSector - 1) / tornSector {
			for _, only := range []bool{true, false} {
				left, i := at.clone(), 0
				for _, p := range pending {
					p.tear(left, func() bool { i++; return (i-1 == n) == only })
				}
				look(fmt.Sprintf("sector %d, only it: %v", n, only), left)
			}
		}
		for _, p := range pending {
			p.apply(at)
		}
		pending = nil
	}
	if sectors < 2 {
		t.Fatalf("%d sectors of the table were written: too few to be torn", sectors)
	}
}
