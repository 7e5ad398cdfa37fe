package qcow2

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// The last cluster of a parent may be cut off by the end of its file. What it lacks
// reads as zeros, also where the child has a cluster with something else in it.
func TestAbsorbOfCutOffParentIntoStaleCluster(t *testing.T) {
	d := newImageDir(t)
	d.createOn("", "parent", "", "64k")
	d.io("parent", "write -P 7 0 32k")
	d.createOn("parent", "child", "extended_l2=on,preallocation=metadata", "64k")
	parent := d.read("parent")
	parent = parent[:int(fileHost(parent))+32<<10]
	d.write("parent", parent)
	child := d.read("child")
	host := int(fileHost(child))
	child = append(child, make([]byte, max(host+64<<10-len(child), 0))...)
	copy(child[host:], bytes.Repeat([]byte{0xee}, 64<<10))
	d.write("child", child)
	guest := d.raw("child")

	disk := newCrashDisk(contentOf(child))
	if err := engineAbsorb(testJob{child: disk, away: []testLayer{{src: contentOf(parent)}}}); err != nil {
		t.Fatal(err)
	}
	if err := sees(guest, testLayer{src: disk.durable}); err != nil {
		t.Error(err)
	}
}

// fileHost is where the first cluster of an image's disk lies.
func fileHost(b []byte) uint64 {
	be := binary.BigEndian
	return be.Uint64(b[be.Uint64(b[be.Uint64(b[40:]):])&offsetMask:]) & offsetMask
}
