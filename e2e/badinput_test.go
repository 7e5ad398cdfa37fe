package e2e

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// digest is the content of every file of a directory.
func digest(t *testing.T, dir string) string {
	t.Helper()
	out := command(t, "sh", "-c", `cd "$1" && find . -path ./.chainfs -prune -o -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum`, "sh", dir)
	if out.code != 0 {
		t.Fatal(out.err)
	}
	return out.out
}

// TestE2EHostileImages mounts a tree full of files that are not what they seem.
// Nothing crashes, nothing is changed, everything is named by check, and the
// sound chain beside them is handled as ever.
func TestE2EHostileImages(t *testing.T) {
	s := newSite(t)
	s.line(3, "good/T%d.qcow2")
	sound, err := os.ReadFile(s.tree + "/good/T1.qcow2")
	mustDo(t, err)
	write := func(name string, data []byte) {
		mustDo(t, os.MkdirAll(filepath.Dir(s.tree+"/"+name), 0o755))
		mustDo(t, os.WriteFile(s.tree+"/"+name, data, 0o644))
	}
	spoil := func(at int, value uint64, size int) []byte {
		b := bytes.Clone(sound)
		if size == 4 {
			binary.BigEndian.PutUint32(b[at:], uint32(value))
		} else {
			binary.BigEndian.PutUint64(b[at:], value)
		}
		return b
	}
	// Offsets are those of QEMU's docs/interop/qcow2.rst, "Header".
	hostile := map[string][]byte{
		"empty.qcow2":        nil,
		"text.qcow2":         []byte("this is no image\n"),
		"magic-only.qcow2":   sound[:4],
		"truncated.qcow2":    sound[:60],
		"version.qcow2":      spoil(4, 77, 4),
		"cluster-bits.qcow2": spoil(20, 63, 4),
		"l1-size.qcow2":      spoil(36, 0xffffffff, 4),
		"l1-offset.qcow2":    spoil(40, 1<<60, 8),
		"refcounts.qcow2":    spoil(56, 0xffffffff, 4),
		"name-offset.qcow2":  spoil(8, 1<<40, 8),
		"name-size.qcow2":    spoil(16, 0xffff, 4),
		"incompatible.qcow2": spoil(72, 1<<40, 8),
		"corrupt-bit.qcow2":  spoil(72, 2, 8),
	}
	for name, data := range hostile {
		write("bad/"+name, data)
	}
	create := func(name, backing string) {
		mustDo(t, os.MkdirAll(filepath.Dir(s.tree+"/"+name), 0o755))
		s.run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", "qcow2", s.tree+"/"+name, "32M")
	}
	create("bad/self.qcow2", "self.qcow2")
	create("bad/loop1.qcow2", "loop2.qcow2")
	create("bad/loop2.qcow2", "loop1.qcow2")
	create("bad/shadow.qcow2", "/etc/shadow")
	create("bad/climb.qcow2", "../../../../../../etc/passwd")
	create("bad/missing.qcow2", "nowhere.qcow2")
	create("bad/json.qcow2", `json:{"driver":"qcow2","file":{"driver":"file","filename":"../good/T0.qcow2"}}`)
	create("bad/nbd.qcow2", "nbd://localhost/x")
	create("bad/\xff\xfe.qcow2", "\xfd.qcow2")
	mustDo(t, os.Symlink("/etc", s.tree+"/bad/out"))
	create("bad/link.qcow2", "out/passwd")
	before := digest(t, s.tree)

	s.mount()
	findings := s.cli(1, "check", s.mnt).out
	for _, name := range []string{"truncated", "version", "cluster-bits", "l1-size", "l1-offset", "refcounts", "name-offset",
		"incompatible", "corrupt-bit", "self", "loop1", "loop2", "shadow", "climb", "missing", "json", "nbd", "link"} {
		if !strings.Contains(findings, "bad/"+name+".qcow2") {
			t.Errorf("check does not name %s", name)
		}
	}
	for _, args := range [][]string{{"tree", s.mnt}, {"tree", "--json", s.mnt}, {"info", "--json", s.mnt + "/bad"}, {"scan", s.mnt}, {"ops", s.mnt}} {
		s.cli(0, args...)
	}
	if out := s.cli(0, "tree", s.mnt).out; strings.Contains(out, "\xff") {
		t.Errorf("tree prints raw bytes")
	}
	var list []map[string]any
	if err := json.Unmarshal([]byte(s.cli(0, "tree", "--json", s.mnt).out), &list); err != nil || len(list) < 20 {
		t.Errorf("tree --json: %d images, %v", len(list), err)
	}
	s.busy("rm", "-f", "bad/loop1.qcow2")
	s.busy("rm", "-f", "good/T0.qcow2")
	if after := digest(t, s.tree); after != before {
		t.Errorf("something was changed:\n%s\nwas\n%s", after, before)
	}
	s.sh("rm good/T1.qcow2")
	s.gone("good/T1.qcow2")
	s.intact()
	s.sh("find bad -name '[a-k]*.qcow2' ! -name 'loop*' -delete; rm bad/missing.qcow2 bad/truncated.qcow2")
	s.busy("rm", "bad/out")
	s.sh("rm bad/link.qcow2 bad/out")
	s.cli(0, "rm", s.mnt+"/bad")
	s.intact()
	s.clean()
}

