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
	host int64  // guarded by mu; 0 for none, where the header is
	data []byte // guarded by mu; never changed once it is here
}

// readCompressed reads a part of a compressed cluster.
func (im *Image) readCompressed(p []byte, e Extent) error {
	data, err := im.inflate(e.Host, e.Packed)
	if err != nil {
		return err
	}
	copy(p, data[e.Start%im.cluster():])
	return nil
}

// inflate decompresses the cluster whose n bytes lie at host.
func (im *Image) inflate(host, n int64) ([]byte, error) {
	im.inflated.mu.Lock()
	if im.inflated.host == host && host != 0 {
		defer im.inflated.mu.Unlock()
		return im.inflated.data, nil
	}
	im.inflated.mu.Unlock()
	packed := make([]byte, n)
	if err := im.readData(packed, host); err != nil {
		return nil, err
	}
	data := make([]byte, im.cluster())
	if err := im.decompress(data, packed); err != nil {
		return nil, fmt.Errorf("%w (at %#x)", err, host)
	}
	im.inflated.mu.Lock()
	defer im.inflated.mu.Unlock()
	im.inflated.host, im.inflated.data = host, data
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
