package source

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chainfs/chainfs/e2e/cutfs"
)

func TestProbe(t *testing.T) {
	for _, c := range []struct {
		name string
		mkfs []string
		want string
	}{
		{"ext4", nil, "ext4: copies move bytes through this host; hard links"},
		{"xfs", []string{"mkfs.xfs", "-q", "-m", "reflink=1"}, "xfs: copies share extents and move no bytes; hard links"},
		{"xfs without reflink", []string{"mkfs.xfs", "-q", "-m", "reflink=0"}, "xfs: copies move bytes through this host; hard links"},
		{"btrfs", []string{"mkfs.btrfs", "-q"}, "btrfs: copies share extents and move no bytes; hard links"},
		{"vfat", []string{"mkfs.vfat"}, "vfat: copies move bytes through this host; no hard links"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := mountNew(t, c.mkfs)
			build(t, dir, ".chainfs/probe-of-a-killed-run", ".chainfs/other")
			tree := openTree(t, dir)
			for range 2 {
				if got, err := tree.Probe(); err != nil || got.String() != c.want {
					t.Errorf("got %s, %v, want %s", got, err, c.want)
				}
			}
			left, err := filepath.Glob(filepath.Join(dir, ".chainfs", "*"))
			must(t, err)
			if len(left) != 3 { // tree.json, owner.lock, other
				t.Errorf("left %s", left)
			}
			must(t, tree.Close())
		})
	}
}

// mountNew is a new file system; without a command an ext4.
func mountNew(t *testing.T, mkfs []string) string {
	if mkfs == nil {
		return cutfs.New(t, 32).Dir
	}
	if os.Geteuid() != 0 {
		t.Skip("mounting a loop device needs root")
	}
	if _, err := exec.LookPath(mkfs[0]); err != nil {
		t.Skip("needs a file system: ", err)
	}
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
	}
	image, dir := filepath.Join(t.TempDir(), "image"), t.TempDir()
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 320<<20))
	run(append(mkfs, image)...)
	options := "loop"
	if device := os.Getenv(cutfs.LoopVariable); device != "" {
		run("losetup", device, image)
		t.Cleanup(func() { run("losetup", "--detach", device) })
		image, options = device, "defaults"
	}
	run("mount", "-o", options, image, dir)
	t.Cleanup(func() { run("umount", dir) })
	return dir
}

func TestProbeReadOnly(t *testing.T) {
	tree, err := Open(t.TempDir(), Options{ReadOnly: true})
	must(t, err)
	defer tree.Close()
	if c, err := tree.Probe(); err == nil || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("got %v, %v", c, err)
	}
}

func TestCopyingIsWrittenOut(t *testing.T) {
	for _, c := range []struct {
		copying    Copying
		free       bool
		text, json string
	}{
		{
			Copying{Server: true, Links: true, FileSystem: "nfs"}, true,
			"nfs: copies are made by the server and move no bytes through this host; hard links",
			`{"shares":false,"server":true,"links":true,"file_system":"nfs"}`,
		},
		{
			Copying{FileSystem: "type 0x1234"}, false,
			"type 0x1234: copies move bytes through this host; no hard links",
			`{"shares":false,"server":false,"links":false,"file_system":"type 0x1234"}`,
		},
	} {
		out, err := json.Marshal(c.copying)
		must(t, err)
		if c.copying.Free() != c.free || c.copying.String() != c.text || string(out) != c.json {
			t.Errorf("got %v, %s, %s", c.copying.Free(), c.copying, out)
		}
	}
}

func TestFindMount(t *testing.T) {
	const info = `21 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw
33 21 0:41 /sub /mnt/a\040b rw,relatime shared:7 master:2 - btrfs /dev/sdb rw
34 21 0:42 / /mnt/nas rw - nfs4 nas:/export rw,vers=4.2
broken
`
	for id, want := range map[string]mount{
		"21": {"/", "ext4"}, "33": {`/mnt/a\040b`, "btrfs"}, "34": {"/mnt/nas", "nfs4"}, "3": {}, "": {},
	} {
		if got := findMount([]byte(info), id); got != want {
			t.Errorf("%s: got %+v, want %+v", id, got, want)
		}
	}
	if got := mountID([]byte("pos:\t0\nflags:\t0100000\nmnt_id:\t29\nino:\t2\n")); got != "29" {
		t.Errorf("got id %q", got)
	}
}

func TestTraffic(t *testing.T) {
	const stats = `device proc mounted on /proc with fstype proc
device nas:/other mounted on /mnt/other with fstype nfs4 statvers=1.1
	bytes:	1 1 1 1 1 1 1 1
device nas:/export mounted on /mnt/nas with fstype nfs4 statvers=1.1
	opts:	rw,vers=4.2
	bytes:	10 20 0 0 111 222 1 2
	per-op statistics
	        READ: 1 1 0 100 100 0 1 1 0
	        COPY: 7 7 0 100 100 0 1 1 2
device tmpfs mounted on /mnt/nas/x with fstype tmpfs
`
	got, err := nfsTraffic([]byte(stats), "/mnt/nas")
	if want := (traffic{111, 222, 5}); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	for _, broken := range []string{"", strings.ReplaceAll(stats, "222", "two"), strings.ReplaceAll(stats, "bytes", "octets")} {
		if got, err := nfsTraffic([]byte(broken), "/mnt/nas"); err == nil {
			t.Errorf("got %+v from %s", got, broken)
		}
	}
	const cifs = "Resources in use\n1) \\\\nas\\a\nSMBs: 9\nBytes read: 5  Bytes written: 7\n2) \\\\nas\\b\nBytes read: 1  Bytes written: 2\n"
	got, err = cifsTraffic([]byte(cifs))
	if want := (traffic{6, 9, -1}); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	if got, err := cifsTraffic([]byte("SMBs: 9\n")); err == nil {
		t.Errorf("got %+v", got)
	}
}

func TestTrafficProvesCopy(t *testing.T) {
	before := traffic{100, 200, 3}
	for _, c := range []struct {
		after traffic
		want  bool
	}{
		{traffic{100, 200, 4}, true},
		{traffic{150, 250, 4}, true},
		{traffic{100, 200, 3}, false},             // nobody asked the server
		{traffic{100, 200 + probeSize, 4}, false}, // somebody wrote all of it
		{traffic{100 + probeSize, 200, 4}, false},
	} {
		if got := before.provesCopy(c.after, probeSize); got != c.want {
			t.Errorf("%+v: got %v", c.after, got)
		}
	}
	if uncounted := (traffic{0, 0, -1}); !uncounted.provesCopy(uncounted, probeSize) {
		t.Error("nothing passed, and it is no proof")
	}
}
