package store

import (
	"errors"
	"fmt"

	"github.com/dgraph-io/badger/v4"
)

// change is a key to be set, or with a nil value to be deleted.
type change struct {
	key   string
	value []byte
}

// commit makes changes durable, in one transaction where Badger lets it. last
// are those that make the others count.
//
// Where they are too many, everything but last goes first, in several
// transactions. A crash in between leaves an index that is part old and part
// new. That is safe: a record is trusted only where the tree still agrees with
// it, and the operation is still unfinished in the journal, so that recovery
// runs its steps again. Called with mu held.
func (s *Store) commit(changes []change, last ...change) error {
	if s.broken != nil {
		return fmt.Errorf("store %s takes no writes until it is opened again, because one failed: %w", s.dir, s.broken)
	}
	if err := s.room(); err != nil {
		return err
	}
	err := s.commitOnce(append(changes[:len(changes):len(changes)], last...))
	if !errors.Is(err, badger.ErrTxnTooBig) {
		return err
	}
	if err := s.commitInParts(changes); err != nil {
		return err
	}
	if len(last) == 0 {
		return nil
	}
	// COMMIT POINT: until this transaction what went before does not count.
	return s.commitOnce(last)
}

func (s *Store) commitOnce(changes []change) error {
	txn := s.db.NewTransaction(true)
	defer txn.Discard()
	for _, c := range changes {
		if err := c.apply(txn); err != nil {
			return err
		}
	}
	return s.failed(txn.Commit())
}

// failed notes a write that failed on the disk. After it the kernel may answer
// success to the next sync, while the log has a hole where the failed write
// should be: what is written behind the hole is not found at the next start.
func (s *Store) failed(err error) error {
	if s.broken == nil {
		s.broken = err
	}
	return err
}

func (s *Store) commitInParts(changes []change) error {
	const checkEvery = 1000 // changes between two looks at the free space
	batch := s.db.NewWriteBatch()
	defer batch.Cancel()
	for i, c := range changes {
		if i%checkEvery == 0 {
			if err := s.room(); err != nil {
				return err
			}
		}
		if err := c.apply(batch); err != nil { // may come from a transaction before
			return s.failed(err)
		}
	}
	return s.failed(batch.Flush())
}

// writer is what a transaction and a batch have in common.
type writer interface {
	Set(key, value []byte) error
	Delete(key []byte) error
}

func (c change) apply(w writer) error {
	if c.value == nil {
		return w.Delete([]byte(c.key))
	}
	return w.Set([]byte(c.key), c.value)
}
