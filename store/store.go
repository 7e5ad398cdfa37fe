package store

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/chainfs/chainfs/chain"
)

// Options say which store is opened.
type Options struct {
	// TreeID is the tree the store must belong to. Empty takes any store, for
	// tools that look at a store without its tree; such a store must exist.
	TreeID string

	// Logger gets what Badger has to say. Nil is slog.Default.
	Logger *slog.Logger
}

// Store is an open store. Its methods may be called concurrently, Close last.
type Store struct {
	dir string // empty in memory
	db  *badger.DB
	log *slog.Logger

	mu     sync.Mutex // held by every call that writes
	broken error      // guarded by mu; the first write that failed on the disk
	images lease      // guarded by mu
	ops    lease      // guarded by mu
	kept   int        // guarded by mu; operations in the store
	oldest uint64     // guarded by mu; no operation that has ended has a lower id
}

var (
	_ chain.Index   = (*Store)(nil)
	_ chain.Journal = (*Store)(nil)
)

// Open opens the store in dir, and creates it where there is none.
func Open(dir string, opts Options) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if err := checkSpace(dir); err != nil {
		return nil, err
	}
	return open(dir, badgerOptions(dir), opts)
}

// OpenInMemory is a store that is gone with the process: for read-only mounts,
// which have nothing to journal, and for tests.
func OpenInMemory(opts Options) (*Store, error) {
	return open("", badgerOptions("").WithInMemory(true), opts)
}

func open(dir string, how badger.Options, opts Options) (*Store, error) {
	s := &Store{dir: dir, log: opts.Logger}
	if s.log == nil {
		s.log = slog.Default()
	}
	db, err := openBadger(how, s.log)
	if err != nil {
		return nil, openError(dir, err)
	}
	s.db = db
	if err := s.load(opts.TreeID); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return s, nil
}

// load checks that the store is ours, then reads what is kept in memory.
func (s *Store) load(treeID string) error {
	// Without this a block that cannot be read ends an iteration early and
	// without an error: an operation would be forgotten.
	if err := calmly(s.db.VerifyChecksum); err != nil {
		return damaged(s.dir, err)
	}
	if err := s.claim(treeID); err != nil {
		return err
	}
	if err := s.loadLeases(); err != nil {
		return err
	}
	return s.loadHistory()
}

// Close gives unused ids back and closes the store.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.returnLeases()
	return errors.Join(err, s.closeBadger())
}

// closeLimit is how long a store is waited for whose disk has failed.
const closeLimit = 3 * time.Second

// closeBadger does not wait for ever: on a dead disk Badger tries again without
// end to write what it has in memory. All that was acknowledged is in its log.
func (s *Store) closeBadger() error {
	if s.broken == nil {
		return s.db.Close()
	}
	done := make(chan error, 1)
	go func() { done <- s.db.Close() }()
	select {
	case err := <-done:
		return err
	case <-time.After(closeLimit):
		return fmt.Errorf("store %s: its disk failed and it cannot be closed before this process ends: %w", s.dir, s.broken)
	}
}
