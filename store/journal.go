package store

import (
	"encoding/json"
	"fmt"

	"github.com/chainfs/chainfs/chain"
)

// operationRecord is an operation as it is stored. Its plan is kept apart.
type operationRecord struct {
	chain.Operation         // with an empty plan
	Sum             planSum `json:"plan_sum"`
}

// Record stores an operation as it is now.
func (s *Store) Record(op chain.Operation) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.record(op, nil); err != nil {
		return fmt.Errorf("journal operation %s: %w", op.ID, err)
	}
	return nil
}

// Finish stores an ended operation together with what it changed in the index:
// in one transaction, or where that is too large with the operation last.
func (s *Store) Finish(op chain.Operation, put []chain.Image, remove []chain.ImageID) error {
	changes, err := imageChanges(put, remove)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.record(op, changes); err != nil {
		return fmt.Errorf("journal the end of operation %s: %w", op.ID, err)
	}
	return nil
}

// record stores an operation and what goes with it. Called with mu held.
func (s *Store) record(op chain.Operation, with []change) error {
	old, known, err := s.head(op.ID)
	if err != nil {
		return err
	}
	plan, err := json.Marshal(op.Plan)
	if err != nil {
		return err
	}
	op.Plan = chain.Plan{}
	rec := operationRecord{op, sumOf(plan)}
	head, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	last := []change{{opKey(op.ID), head}}
	if !known || old.Sum != rec.Sum {
		with = append(with, planPieces(op.ID, plan)...)
	}
	if known && old.Sum != rec.Sum {
		if last, err = s.dropPlan(last, op.ID, old.Sum); err != nil {
			return err
		}
	}
	return s.commitHead(with, last, !known)
}

// commitHead commits, and makes room in the history for a new operation.
func (s *Store) commitHead(with, last []change, isNew bool) error {
	dropped := pruned{}
	if isNew && s.kept >= maxHistory {
		var err error
		if dropped, err = s.prune(s.kept + 1 - maxHistory); err != nil {
			return err
		}
	}
	if err := s.commit(with, append(last, dropped.changes...)...); err != nil {
		return err
	}
	if isNew {
		s.kept++
	}
	s.dropped(dropped)
	return nil
}

// head is an operation's record, and whether there is one.
func (s *Store) head(id chain.OpID) (rec operationRecord, known bool, err error) {
	value, err := s.get(opKey(id))
	if err != nil || value == nil {
		return rec, false, err
	}
	rec, err = decodeHead(opKey(id), value)
	return rec, true, err
}

func decodeHead(key string, value []byte) (operationRecord, error) {
	var rec operationRecord
	id, err := keyID(key)
	if err != nil {
		return rec, err
	}
	if err := json.Unmarshal(value, &rec); err != nil {
		return rec, fmt.Errorf("operation %d: %w", id, err)
	}
	if uint64(rec.ID) != id {
		return rec, fmt.Errorf("operation %s is stored as %d", rec.ID, id)
	}
	return rec, nil
}

// Operations lists operations, the oldest first; with running set only those
// that have not ended.
func (s *Store) Operations(running bool) ([]chain.Operation, error) {
	var heads []operationRecord
	err := s.each(opPrefix, "", func(key string, value []byte) error {
		rec, err := decodeHead(key, value)
		if err != nil {
			return damaged(s.dir, err)
		}
		if !running || rec.State.Running() {
			heads = append(heads, rec)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	ops := make([]chain.Operation, 0, len(heads))
	for _, rec := range heads {
		op, known, err := s.withPlan(rec)
		if err != nil {
			return nil, damaged(s.dir, err)
		}
		if known {
			ops = append(ops, op)
		}
	}
	return ops, nil
}

// maxChanges is how often an operation may be stored anew while it is read.
const maxChanges = 100

// withPlan reads an operation's plan. Between the two looks the operation may have
// been stored with another plan, or have made room for newer ones.
func (s *Store) withPlan(rec operationRecord) (op chain.Operation, known bool, err error) {
	for range maxChanges {
		op = rec.Operation
		if op.Plan, err = s.plan(op.ID, rec.Sum); err == nil {
			return op, true, nil
		}
		now, known, headErr := s.head(op.ID)
		switch {
		case headErr != nil:
			return op, false, headErr
		case !known:
			return op, false, nil
		case now.Sum == rec.Sum:
			return op, false, err // it is as it was, and not there in full
		}
		rec = now
	}
	return op, false, err
}
