package qcow2

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"
)

// What MergeDown would refuse by the parent's tables is refused when it is measured:
// later the parent's name may be gone.
func TestMeasureDownLooksAtTables(t *testing.T) {
	for name, shared := range map[string]uint16{"shared": 2, "damaged": 1} {
		t.Run(name, func(t *testing.T) {
			d := newImageDir(t)
			d.createOn("", "l1", "cluster_size=4k", "1M")
			d.io("l1", "write -P 3 0 64k")
			d.createOn("l1", "child", "cluster_size=4k", "1M")
			d.io("child", "write -z 4k 4k", "write -P 9 12k 4k")
			p := d.read("l1")
			be := binary.BigEndian
			l2 := be.Uint64(p[be.Uint64(p[40:]):]) & offsetMask
			first, second := be.Uint64(p[l2:])&offsetMask, be.Uint64(p[l2+8:])&offsetMask
			be.PutUint64(p[l2:], first)
			be.PutUint64(p[l2+8:], first)
			counts := be.Uint64(p[be.Uint64(p[48:]):])
			be.PutUint16(p[counts+first/4096*2:], shared)
			be.PutUint16(p[counts+second/4096*2:], 0)

			parent, err := Open(contentOf(p))
			if err != nil {
				t.Fatal(err)
			}
			child, err := Open(contentOf(d.read("child")))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := MeasureDown(context.Background(), parent, child); !errors.Is(err, ErrFallback) {
				t.Errorf("got error %v", err)
			}
			disk := newCrashDisk(contentOf(p))
			if _, err := MergeDown(context.Background(), MergeJob{Parent: disk, Child: child}); err == nil {
				t.Error("it was merged")
			}
			if len(disk.events) > 1 { // Reclaim has synced, at most
				t.Errorf("%d changes were made", len(disk.events))
			}
		})
	}
}
