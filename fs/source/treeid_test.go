package source

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/e2e/cutfs"
)

func TestTreeKeepsItsID(t *testing.T) {
	dir := t.TempDir()
	first := openTree(t, dir)
	id := first.ID()
	must(t, first.Close())
	for _, readOnly := range []bool{true, false} {
		again, err := Open(dir, Options{ReadOnly: readOnly})
		must(t, err)
		if again.ID() != id || len(id) != 32 {
			t.Errorf("got id %s, want %s of 32 digits", again.ID(), id)
		}
		must(t, again.Close())
	}
}

func TestReadOnlyWritesNothing(t *testing.T) {
	dir := t.TempDir()
	var ids [2]string
	for i := range ids {
		tree, err := Open(dir, Options{ReadOnly: true})
		must(t, err)
		must(t, tree.Present())
		ids[i] = tree.ID()
		must(t, tree.Close())
	}
	if ids[0] != ids[1] || len(ids[0]) != 32 {
		t.Errorf("ids %q differ or are short", ids)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

func TestDamagedTreeFileIsLeftAlone(t *testing.T) {
	for _, content := range []string{"", "{", "{}", `{"version":1,"id":"xyz"}`, `{"version":2,"id":"00000000000000000000000000000000"}`, strings.Repeat(" ", 70000)} {
		dir := t.TempDir()
		file := filepath.Join(dir, string(treeFile))
		must(t, os.Mkdir(filepath.Dir(file), 0o755))
		must(t, os.WriteFile(file, []byte(content), 0o644))
		for _, readOnly := range []bool{true, false} {
			_, err := Open(dir, Options{ReadOnly: readOnly})
			if err == nil || !strings.Contains(err.Error(), string(treeFile)) {
				t.Errorf("%.20q: got %v, want an error that names the file", content, err)
			}
		}
		if now, err := os.ReadFile(file); err != nil || string(now) != content {
			t.Errorf("%.20q became %.20q, %v", content, now, err)
		}
	}
}

func TestHostsThatCreateAtOnceAgree(t *testing.T) {
	for range 20 {
		dir := t.TempDir()
		var ids [8]string
		var wg sync.WaitGroup
		for i := range ids {
			wg.Go(func() {
				tree, err := Open(dir, Options{})
				if owned := (*OwnedError)(nil); errors.As(err, &owned) {
					tree, err = Open(dir, Options{ReadOnly: true})
				}
				if err != nil {
					t.Error(err)
					return
				}
				ids[i] = tree.ID()
				tree.Close()
			})
		}
		wg.Wait()
		for _, id := range ids {
			if id != ids[0] || id == "" {
				t.Fatalf("ids differ: %q", ids)
			}
		}
		left, err := os.ReadDir(filepath.Join(dir, chain.ControlName))
		if err != nil || len(left) != 2 {
			t.Fatalf("left %v, %v, want tree.json and owner.lock", left, err)
		}
	}
}

func TestOneOwner(t *testing.T) {
	dir := t.TempDir()
	stop := startOwner(t, dir)
	host, err := os.Hostname()
	must(t, err)
	_, err = Open(dir, Options{})
	var owned *OwnedError
	if !errors.As(err, &owned) {
		t.Fatalf("got %v, want an OwnedError", err)
	}
	if owned.Host != host || owned.PID == 0 || owned.Mountpoint != "/mnt/other" || owned.Since.IsZero() {
		t.Errorf("got %+v", owned.Owner)
	}
	ro, err := Open(dir, Options{ReadOnly: true})
	must(t, err)
	must(t, ro.Close())
	stop()

	tree := openTree(t, dir)
	if _, err := Open(dir, Options{}); !errors.As(err, &owned) {
		t.Errorf("second open in one process: got %v, want an OwnedError", err)
	}
	must(t, tree.Close())
	if data, err := os.ReadFile(filepath.Join(dir, string(ownerFile))); err != nil || len(data) != 0 {
		t.Errorf("after release the lock holds %q, %v", data, err)
	}
}

func TestPresentNoticesAnotherTree(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(dir string) error
	}{
		{"no tree.json", func(dir string) error { return os.Remove(filepath.Join(dir, string(treeFile))) }},
		{"another id", func(dir string) error {
			return os.WriteFile(filepath.Join(dir, string(treeFile)), []byte(`{"version":1,"id":"00000000000000000000000000000000"}`), 0o644)
		}},
		{"another lock", func(dir string) error {
			p := filepath.Join(dir, string(ownerFile))
			return errors.Join(os.Rename(p, p+"2"), os.WriteFile(p, nil, 0o600))
		}},
		{"no directory", os.RemoveAll},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "tree")
			build(t, dir, "a/x")
			tree := openTree(t, dir)
			must(t, tree.Present())
			must(t, c.change(dir))
			if err := tree.Present(); !errors.Is(err, chain.ErrTreeGone) {
				t.Errorf("got %v, want ErrTreeGone", err)
			}
			if _, _, _, err := collect(tree, nil); !errors.Is(err, chain.ErrTreeGone) {
				t.Errorf("walk: got %v, want ErrTreeGone", err)
			}
		})
	}
}

func TestFileSystemThatWentAway(t *testing.T) {
	disk := cutfs.New(t, 32)
	build(t, disk.Dir, "a/x", "b/y")
	tree := openTree(t, disk.Dir)
	must(t, tree.Present())
	if _, _, _, err := collect(tree, nil); err != nil {
		t.Fatal(err)
	}
	disk.Cut()
	if err := tree.Present(); !errors.Is(err, chain.ErrTreeGone) {
		t.Errorf("Present: got %v, want ErrTreeGone", err)
	}
	if _, _, _, err := collect(tree, nil); !errors.Is(err, chain.ErrTreeGone) {
		t.Errorf("Walk: got %v, want ErrTreeGone", err)
	}
	if err := tree.SyncDir("a"); err == nil {
		t.Error("SyncDir succeeded on a dead file system")
	}
	tree.Close()
}

func TestReadOnlyTreeThatWentAway(t *testing.T) {
	disk := cutfs.New(t, 32)
	tree, err := Open(disk.Dir, Options{ReadOnly: true})
	must(t, err)
	defer tree.Close()
	must(t, tree.Present())
	disk.Cut()
	if err := tree.Present(); !errors.Is(err, chain.ErrTreeGone) {
		t.Errorf("got %v, want ErrTreeGone", err)
	}
}

// An id that was given must outlive a power cut: the store is found by it.
func TestIDSurvivesPowerCut(t *testing.T) {
	disk := cutfs.New(t, 32)
	tree := openTree(t, disk.Dir)
	id := tree.ID()
	disk.Cut()
	tree.Close()
	disk.Restore()
	if again := openTree(t, disk.Dir); again.ID() != id {
		t.Errorf("got id %s, want %s", again.ID(), id)
	} else {
		again.Close()
	}
}
