package fs

import (
	"fmt"
	"log/slog"
	"maps"
	"runtime/debug"
	"sync"
	"time"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/fs/source"
)

// Options say what is mounted where.
type Options struct {
	Source     *source.Tree
	Tree       *chain.Tree
	Mountpoint string

	TreeID     string // readable on the mount's root as user.chainfs.tree
	FsName     string // what df shows as the file system
	ReadOnly   bool
	AllowOther bool
	Debug      bool
	Log        *slog.Logger

	// MountOptions are further options for the kernel: nodev, noexec, …
	MountOptions []string

	// Status is the text of .chainfs/status.json, made anew for each call. Without
	// it there is no such file.
	Status func() ([]byte, error)
}

// cacheFor is how long the kernel may answer for directories and symbolic links
// by itself. For regular files it asks each time: an image may be replaced, or
// deleted by a command, at any moment, and telling the kernel so is not safe. A
// notification waits for the directory's lock in an uninterruptible sleep; when
// the daemon is killed while it does, and the lock's holder waits for the
// daemon's answer to an unlink, neither ever ends (Linux 6.18, seen in
// TestE2EKilledAtEveryStep).
const cacheFor = time.Second

// maxWrite is the size of the largest read or write request, the most the
// kernel offers.
const maxWrite = 1 << 20

// Server is a mount that answers.
type Server struct {
	fuse *fuse.Server
}

// mount is what the nodes of one mount share.
type mount struct {
	opts    Options
	source  *source.Tree
	tree    *chain.Tree
	log     *slog.Logger
	root    *node
	rootDev uint64
	writers counts // the files that are open for writing
	readers counts // and for reading alone
	fresh   fresh

	presence presence
	control  *controlDir
}

// Mount mounts the tree and returns when the mount answers. The process's
// umask is cleared: the kernel has applied the caller's.
func Mount(opts Options) (*Server, error) {
	m := &mount{opts: opts, source: opts.Source, tree: opts.Tree, log: opts.Log}
	st, err := m.statPath("")
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", opts.Mountpoint, err)
	}
	m.rootDev = device(st)
	m.root = &node{mount: m}
	m.control = newControlDir(m)
	if !opts.ReadOnly {
		m.tree.Watch(m)
	}
	unix.Umask(0)
	server, err := gofs.Mount(opts.Mountpoint, m.root, m.fuseOptions(st))
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", opts.Mountpoint, err)
	}
	return &Server{server}, nil
}

func (m *mount) fuseOptions(root *unix.Statx_t) *gofs.Options {
	id := m.stable(root)
	o := &gofs.Options{
		NullPermissions: true,
		RootStableAttr:  &id,
	}
	o.MountOptions = fuse.MountOptions{
		AllowOther:    m.opts.AllowOther,
		Options:       append([]string{"default_permissions"}, m.opts.MountOptions...),
		FsName:        m.opts.FsName,
		Name:          "chainfs",
		MaxWrite:      maxWrite,
		MaxBackground: 64,
		DirectMount:   true,
		DisableSplice: true,
		Debug:         m.opts.Debug,
		PanicHandler:  m.panicked,
	}
	if m.opts.ReadOnly {
		o.DirectMountFlags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_RDONLY
	}
	return o
}

// panicked keeps the daemon alive when a handler has a bug: other callers'
// operations go on, and recovery after the next start covers what it left.
func (m *mount) panicked(what any) fuse.Status {
	m.log.Error("a handler panicked", "panic", what, "stack", string(debug.Stack()))
	return fuse.EIO
}

// Wait returns when the mount is gone, whoever unmounted it.
func (s *Server) Wait() { s.fuse.Wait() }

// Unmount unmounts; it fails while the mount is in use.
func (s *Server) Unmount() error { return s.fuse.Unmount() }

// counts says how often files are open through the mount.
type counts struct {
	mu   sync.Mutex
	open map[fileKey]int // guarded by mu
}

// fileKey names an inode of the tree.
type fileKey struct{ dev, ino uint64 }

func (w *counts) add(k fileKey) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.open == nil {
		w.open = map[fileKey]int{}
	}
	w.open[k]++
}

func (w *counts) remove(k fileKey) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.open[k]--; w.open[k] == 0 {
		delete(w.open, k)
	}
}

func (w *counts) has(k fileKey) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.open[k] > 0
}

// freshFor is how long a file that was created through the mount can be opened
// for writing without a look at the whole tree. A backup tool opens what it
// writes many times, and nobody stands on it yet.
const freshFor = 10 * time.Minute

// fresh are the files that were created through the mount lately.
type fresh struct {
	mu     sync.Mutex
	since  map[gofs.StableAttr]time.Time // guarded by mu; by the time of birth too, as inode numbers are reused
	pruned time.Time                     // guarded by mu
}

func (f *fresh) add(id gofs.StableAttr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := time.Now(); now.Sub(f.pruned) > freshFor {
		maps.DeleteFunc(f.since, func(_ gofs.StableAttr, at time.Time) bool { return now.Sub(at) > freshFor })
		f.pruned = now
	}
	if f.since == nil {
		f.since = map[gofs.StableAttr]time.Time{}
	}
	f.since[id] = time.Now()
}

func (f *fresh) has(id gofs.StableAttr) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	at, is := f.since[id]
	return is && time.Since(at) <= freshFor
}

var _ chain.Watcher = (*mount)(nil)

// InUse knows who has a file open through this mount.
func (m *mount) InUse(p chain.Path) (chain.Use, error) {
	st, err := m.statPath(p)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return chain.Use{}, nil
	}
	if err != nil {
		return chain.Use{}, err
	}
	use := chain.Use{Writer: m.writers.has(keyOf(st)), Reader: m.readers.has(keyOf(st))}
	if use.Writer || use.Reader {
		use.By = "a process that works through the mount"
	}
	return use, nil
}
