package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/chainfs/chainfs/chain"
)

// A plan does not change while it is carried out, and it can be far larger than
// a transaction: deleting a tree of images has a step for each. So it is stored
// once, in pieces, and the operation's record names it by its sum.

// planSum starts the SHA-256 of a plan's JSON.
type planSum [8]byte

// MarshalText makes the sum readable in JSON.
func (p planSum) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(p[:])), nil }

// UnmarshalText reads what MarshalText writes.
func (p *planSum) UnmarshalText(text []byte) error {
	raw, err := hex.DecodeString(string(text))
	if err != nil || len(raw) != len(p) {
		return fmt.Errorf("plan sum %q is not %d hexadecimal digits", text, 2*len(p))
	}
	copy(p[:], raw)
	return nil
}

func sumOf(data []byte) planSum {
	sum := sha256.Sum256(data)
	return planSum(sum[:])
}

// planPieces cuts a plan's JSON.
func planPieces(id chain.OpID, data []byte) []change {
	var pieces []change
	prefix := planKey(id, sumOf(data))
	for len(data) > 0 {
		n := min(len(data), maxPiece)
		pieces = append(pieces, change{pieceKey(prefix, len(pieces)), data[:n]})
		data = data[n:]
	}
	return pieces
}

// plan puts a plan together again. One that is not there in full is damage.
func (s *Store) plan(id chain.OpID, sum planSum) (chain.Plan, error) {
	var p chain.Plan
	var data bytes.Buffer
	err := s.each(planKey(id, sum), "", func(_ string, piece []byte) error {
		data.Write(piece)
		return nil
	})
	if err != nil {
		return p, err
	}
	if sumOf(data.Bytes()) != sum {
		return p, fmt.Errorf("the plan of operation %s is not there in full", id)
	}
	return p, json.Unmarshal(data.Bytes(), &p)
}
