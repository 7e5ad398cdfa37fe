package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// GNU rm and find sort a directory of more than 10,000 names by the inode numbers
// of its listing, which must be in the order of the listing: a chain in there is
// deleted from its tail, too.
func TestE2EBigDirectory(t *testing.T) {
	s := newSite(t)
	chain := s.line(6, "store/b%d.qcow2")
	for i := range 10_050 {
		mustDo(t, os.WriteFile(filepath.Join(s.tree, fmt.Sprintf("store/note%05d", i)), []byte("x"), 0o644))
	}
	s.mount()
	newestFirst := slices.Clone(chain)
	slices.Reverse(newestFirst)
	for _, list := range []string{"ls -U store | sed s,^,store/,", "find store -type f"} {
		var got []string
		for _, name := range strings.Fields(s.run("sh", "-c", "cd "+s.mnt+" && "+list)) {
			if strings.HasSuffix(name, ".qcow2") {
				got = append(got, name)
			}
		}
		if !slices.Equal(got, newestFirst) {
			t.Errorf("%s: the images come in the order %v, want %v", list, got, newestFirst)
		}
	}
	s.sh(`python3 -c 'import os; n = [e.inode() for e in os.scandir("store")]; assert n == sorted(set(n)), n[:9]'`)
	s.sh("rm -rf store")
	s.gone(chain...)
	if _, err := os.Stat(s.tree + "/store"); !os.IsNotExist(err) {
		t.Errorf("the directory is still there: %v", err)
	}
	if n := s.merges(); n != 0 {
		t.Errorf("%d merges, want none", n)
	}
	s.clean()
}
