package store

import (
	"encoding/binary"
	"fmt"

	"github.com/chainfs/chainfs/chain"
)

// Prefixes of keys, see doc.go.
const (
	metaPrefix  = "m/"
	imagePrefix = "i/"
	opPrefix    = "o/"
	planPrefix  = "p/"
	plainPrefix = "x/"
)

// Keys of single values.
const (
	schemaKey     = metaPrefix + "schema"
	treeKey       = metaPrefix + "tree"
	mountpointKey = metaPrefix + "mountpoint"
	nextImageKey  = metaPrefix + "next-image"
	nextOpKey     = metaPrefix + "next-op"
)

// maxPiece is the largest piece of a value that is kept in pieces, in bytes:
// small beside a transaction and beside Badger's threshold for its value log.
const maxPiece = 64 << 10

func imageKey(id chain.ImageID) string { return string(idKey(imagePrefix, uint64(id))) }
func opKey(id chain.OpID) string       { return string(idKey(opPrefix, uint64(id))) }

func idKey(prefix string, id uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte(prefix), id)
}

// keyID is the id in an image's or an operation's key.
func keyID(key string) (uint64, error) {
	if len(key) != 2+8 {
		return 0, fmt.Errorf("key %q has %d bytes", key, len(key))
	}
	return binary.BigEndian.Uint64([]byte(key[2:])), nil
}

// planKey starts the keys of a plan's pieces.
func planKey(id chain.OpID, sum planSum) string {
	return string(append(idKey(planPrefix, uint64(id)), sum[:]...))
}

func pieceKey(prefix string, n int) string {
	return string(binary.BigEndian.AppendUint32([]byte(prefix), uint32(n)))
}
