package qcow2

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// What two files share is told as the same, and nothing else is: not what is only
// equal, not what was written over since, not holes.
func TestSameBlocks(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root for mounts")
	}
	for _, fstype := range []string{"xfs", "btrfs"} {
		t.Run(fstype, func(t *testing.T) {
			dir := loopMount(t, fstype)
			a, b := createFile(t, filepath.Join(dir, "a")), createFile(t, filepath.Join(dir, "b"))
			block := make([]byte, 1<<20)
			for i := range block {
				block[i] = byte(i * 7)
			}
			mustWrite(t, a, block, 0)
			mustWrite(t, a, block, 4<<20)
			if n, err := b.CopyRange(2<<20, a, 0, 1<<20); err != nil || n != 1<<20 {
				t.Fatal(n, err)
			}
			mustWrite(t, b, block, 4<<20) // equal, and in a place of its own
			mustWrite(t, b, block[:4096], 2<<20+512<<10)
			for _, c := range []struct {
				name        string
				off, other  int64
				n, atMost   int64
				sharesAtAll bool
			}{
				{"shared", 2 << 20, 0, 512 << 10, 512 << 10, true},
				{"up to what was written over", 2 << 20, 0, 1 << 20, 512 << 10, true},
				{"written over", 2<<20 + 512<<10, 512 << 10, 4096, 0, false},
				{"another place in it", 2 << 20, 4096, 64 << 10, 0, false},
				{"only equal", 4 << 20, 4 << 20, 1 << 20, 0, false},
				{"holes", 1 << 20, 2 << 20, 64 << 10, 0, false},
				{"behind the end", 8 << 20, 8 << 20, 4096, 0, false},
			} {
				got := sameBlocks(b, c.off, a, c.other, c.n)
				if got > c.atMost || got > 0 != c.sharesAtAll {
					t.Errorf("%s: got %d bytes, at most %d are", c.name, got, c.atMost)
				}
			}
		})
	}
}

func createFile(t *testing.T, name string) OSFile {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return OSFile{f}
}

func mustWrite(t *testing.T, f OSFile, p []byte, off int64) {
	t.Helper()
	if _, err := f.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// loopMount is a file system of its own.
func loopMount(t *testing.T, fstype string) string {
	t.Helper()
	image, dir := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 512<<20); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"mkfs." + fstype, "-q", image}, {"mount", "-o", "loop", image, dir}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// The same place on two disks is not the same place.
func TestSameBlocksOfTwoFileSystems(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root for mounts")
	}
	for _, fstype := range []string{"xfs", "btrfs"} {
		t.Run(fstype, func(t *testing.T) {
			var files []OSFile
			for i := range 2 {
				dir := loopMount(t, fstype)
				a, b := createFile(t, filepath.Join(dir, "a")), createFile(t, filepath.Join(dir, "b"))
				block := make([]byte, 1<<20)
				for j := range block {
					block[j] = byte(j*7 + i)
				}
				mustWrite(t, a, block, 0)
				if n, err := b.CopyRange(0, a, 0, 1<<20); err != nil || n != 1<<20 {
					t.Fatal(n, err)
				}
				files = append(files, b)
			}
			if n := sameBlocks(files[0], 0, files[1], 0, 1<<20); n != 0 {
				t.Errorf("%d bytes are told to be the same, and differ", n)
			}
		})
	}
}
