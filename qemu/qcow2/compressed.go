package qcow2

import (
	"bytes"
	"compress/flate"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// inflated keeps the cluster that was decompressed last: a guest's reads are
// smaller than a cluster, and come in order.
type inflated struct {
	mu   sync.Mutex
	key  inflatedKey // guarded by mu
	data []byte      // guarded by mu; nil for none; never changed once it is here
}

// inflatedKey has the length as well: of two entries with one place and different
// lengths one may be good and the other not.
type inflatedKey struct {
	im      *Image
	host, n int64
}

// cluster is the compressed cluster of im whose n bytes lie at host.
func (k *inflated) cluster(im *Image, host, n int64) ([]byte, error) {
	key := inflatedKey{im, host, n}
	k.mu.Lock()
	has, data := k.key, k.data
	k.mu.Unlock()
	if data != nil && has == key {
		return data, nil
	}
	data, err := im.inflate(host, n)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.key, k.data = key, data
	return data, nil
}

// inflate decompresses the cluster whose n bytes lie at host.
func (im *Image) inflate(host, n int64) ([]byte, error) {
	packed := make([]byte, n)
	if err := im.readData(packed, host); err != nil {
		return nil, err
	}
	data := make([]byte, im.cluster())
	if err := im.decompress(data, packed); err != nil {
		return nil, fmt.Errorf("%w (at %#x)", err, host)
	}
	return data, nil
}

// decompress fills data, exactly. What follows in packed belongs to others:
// QEMU stops when the cluster is full (block/qcow2-threads.c).
func (im *Image) decompress(data, packed []byte) error {
	if im.header.CompressionType == 0 {
		// A stream without zlib's header: inflateInit2(-12).
		return fill(data, flate.NewReader(bytes.NewReader(packed)))
	}
	// No more memory than a cluster's worth of window, whatever the frame asks for.
	r, err := zstd.NewReader(bytes.NewReader(packed), zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(maxWindow), zstd.WithDecoderLowmem(true))
	if err != nil {
		return corrupt("a compressed cluster cannot be decompressed: %v", err)
	}
	defer r.Close()
	return fill(data, r)
}

// maxWindow is above what any compressor asks for that knows that it compresses
// one cluster, of at most 2 MiB.
const maxWindow = 8 << 20

func fill(data []byte, r io.Reader) error {
	if _, err := io.ReadFull(r, data); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return corrupt("a compressed cluster cannot be decompressed: %v", err)
	}
	return nil
}
