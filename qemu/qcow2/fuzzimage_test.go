package qcow2

import (
	"bytes"
	"compress/flate"
	"context"
	"errors"
	"io"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

var fuzzSets = sync.OnceValue(func() []imageSet { return allSets(fuzzTB) })

// fuzzTB is set by each target before it runs.
var fuzzTB testing.TB

// enough ends what is read from a file after a while: most hostile images could
// be looked at for years. What was started must then end soon.
type enough struct {
	Source
	left   int64 // bytes until cancel
	cancel func()
	tb     testing.TB
}

func (s *enough) ReadAt(p []byte, off int64) (int, error) {
	if s.left -= int64(len(p)); s.left < 0 {
		s.cancel()
	}
	if s.left < -256<<20 {
		s.tb.Fatal("goes on although it was cancelled")
	}
	return s.Source.ReadAt(p, off)
}

// sparseSource is a Source whose size is what it says.
type sparseSource struct{ sparse }

func (s sparseSource) Size() (int64, error) { return s.size, nil }

func FuzzOpen(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		src := &enough{sparseSource{sparse{b, max(size, int64(len(b)))}}, 64 << 20, cancel, t}
		if im, err := Open(src); err == nil {
			lookAt(ctx, t, im)
		}
		runtime.ReadMemStats(&after)
		// A block of tables is 64 KiB for each that is read.
		if n := after.TotalAlloc - before.TotalAlloc; n > 768<<20 {
			t.Errorf("%d MiB were allocated", n>>20)
		}
	})
}

var errEnough = errors.New("enough")

func lookAt(ctx context.Context, t *testing.T, im *Image) {
	if _, err := Check(ctx, im.src); err == nil && im.fileSize > maxFileSize {
		t.Error("checked a file that is too large")
	}
	_, _ = Measure(ctx, im, []*Image{im}, nil)
	if ctx.Err() != nil {
		return
	}
	n := 0
	_ = NewChain(im, im).Map(0, im.VirtualSize(), func(Extent) error {
		if n++; n > 10 || ctx.Err() != nil {
			return errEnough
		}
		return nil
	})
}

// layersOf are the layers of a set that a patch has spoilt; nil when there is
// nothing to be looked at.
func layersOf(t *testing.T, set byte, patch []byte) []*Image {
	sets := fuzzSets()
	s := sets[int(set)%len(sets)]
	return s.chain(s.spoil(patch))
}

func FuzzMap(f *testing.F) {
	fuzzTB = f
	f.Fuzz(func(t *testing.T, set byte, patch []byte, flags byte, off, n int64) {
		layers := layersOf(t, set, patch)
		if len(layers) == 0 || off < 0 || n < 0 {
			return
		}
		c := NewChain(layers...)
		at, end := off, off+min(n, 1<<63-1-off)
		err := c.Map(off, n, func(e Extent) error {
			checkExtent(t, layers, e)
			if e.Start != at || e.End() > end {
				t.Fatalf("got %+v, want one that starts at %d and ends before %d", e, at, end)
			}
			at = e.End()
			if at-off > 16<<20 {
				return errEnough
			}
			return nil
		})
		if err == nil && at != end {
			t.Errorf("the map ends at %d, want %d", at, end)
		}
	})
}

func checkExtent(t *testing.T, layers []*Image, e Extent) {
	switch {
	case e.Length <= 0, e.Layer < -1, e.Layer >= len(layers), (e.Layer < 0) != (e.Kind == Absent):
		t.Fatalf("got %+v", e)
	case e.Kind != Data && e.Kind != Compressed:
		return
	}
	if im := layers[e.Layer]; e.Host < 0 || e.Host >= im.fileSize && e.Kind == Compressed ||
		im.header != nil && e.Host-e.Start%im.cluster() >= im.fileSize || e.Start >= im.virtual {
		t.Fatalf("got %+v from a file of %d bytes", e, im.fileSize)
	}
}

func FuzzRead(f *testing.F) {
	fuzzTB = f
	f.Fuzz(func(t *testing.T, set byte, patch []byte, flags byte, off, n int64) {
		layers := layersOf(t, set, patch)
		if len(layers) == 0 || off < 0 || off > 1<<62 {
			return
		}
		n = n & (1<<14 - 1)
		whole, err := readChain(layers, off, n)
		parts, partsErr := readInParts(layers, off, n, 1+int64(flags)*37)
		mapped, mapErr := readMapped(layers, off, n)
		if (err == nil) != (partsErr == nil) || (err == nil) != (mapErr == nil) {
			t.Fatalf("got %v in one piece, %v in parts, %v by the map", err, partsErr, mapErr)
		}
		if err != nil {
			return
		}
		if !bytes.Equal(whole, parts) {
			t.Error("reads differently in parts")
		}
		if !bytes.Equal(whole, mapped) {
			t.Error("reads differently by the map")
		}
	})
}

func readChain(layers []*Image, off, n int64) ([]byte, error) {
	p := bytes.Repeat([]byte{0xee}, int(n))
	_, err := NewChain(layers...).ReadAt(p, off)
	return p, err
}

// readInParts goes on after an error: none must hide in what was read before.
func readInParts(layers []*Image, off, n, part int64) (p []byte, err error) {
	c := NewChain(layers...)
	p = bytes.Repeat([]byte{0xee}, int(n))
	for at := int64(0); at < n; at += part {
		if _, e := c.ReadAt(p[at:min(at+part, n)], off+at); e != nil {
			err = e
		}
	}
	return p, err
}

// readMapped reads what the map says, by other means than ReadAt.
func readMapped(layers []*Image, off, n int64) ([]byte, error) {
	var p []byte
	err := NewChain(layers...).Map(off, n, func(e Extent) error {
		b := make([]byte, e.Length)
		switch e.Kind {
		case Data:
			_, _ = layers[e.Layer].src.ReadAt(b, e.Host) // zeros behind the end
		case Compressed:
			im := layers[e.Layer]
			data, err := inflateOther(im, e)
			if err != nil {
				return err
			}
			copy(b, data[e.Start%im.cluster():])
		}
		p = append(p, b...)
		return nil
	})
	return p, err
}

func inflateOther(im *Image, e Extent) ([]byte, error) {
	packed := make([]byte, e.Packed)
	_, _ = im.src.ReadAt(packed, e.Host)
	r := flate.NewReader(bytes.NewReader(packed))
	if im.header.CompressionType == 1 {
		z, err := zstd.NewReader(bytes.NewReader(packed), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		defer z.Close()
		r = z.IOReadCloser()
	}
	data := make([]byte, im.cluster())
	_, err := io.ReadFull(r, data)
	return data, err
}
