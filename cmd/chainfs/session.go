package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/fs/source"
	"github.com/chainfs/chainfs/qemu"
	"github.com/chainfs/chainfs/store"
)

// session is an open tree: the tree itself, its store, and the chains in it.
// It is a control.Service.
type session struct {
	source *source.Tree
	store  *store.Store
	tree   *chain.Tree // nil until openChains, and for what needs no graph
	config chain.Config
	daemon bool // it serves a mount, not one command
	life   context.Context
	stop   context.CancelFunc // ends life, and with it running rebases; they are undone
	notes  []string           // what a user should know about how it was opened

	reclaimed <-chan struct{}                // closed when the reclaimer has ended; nil when there was none
	probed    func() (source.Copying, error) // what the file system can do, found out once
}

// sessionOptions say how a tree is opened.
type sessionOptions struct {
	Source     string
	Mountpoint string // where it is to be mounted; empty: where it was last
	Store      string // empty: the tree's place under the user's state directory
	ReadOnly   bool   // change nothing in the tree, and do not own it
	Verify     qemu.Verify
	LimitRate  int64 // bytes a second; 0 for no limit
	Log        *slog.Logger

	// Deferral says what is left to the reclaimer; nil does all at once.
	Deferral *chain.Deferral

	OpenStore func(dir, treeID string, log *slog.Logger) (*store.Store, error)
}

// openSession opens the tree and its store, in this order: the tree has the id
// that names the store, and its lock keeps others from recovering in between.
func openSession(opts sessionOptions) (*session, error) {
	src, err := source.Open(opts.Source, source.Options{ReadOnly: opts.ReadOnly, Mountpoint: opts.Mountpoint})
	if err != nil {
		return nil, err
	}
	s := &session{source: src, probed: sync.OnceValues(src.Probe)}
	s.life, s.stop = context.WithCancel(context.Background())
	if err := s.openStore(opts); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := s.configure(opts); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *session) openStore(opts sessionOptions) (err error) {
	dir := opts.Store
	if dir == "" {
		dir = defaultStore(s.source.ID())
	}
	if err := outside(dir, opts.Source, opts.Mountpoint); err != nil {
		return err
	}
	s.store, err = opts.OpenStore(dir, s.source.ID(), opts.Log)
	return err
}

// configure puts the parts together.
func (s *session) configure(opts sessionOptions) error {
	mountpoint, err := s.mountpoint(opts.Mountpoint)
	if err != nil {
		return err
	}
	step, err := failpoint()
	if err != nil {
		return err
	}
	real, err := filepath.EvalSymlinks(s.source.String())
	if err != nil {
		return err
	}
	s.config = chain.Config{
		Files:     s.source,
		Inspector: qemu.Inspector{},
		Rebaser: stoppable{s.life, qemu.NewRebaser(s.source, qemu.Options{
			Mountpoint: mountpoint, Source: real, Step: step,
			Verify: opts.Verify, Limit: opts.LimitRate, ByCopy: byCopy(), Copying: s.copying(opts),
		})},
		Index:    s.store,
		Journal:  s.store,
		Watchers: []chain.Watcher{qemu.NewLocks(s.source)},
		Log:      opts.Log,
		ReadOnly: opts.ReadOnly,
		Deferral: opts.Deferral,
		Step:     step,

		ImageChecker: qemu.NewImages(s.source),
	}
	return nil
}

// copying is what copies cost in the tree; nil where that was not found out, and is
// guessed.
func (s *session) copying(opts sessionOptions) *qemu.Copying {
	if opts.ReadOnly {
		return nil
	}
	c, err := s.probed()
	if err != nil {
		opts.Log.Warn("what copies cost is guessed by the type of the file system", "err", err)
		return nil
	}
	return &qemu.Copying{Shares: c.Shares, Server: c.Server}
}

