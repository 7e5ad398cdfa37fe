package qcow2

import (
	"context"
	"errors"
	"os"
	"testing"
)

// What was linked when an absorb is cancelled is not moved again.
func TestCancelledAbsorbGoesOn(t *testing.T) {
	d := newImageDir(t)
	d.run("qemu-img", "create", "-q", "-f", "qcow2", "parent", "8M")
	d.io("parent", "write -P 7 0 6M")
	d.createOn("parent", "child", "", "8M")
	before := d.raw("child")
	absorb := func(ctx context.Context, step func(string)) Result {
		t.Helper()
		f, err := os.OpenFile(d.path("child"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		r, err := os.Open(d.path("parent"))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		parent, err := Open(OSFile{r})
		if err != nil {
			t.Fatal(err)
		}
		got, err := Absorb(ctx, Job{
			Child: OSFile{f}, Away: []*Image{parent},
			Moving: Moving{Step: step, batch: 1 << 20},
		})
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		return got
	}
	ctx, cancel := context.WithCancel(context.Background())
	stores := 0
	absorb(ctx, func(label string) {
		if label == "ABSORB:STORE" {
			if stores++; stores == 5 {
				cancel()
			}
		}
	})
	if now := d.raw("child"); string(now) != string(before) {
		t.Errorf("the child reads differently after it was cancelled")
	}
	const moved = 4 << 20
	if left := absorb(context.Background(), nil).Work.Bytes(); left != 6<<20-moved {
		t.Errorf("%d bytes were left to be moved, want %d", left, 6<<20-moved)
	}
	d.run("qemu-img", "check", "-q", "-f", "qcow2", "child")
	if now := d.raw("child"); string(now) != string(before) {
		t.Errorf("the child reads differently afterwards")
	}
}
