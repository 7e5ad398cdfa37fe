package qcow2

import (
	"bytes"
	"os"
	"testing"
)

// What a parent has behind the end of a shorter child must not come back when the
// child grows.
func TestGrowAfterAbsorb(t *testing.T) {
	for _, write := range []string{"write -P 7 0 128k", "write -c -P 7 0 128k"} {
		t.Run(write, func(t *testing.T) {
			d := newImageDir(t)
			d.run("qemu-img", "create", "-q", "-f", "qcow2", "parent", "128k")
			d.io("parent", write)
			d.createOn("parent", "child", "", "100k")
			d.run("cp", "child", "control")
			f, err := os.OpenFile(d.path("child"), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			parent := contentOf(d.read("parent"))
			if err := engineAbsorb(testJob{child: OSFile{f}, away: []testLayer{{src: parent}}, verify: true}); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"control", "child"} {
				d.run("qemu-img", "resize", "-q", "-f", "qcow2", name, "128k")
				if tail := d.raw(name)[100<<10:]; !bytes.Equal(tail, make([]byte, len(tail))) {
					t.Errorf("%s: what was behind the end reads as %d", name, tail[0])
				}
			}
		})
	}
}
