package store

import (
	"errors"

	"github.com/dgraph-io/badger/v4"
)

// get is a key's value, nil when there is none.
func (s *Store) get(key string) (value []byte, err error) {
	err = s.db.View(func(txn *badger.Txn) error {
		item, err := txn.Get([]byte(key))
		if errors.Is(err, badger.ErrKeyNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		value, err = item.ValueCopy(nil)
		return err
	})
	return value, err
}

// each calls f for every key with the prefix, in order, from the key from on
// where that is not empty. The value is good only until f returns.
func (s *Store) each(prefix, from string, f func(key string, value []byte) error) error {
	return s.db.View(func(txn *badger.Txn) error {
		opts := badger.DefaultIteratorOptions
		opts.Prefix = []byte(prefix)
		opts.PrefetchSize = 16
		it := txn.NewIterator(opts)
		defer it.Close()
		for it.Seek([]byte(max(prefix, from))); it.Valid(); it.Next() {
			item := it.Item()
			err := item.Value(func(value []byte) error { return f(string(item.Key()), value) })
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// keys calls f for every key with the prefix, in order, without reading values.
func (s *Store) keys(prefix string, f func(key string)) error {
	return s.db.View(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte(prefix)})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			f(string(it.Item().Key()))
		}
		return nil
	})
}
