package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/cmd/chainfs/control"
)

// What the tests of deferred deletions have in common.

// ops is what chainfs ops says.
func (s *site) ops() (ops control.Operations) {
	s.t.Helper()
	mustDo(s.t, json.Unmarshal([]byte(s.cli(0, "ops", "--limit", "0", "--json", s.mnt).out), &ops))
	return ops
}

// trash is what chainfs trash says of a path in the mount.
func (s *site) trash(name string) (all []chain.Condemned) {
	s.t.Helper()
	mustDo(s.t, json.Unmarshal([]byte(s.cli(0, "trash", "--json", filepath.Join(s.mnt, name)).out), &all))
	return all
}

// hurry has what is left for later done now, and reports whether anything was.
func (s *site) hurry() bool {
	s.t.Helper()
	pending := s.ops().Pending
	for _, p := range pending {
		s.cli(0, "ops", "retry", p.Op.String(), s.mnt)
	}
	s.cli(0, "wait", s.mnt)
	return len(pending) > 0
}

// current is the first operation that is not over, nil when all are.
func (s *site) current() *chain.Progress {
	s.t.Helper()
	ops := s.ops()
	for _, p := range append(ops.Running, ops.Pending...) {
		return &p
	}
	return nil
}

// until waits for what must come, and fails the test when it does not.
func (s *site) until(what string, is func() bool) {
	s.t.Helper()
	for range 3000 {
		if is() {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	s.t.Fatalf("it does not come to this: %s", what)
}

// copied is how many bytes absorbing copied, by the journal.
func (s *site) copied() (n int64) {
	s.t.Helper()
	for _, op := range s.ops().Past {
		if op.State == chain.Done && (op.Act == chain.ActReclaim || op.Act == chain.ActDelete) {
			n += op.Plan.Copies()
		}
	}
	return n
}

// hidden are chainfs's own files in the tree.
func (s *site) hidden() (names []string) {
	s.t.Helper()
	err := filepath.WalkDir(s.tree, func(p string, _ os.DirEntry, err error) error {
		if strings.HasPrefix(filepath.Base(p), ".chainfs-") {
			names = append(names, strings.TrimPrefix(p, s.tree+"/"))
		}
		return err
	})
	mustDo(s.t, err)
	return names
}

// absent wants files to be in neither tree nor mount.
func (s *site) absent(names ...string) {
	s.t.Helper()
	for _, name := range names {
		for _, at := range []string{s.tree, s.mnt} {
			if _, err := os.Lstat(filepath.Join(at, name)); !os.IsNotExist(err) {
				s.t.Errorf("%s is still in %s: %v", name, at, err)
			}
		}
	}
}

// pause is a label at which the next daemon waits.
type pause struct {
	t    testing.TB
	fifo string
	w    *os.File
}

func (s *site) pauseAt(label string) *pause {
	s.t.Helper()
	p := &pause{t: s.t, fifo: filepath.Join(s.t.TempDir(), "fifo")}
	mustDo(s.t, unix.Mkfifo(p.fifo, 0o600))
	s.fail = label + "=pause:" + p.fifo
	return p
}

// met waits until the daemon has come to the label.
func (p *pause) met() {
	p.t.Helper()
	for range 1000 {
		var err error
		if p.w, err = os.OpenFile(p.fifo, os.O_WRONLY|unix.O_NONBLOCK, 0); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	p.t.Fatalf("the daemon never came to %s", p.fifo)
}

// goOn lets it go on.
func (p *pause) goOn() {
	p.t.Helper()
	mustDo(p.t, p.w.Close())
}