// mountpoint is where absolute names in images may lead to: where the tree is
// about to be mounted, or was.
func (s *session) mountpoint(now string) (string, error) {
	if now != "" {
		return now, nil
	}
	last, err := s.store.Mountpoint()
	if err != nil || last == "" {
		return "", err
	}
	if err := s.source.AddMountpoint(last); err != nil {
		return "", err
	}
	if !isDir(last) {
		return "", nil // names below it are known, and qemu-img could not follow them anyway
	}
	return last, nil
}

// openChains recovers and scans.
func (s *session) openChains(ctx context.Context) (err error) {
	s.tree, err = chain.Open(ctx, s.config)
	return err
}

// probe looks what the file system can do, so that nobody who asks has to wait for
// a NAS that hangs. Not to know it keeps nobody from anything.
func (s *session) probe() {
	can, err := s.probed()
	if err != nil {
		s.config.Log.Warn("what the file system can do is not known", "err", err)
		return
	}
	s.config.Log.Info(can.String())
}

// startReclaimer has what was deleted absorbed in the background until the
// session ends.
func (s *session) startReclaimer() {
	wait := s.tree.StartReclaimer(s.life)
	ended := make(chan struct{})
	go func() {
		wait()
		close(ended)
	}()
	s.reclaimed = ended
}

// awaitReclaimer waits until the reclaimer, which the session's end has stopped,
// is done with the tree and the store.
func (s *session) awaitReclaimer() error {
	if s.reclaimed == nil {
		return nil
	}
	select {
	case <-s.reclaimed:
		return nil
	case <-time.After(undoTime):
		return fmt.Errorf("the work on deleted images has not stopped within %s; the end of this process stops it, and the next mount goes on with it", undoTime)
	}
}

// Close gives the tree up. Nothing of the session may be running but the
// reclaimer. What works on in spite of all keeps tree and store open: they go with
// the process.
func (s *session) Close() error {
	s.stop()
	if err := s.awaitReclaimer(); err != nil {
		return err
	}
	var errs []error
	if s.store != nil {
		errs = append(errs, s.store.Close())
	}
	return errors.Join(append(errs, s.source.Close())...)
}

// stoppable is a Rebaser whose work also ends when the session does.
type stoppable struct {
	life context.Context
	chain.Rebaser
}

func (r stoppable) Rebase(ctx context.Context, job chain.RebaseJob, progress func(done, total int64)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(r.life, cancel)()
	return r.Rebaser.Rebase(ctx, job, progress)
}

func (r stoppable) MergeDown(ctx context.Context, job chain.MergeJob, progress func(done, total int64)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(r.life, cancel)()
	return r.Rebaser.MergeDown(ctx, job, progress)
}

// defaultStore is where the store of a tree is unless it is named.
func defaultStore(treeID string) string {
	if os.Geteuid() == 0 {
		return filepath.Join("/var/lib/chainfs", treeID)
	}
	state := os.Getenv("XDG_STATE_HOME")
	if state == "" {
		state = filepath.Join(os.Getenv("HOME"), ".local/state")
	}
	return filepath.Join(state, "chainfs", treeID)
}

// outside refuses a store that is in the tree or in its mount: it would be
// backed up, deleted and waited for together with what it describes.
func outside(store, tree, mountpoint string) error {
	real := realPath(store)
	for _, dir := range []string{tree, mountpoint} {
		if dir != "" && within(real, realPath(dir)) {
			return fmt.Errorf("the store %s is inside %s; choose a directory on a local disk (--store)", store, dir)
		}
	}
	return nil
}

// createStore opens a store and makes it where there is none.
func createStore(dir, treeID string, log *slog.Logger) (*store.Store, error) {
	return store.Open(dir, store.Options{TreeID: treeID, Logger: log})
}

// forgetfulStore is for what must not write anywhere.
func forgetfulStore(_, treeID string, log *slog.Logger) (*store.Store, error) {
	return store.OpenInMemory(store.Options{TreeID: treeID, Logger: log})
}
