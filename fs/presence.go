package fs

import (
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/fs/source"
)

// missing is the errno for a file that was not found: EIO when nothing can be
// found because the tree itself is gone. A deletion that met ENOENT would be
// taken for done.
func (m *mount) missing(err error) syscall.Errno {
	errno := errnoOf(err)
	if errno == unix.ENOENT && !m.presence.holds(m.source) {
		return syscall.EIO
	}
	return errno
}

// presence remembers for a moment that the tree is there: many names that are
// looked up do not exist.
type presence struct {
	mu   sync.Mutex
	seen time.Time // guarded by mu
}

const presenceFor = 100 * time.Millisecond

func (p *presence) holds(tree *source.Tree) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.seen) < presenceFor {
		return true
	}
	if tree.Present() != nil {
		return false
	}
	p.seen = time.Now()
	return true
}
