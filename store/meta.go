package store

import (
	"errors"
	"fmt"
	"strconv"
)

// schema is the version of the layout in doc.go.
const schema = 1

// claim checks that the store has our layout and belongs to the tree, and makes
// a new store the tree's.
func (s *Store) claim(treeID string) error {
	version, err := s.get(schemaKey)
	if err != nil {
		return err
	}
	if version == nil {
		return s.found(treeID)
	}
	n, err := strconv.Atoi(string(version))
	if err != nil {
		return damaged(s.dir, fmt.Errorf("its schema version is %q", version))
	}
	if n > schema {
		return fmt.Errorf("store %s has schema version %d and this chainfs knows %d: use a newer chainfs", s.dir, n, schema)
	}
	tree, err := s.get(treeKey)
	if err != nil {
		return err
	}
	if treeID != "" && string(tree) != treeID {
		return fmt.Errorf("store %s belongs to tree %s, not to tree %s", s.dir, tree, treeID)
	}
	return nil
}

// found starts a store. One that has other keys but no schema is not new.
func (s *Store) found(treeID string) error {
	if treeID == "" && s.dir != "" {
		return fmt.Errorf("there is no store in %s", s.dir)
	}
	some := false
	if err := s.keys("", func(string) { some = true }); err != nil {
		return err
	}
	if some {
		return damaged(s.dir, errors.New("it has no schema version"))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.commit([]change{
		{schemaKey, []byte(strconv.Itoa(schema))},
		{treeKey, []byte(treeID)},
	})
}

// TreeID is the tree the store belongs to.
func (s *Store) TreeID() (string, error) {
	id, err := s.get(treeKey)
	return string(id), err
}

// Mountpoint is where the tree was last mounted, empty when it never was.
func (s *Store) Mountpoint() (string, error) {
	dir, err := s.get(mountpointKey)
	return string(dir), err
}

// SetMountpoint stores where the tree is mounted.
func (s *Store) SetMountpoint(dir string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.commit([]change{{mountpointKey, []byte(dir)}})
}
