package qemu

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chainfs/chainfs/chain"
	"golang.org/x/sys/unix"
)

// mountDead mounts a FUSE file system whose server never answers: who asks it
// anything sleeps until the test is over. So would qemu-img in our own mount.
func mountDead(t *testing.T, at string) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skip("needs FUSE: ", err)
	}
	opts := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd)
	if err := unix.Mount("dead", at, "fuse", 0, opts); err != nil {
		unix.Close(fd)
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
		unix.Close(fd)
	})
}

func TestRebaseWithAbsoluteNames(t *testing.T) {
	needQemu(t)
	needRoot(t)
	for _, c := range []struct {
		name  string
		dead  bool // a mount that never answers is on the mountpoint
		cover bool // the mountpoint is the tree's own directory
		above bool // the names start at the source instead of the mountpoint
	}{
		{name: "plain directory"},
		{name: "dead mount", dead: true},
		{name: "dead mount over the tree", dead: true, cover: true},
		{name: "names of the source", dead: true, above: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr := newTree(t)
			source := tr.dir
			at := t.TempDir()
			if c.cover {
				at = source
			}
			prefix := at
			if c.above {
				prefix = source
			}
			tr.chain()
			before := tr.guest("2/b")
			for p, backing := range map[chain.Path]string{"1/a": "/0/full", "2/b": "/1/a"} {
				tr.qemu("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", prefix+backing, string(p))
			}
			tr.mountpoint = prefix
			job := tr.job()
			root, err := os.Open(source)
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			// As fs/source does: from the descriptor, not from the name.
			tr.dir = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), root.Fd())
			mounted := t.Run("mounted", func(t *testing.T) {
				if c.dead {
					mountDead(t, at)
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				opts := Options{Mountpoint: at, Source: source}
				if err := NewRebaser(tr, opts).Rebase(ctx, job, nil); err != nil {
					t.Fatal(err)
				}
				if c.dead && !isMounted(t, at) {
					t.Error("the mount is gone from our own namespace")
				}
			})
			if mounted {
				checkRebased(t, tr, before)
			}
		})
	}
}

// Nothing may be left in the host's mount table, nor in a thread of ours.
func TestRebaseLeavesNoMounts(t *testing.T) {
	needQemu(t)
	needRoot(t)
	tr := newTree(t)
	tr.chain()
	before := mountTables(t)
	opts := Options{Mountpoint: t.TempDir(), Source: tr.dir}
	if err := NewRebaser(tr, opts).Rebase(t.Context(), tr.job(), nil); err != nil {
		t.Fatal(err)
	}
	// The thread that ran qemu-img ends a moment after it.
	for end := time.Now().Add(10 * time.Second); mountTables(t) != before; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("got mount namespaces %s, had %s", mountTables(t), before)
		}
	}
}

// mountTables lists the mount namespaces of the live threads.
func mountTables(t *testing.T) string {
	seen := map[string]bool{}
	threads, err := filepath.Glob("/proc/self/task/*/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		if ns, err := os.Readlink(thread); err == nil {
			seen[ns] = true
		}
	}
	return fmt.Sprint(seen)
}

func isMounted(t *testing.T, at string) bool {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(b), " "+at+" ")
}
