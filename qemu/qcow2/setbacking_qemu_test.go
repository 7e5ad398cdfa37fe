package qcow2

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// pathOf is a path of n bytes to the file p or pp, which are both the parent.
func pathOf(n int) string {
	if n == 0 {
		return ""
	}
	return strings.Repeat("./", (n-1)/2) + strings.Repeat("p", 2-n%2)
}

// After every change QEMU must say the new parent and find nothing wrong.
func TestSetBackingAgreesWithQemuImg(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("needs qemu-img as the oracle: ", err)
	}
	type image struct {
		name    string
		args    []string
		bitmap  bool
		unknown int  // bytes of an unknown extension
		room    bool // for every name
	}
	var images []image
	for size, large := range map[string]bool{"512": false, "1k": false, "2k": false, "4k": true, "64k": true, "2M": true} {
		v2, v3 := "compat=0.10,cluster_size="+size, "compat=1.1,cluster_size="+size
		images = append(images,
			image{"v2 " + size, []string{"-o", v2}, false, 0, large},
			image{"v3 " + size, []string{"-o", v3}, false, 0, large},
			image{"unknown v2 " + size, []string{"-o", v2}, false, 20, large},
			image{"unknown v3 " + size, []string{"-o", v3}, false, 77, large},
			image{"bitmap " + size, []string{"-o", v3}, true, 0, large})
	}
	images = append(images,
		image{"extended L2", []string{"-o", "extended_l2=on,cluster_size=16k"}, false, 0, true},
		image{"extended L2, bitmap, unknown", []string{"-o", "extended_l2=on"}, true, 5, true},
		image{"zstd, lazy", []string{"-o", "compression_type=zstd,lazy_refcounts=on"}, false, 0, true})
	for _, c := range images {
		t.Run(c.name, func(t *testing.T) {
			q := qemuDir{t: t, dir: t.TempDir()}
			q.run("create", "-q", "-f", "qcow2", "p", "1M")
			q.run("create", "-q", "-f", "qcow2", "pp", "1M")
			q.run(append(append([]string{"create", "-q", "-f", "qcow2"}, c.args...), "x", "1M")...)
			if c.bitmap {
				q.run("bitmap", "--add", "-f", "qcow2", "x", "b0")
			}
			if c.unknown > 0 {
				q.insertUnknown(c.unknown)
			}
			// Beside the features' names and one more extension a format has no room.
			q.change(Backing{pathOf(40), "raw"}, c.room && !c.bitmap && c.unknown == 0)
			q.run("rebase", "-u", "-f", "qcow2", "-b", "p", "-F", "qcow2", "x")
			for _, b := range []Backing{
				{pathOf(2), "qcow2"}, {pathOf(1), "raw"}, {pathOf(300), "raw"}, {pathOf(301), "qcow2"},
				{pathOf(1023), "qcow2"}, {pathOf(1022), "raw"}, {pathOf(1022), "qcow2"}, {pathOf(9), "raw"},
				{}, {pathOf(40), "qcow2"}, {pathOf(600), "qcow2"}, {},
			} {
				q.change(b, c.room)
			}
		})
	}
}

// qemuDir has the image x.
type qemuDir struct {
	t   *testing.T
	dir string
}

func (q qemuDir) run(args ...string) []byte {
	q.t.Helper()
	cmd := exec.Command("qemu-img", args...)
	cmd.Dir = q.dir
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		q.t.Fatalf("qemu-img %q: %v\n%s%s", args, err, out, &stderr)
	}
	return out
}

func (q qemuDir) open() (OSFile, *Header) {
	q.t.Helper()
	f, err := os.OpenFile(filepath.Join(q.dir, "x"), os.O_RDWR, 0)
	if err != nil {
		q.t.Fatal(err)
	}
	size, err := OSFile{f}.Size()
	if err != nil {
		q.t.Fatal(err)
	}
	h, err := ReadHeader(f, size)
	if err != nil {
		q.t.Fatal(err)
	}
	return OSFile{f}, h
}

// insertUnknown puts an unknown extension where the END marker is.
func (q qemuDir) insertUnknown(n int) {
	q.t.Helper()
	f, h := q.open()
	defer f.Close()
	cluster0 := make([]byte, h.ClusterSize())
	if _, err := f.ReadAt(cluster0, 0); err != nil {
		q.t.Fatal(err)
	}
	d := draft(cluster0)
	d.ext(int(readArea(d, h).end)-8, 0x12345678, strings.Repeat("u", n))
	if _, err := f.WriteAt(d, 0); err != nil {
		q.t.Fatal(err)
	}
}

// change sets a parent. Where there may be no room, nothing may have changed then.
func (q qemuDir) change(b Backing, room bool) {
	q.t.Helper()
	f, old := q.open()
	can := CanSetBacking(f, b.Name, b.Format)
	err := SetBacking(f, b.Name, b.Format)
	if (err == nil) != (can == nil) || errors.Is(err, ErrNoRoom) != errors.Is(can, ErrNoRoom) {
		q.t.Errorf("to %d bytes, %s: asked it was %v, and then %v", len(b.Name), b.Format, can, err)
	}
	_ = f.Close() // synced, or to be read again
	now, want := q.read(), b
	switch {
	case errors.Is(err, ErrNoRoom) && !room:
		want = Backing{old.BackingName, old.BackingFormat}
	case err != nil:
		q.t.Fatalf("to %d bytes, %s: %v", len(b.Name), b.Format, err)
	}
	sameButParent(q.t, now, old)
	var got info
	if err := json.Unmarshal(q.run("info", "-f", "qcow2", "--output=json", "x"), &got); err != nil {
		q.t.Fatal(err)
	}
	if want.Name == "" {
		want.Format, now.BackingFormat = "", "" // QEMU pays no heed to one that was left
	}
	if said := (Backing{got.Backing, got.BackingFormat}); said != want {
		q.t.Errorf("qemu-img says %.30q, want %.30q", fmt.Sprint(said), fmt.Sprint(want))
	}
	compareInfo(q.t, now, &got)
	q.run("check", "-q", "-f", "qcow2", "x")
}

func (q qemuDir) read() *Header {
	q.t.Helper()
	f, h := q.open()
	_ = f.Close() // only read
	return h
}
