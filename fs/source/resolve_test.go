package source

import (
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/chainfs/chainfs/chain"
)

func TestResolve(t *testing.T) {
	base := t.TempDir()
	dir := filepath.Join(base, "nas")
	build(t, base, "nas/vm1/b1/root.qcow2", "nas/vm1/b2/root.qcow2", "outside/file", "alias -> nas")
	build(t, dir,
		"vm1/latest -> b2",
		"vm1/first -> latest",
		"vm1/b2/parent -> ../b1/root.qcow2",
		"vm1/out -> ../../outside",
		"vm1/etc -> /etc",
		"vm1/abs -> "+dir+"/vm1/b1",
		"vm1/mnt -> /mnt/backup/vm1/b1",
		"vm1/loop -> loop",
		"vm1/magic -> /proc/self/root/etc/passwd",
		"vm2/deep -> ../vm1/b1",
	)
	tree, err := Open(filepath.Join(base, "alias"), Options{ReadOnly: true, Mountpoint: "/mnt/backup"})
	must(t, err)
	defer tree.Close()
	must(t, tree.AddMountpoint("/mnt/later"))

	for _, c := range []struct {
		name, want string
		links      []chain.Path
	}{
		{"root.qcow2", "vm1/b2/root.qcow2", nil},
		{"../b1/root.qcow2", "vm1/b1/root.qcow2", nil},
		{"..//./b1/root.qcow2", "vm1/b1/root.qcow2", nil},
		{"missing.qcow2", "vm1/b2/missing.qcow2", nil},
		{"../gone/x/../root.qcow2", "vm1/gone/root.qcow2", nil},
		{"root.qcow2/x", "vm1/b2/root.qcow2/x", nil},
		{"parent", "vm1/b1/root.qcow2", []chain.Path{"vm1/b2/parent"}},
		{"../first/root.qcow2", "vm1/b2/root.qcow2", []chain.Path{"vm1/first", "vm1/latest"}},
		{"../../vm2/deep/../b2/root.qcow2", "vm1/b2/root.qcow2", []chain.Path{"vm2/deep"}},
		{"../abs/root.qcow2", "vm1/b1/root.qcow2", []chain.Path{"vm1/abs"}},
		{"../mnt/root.qcow2", "vm1/b1/root.qcow2", []chain.Path{"vm1/mnt"}},
		{dir + "/vm1/b1/root.qcow2", "vm1/b1/root.qcow2", nil},
		{base + "//./alias//vm1/b1/root.qcow2", "vm1/b1/root.qcow2", nil},
		{base + "/other/../nas/vm1/b1/root.qcow2", "vm1/b1/root.qcow2", nil},
		{dir + "/../nas/vm1/b1/root.qcow2", "vm1/b1/root.qcow2", nil},
		{"../../../nas/vm1/b1/root.qcow2", "vm1/b1/root.qcow2", nil},
		{"/mnt/backup/vm1/b1/root.qcow2", "vm1/b1/root.qcow2", nil},
		{"/mnt/later/vm1/b1/root.qcow2", "vm1/b1/root.qcow2", nil},
		{"../loop", "vm1/loop", loops("vm1/loop")},
		{strings.Repeat("n", 300), "vm1/b2/" + chain.Path(strings.Repeat("n", 300)).String(), nil},
		{"/mnt/backup2/vm1/b1/root.qcow2", "external", nil},
		{"../out/file", "external", []chain.Path{"vm1/out"}},
		{"../etc/passwd", "external", []chain.Path{"vm1/etc"}},
		{"../magic", "external", []chain.Path{"vm1/magic"}},
		{"/etc/passwd", "external", nil},
		{"/", "external", nil},
		{"../../../../../../../../etc/passwd", "external", nil},
		{"../../../outside/file", "external", nil},
	} {
		r, err := tree.Resolve("vm1/b2", c.name)
		got := string(r.Path)
		if r.External {
			got = "external"
		}
		if err != nil || got != c.want || !reflect.DeepEqual(r.Links, c.links) {
			t.Errorf("Resolve(%q): got %q by %q, %v; want %q by %q", c.name, got, r.Links, err, c.want, c.links)
		}
	}
	for _, name := range []string{"", "a\x00b"} {
		if r, err := tree.Resolve("vm1", name); err == nil {
			t.Errorf("Resolve(%q): got %v, want an error", name, r)
		}
	}
}

func loops(p chain.Path) []chain.Path {
	var l []chain.Path
	for range maxLinks {
		l = append(l, p)
	}
	return l
}

// As many links as the kernel follows are followed, and no more.
func TestResolveFollowsAsManyLinksAsTheKernel(t *testing.T) {
	dir := t.TempDir()
	build(t, dir, "0")
	for i := range maxLinks + 1 {
		must(t, os.Symlink(strconv.Itoa(i), filepath.Join(dir, strconv.Itoa(i+1))))
	}
	tree := openTree(t, dir)
	for i, want := range map[int]chain.Path{maxLinks: "0", maxLinks + 1: "1"} {
		_, kernel := os.Stat(filepath.Join(dir, strconv.Itoa(i)))
		r, err := tree.Resolve("", strconv.Itoa(i))
		if err != nil || r.Path != want {
			t.Errorf("%d links: got %q, %v, want %q (the kernel says %v)", i, r.Path, err, want, kernel)
		}
		if (kernel == nil) != (r.Path == "0") {
			t.Errorf("%d links: the kernel says %v, and we resolve to %s", i, kernel, r.Path)
		}
	}
}