// TestE2ETreeVanishes shuts the tree's file system down under the mount: EIO,
// and nothing is forgotten.
func TestE2ETreeVanishes(t *testing.T) {
	disk := newDisk(t, "xfs", 512)
	s := newSiteAt(t, disk.dir)
	s.line(3, "vm/T%d/r.qcow2")
	unix.Sync()
	s.mount()
	f, err := os.Open(disk.dir)
	mustDo(t, err)
	mustDo(t, unix.IoctlSetPointerInt(int(f.Fd()), 0x8004587d, 2))
	mustDo(t, f.Close())
	for _, name := range []string{"vm/T2/r.qcow2", "vm/T1/r.qcow2"} {
		if err := unix.Unlink(filepath.Join(s.mnt, name)); err != unix.EIO {
			t.Errorf("unlink %s: %v, want EIO", name, err)
		}
	}
	s.kill()
	disk.restart()
	s.mount()
	s.intact()
	s.clean()
	s.umount()
}

// TestE2ETreeReplaced takes the tree away under the mount, as a NAS does that
// is not mounted: what is seen instead is not taken for the tree.
func TestE2ETreeReplaced(t *testing.T) {
	dir := t.TempDir() + "/tree"
	mustDo(t, os.Mkdir(dir, 0o755))
	s := newSiteAt(t, dir)
	s.line(2, "T%d.qcow2")
	s.mount()
	mustDo(t, os.Rename(dir+"/.chainfs", dir+"/gone"))
	if err := unix.Unlink(s.mnt + "/T1.qcow2"); err != unix.EIO {
		t.Errorf("unlink: %v, want EIO", err)
	}
	mustDo(t, os.Rename(dir+"/gone", dir+"/.chainfs"))
	s.intact()
	s.sh("rm T1.qcow2")
	s.gone("T1.qcow2")
	s.clean()
}

// TestE2ETreeEmptied: a tree of which nothing is left is not an empty tree. A
// deletion in it fails; rm -f would take "no such file" for done.
func TestE2ETreeEmptied(t *testing.T) {
	dir, away := t.TempDir(), t.TempDir()
	s := newSiteAt(t, dir)
	s.line(2, "vm/T%d.qcow2")
	s.mount()
	time.Sleep(time.Second)
	for _, name := range []string{".chainfs", "vm"} {
		mustDo(t, os.Rename(dir+"/"+name, away+"/"+name))
	}
	time.Sleep(1200 * time.Millisecond) // the kernel may know the directory's name for a second
	for _, args := range [][]string{{"rm", "-f", s.mnt + "/vm/T1.qcow2"}, {"rm", "-rf", s.mnt + "/vm"}, {"ls", s.mnt}} {
		if r := command(t, args[0], args[1:]...); r.code == 0 {
			t.Errorf("%q ended well", args)
		}
	}
	if r := s.cli(1, "tree", s.mnt); !strings.Contains(r.err, "the tree is not there") {
		t.Errorf("chainfs tree says %q", r.err)
	}
	for _, name := range []string{".chainfs", "vm"} {
		mustDo(t, os.Rename(away+"/"+name, dir+"/"+name))
	}
	s.intact()
	s.sh("rm vm/T1.qcow2")
	s.gone("vm/T1.qcow2")
	s.clean()
}

// TestE2EFullStore: when the store's disk is full the error comes before the work.
func TestE2EFullStore(t *testing.T) {
	disk := newDisk(t, "ext4", 256)
	s := newSite(t)
	s.store = disk.dir + "/store"
	s.line(3, "T%d.qcow2")
	s.mount()
	filler, err := os.Create(disk.dir + "/filler")
	mustDo(t, err)
	var st unix.Statfs_t
	mustDo(t, unix.Fstatfs(int(filler.Fd()), &st))
	mustDo(t, unix.Fallocate(int(filler.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-(8<<20)))
	for _, name := range []string{"T2.qcow2", "T1.qcow2"} {
		if err := unix.Unlink(filepath.Join(s.mnt, name)); err != unix.ENOSPC {
			t.Errorf("unlink %s: %v, want ENOSPC", name, err)
		}
	}
	r := s.cli(1, "rm", s.mnt+"/T1.qcow2")
	if !strings.Contains(r.err, s.store) {
		t.Errorf("the error does not name the store: %s", r.err)
	}
	s.intact()
	s.umount()
	if out, err := s.tryMount(); err == nil || !strings.Contains(out, s.store) {
		t.Errorf("a mount with a full store: %v: %s", err, out)
	}
	mustDo(t, filler.Close())
	mustDo(t, os.Remove(disk.dir+"/filler"))
	s.mount()
	s.sh("rm T1.qcow2")
	s.gone("T1.qcow2")
	s.intact()
	s.clean()
	s.umount()
}

// TestE2EFullTree: ENOSPC comes before anything changes.
func TestE2EFullTree(t *testing.T) {
	disk := newDisk(t, "ext4", 64)
	s := newSiteAt(t, disk.dir)
	s.line(3, "T%d.qcow2")
	s.mount()
	filler, err := os.Create(disk.dir + "/filler")
	mustDo(t, err)
	var st unix.Statfs_t
	mustDo(t, unix.Fstatfs(int(filler.Fd()), &st))
	mustDo(t, unix.Fallocate(int(filler.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-(256<<10)))
	before := digest(t, s.tree)
	if err := unix.Unlink(s.mnt + "/T1.qcow2"); err != unix.ENOSPC {
		t.Errorf("unlink: %v, want ENOSPC", err)
	}
	if after := digest(t, s.tree); after != before {
		t.Errorf("something was changed:\n%s\nwas\n%s", after, before)
	}
	s.noLeftovers()
	mustDo(t, filler.Close())
	s.sh("rm filler T2.qcow2")
	s.gone("T2.qcow2")
	s.sh("rm T1.qcow2")
	s.gone("T1.qcow2")
	s.intact()
	s.clean()
	s.umount()
}
