package qcow2

import (
	"bytes"
	"compress/flate"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// memoryBound is what a process may use, with everything: 256 layers, or one
// image that is checked.
const memoryBound = 256 << 20

const memoryCaseEnv = "QCOW2_TEST_MEMORY_CASE"

// Each case is a process of its own, whose highest use of memory the kernel tells.
func TestHostileImagesStayInMemory(t *testing.T) {
	if name := os.Getenv(memoryCaseEnv); name != "" {
		memoryCases[name](t)
		reportPeak(t)
		return
	}
	for name := range memoryCases {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestHostileImagesStayInMemory$", "-test.v")
			cmd.Env = append(os.Environ(), memoryCaseEnv+"="+name)
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), "--- PASS") {
				t.Fatalf("%v\n%.4000s", err, out)
			}
			peak := readPeak(t, string(out))
			t.Logf("%d MiB", peak>>20)
			if peak > memoryBound {
				t.Errorf("%d MiB were used, at most %d are good", peak>>20, memoryBound>>20)
			}
		})
	}
}

// reportPeak prints the highest memory use of this process. getrusage would tell
// that of the parent, from between fork and exec, where that is larger.
func reportPeak(t *testing.T) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, peak, ok := strings.Cut(string(b), "VmHWM:")
	if !ok {
		t.Fatal("the kernel tells no VmHWM")
	}
	peak, _, _ = strings.Cut(peak, "kB")
	t.Logf("peak %s kB", strings.TrimSpace(peak))
}

func readPeak(t *testing.T, out string) int64 {
	t.Helper()
	_, peak, _ := strings.Cut(out, "peak ")
	var kib int64
	if _, err := fmt.Sscan(peak, &kib); err != nil {
		t.Fatalf("no peak in %.4000s", out)
	}
	return kib << 10
}

// confine has garbage collected before it counts, and a case that wants all
// there is end before the machine does.
func confine(t *testing.T) {
	debug.SetMemoryLimit(memoryBound * 3 / 4)
	limit := unix.Rlimit{Cur: 4 << 30, Max: 4 << 30}
	if err := unix.Setrlimit(unix.RLIMIT_DATA, &limit); err != nil {
		t.Fatal(err)
	}
}

// madeUp is an image whose tables are made as they are read.
type madeUp struct {
	head []byte
	size int64
	word func(off int64) uint64 // the 8 bytes at off, behind head
}

func (s *madeUp) Size() (int64, error) { return s.size, nil }

func (s *madeUp) ReadAt(p []byte, off int64) (int, error) {
	var b [8]byte
	for n := 0; n < len(p); {
		at := off + int64(n)
		binary.BigEndian.PutUint64(b[:], s.word(at&^7))
		n += copy(p[n:], b[at&7:])
	}
	if off < int64(len(s.head)) {
		copy(p, s.head[off:])
	}
	return len(p), nil
}

// A File, for Reclaim: what is written is lost.
func (s *madeUp) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
func (s *madeUp) Truncate(int64) error                   { return nil }
func (s *madeUp) Sync() error                            { return nil }
func (s *madeUp) CopyRange(int64, Source, int64, int64) (int64, error) {
	return 0, unix.EXDEV
}

// Where a madeUp image has its tables.
const (
	madeL1  = 64 << 20
	madeRef = 128 << 20
	madeEnd = 192 << 20 // all else is behind
)

// newMadeUp has the largest L1 and refcount tables that there are.
func newMadeUp(clusterBits int, word func(off int64) uint64) *madeUp {
	d := make(draft, 512)
	copy(d, Magic)
	d.u32(4, 3)
	d.u32(20, uint32(clusterBits))
	d.u64(24, min(uint64(1)<<(19+2*clusterBits), 1<<60))
	d.u32(36, maxL1Bytes/8)
	d.u64(40, madeL1)
	d.u64(48, madeRef)
	d.u32(56, uint32(maxRefcountBytes>>clusterBits))
	d.u32(96, 4)
	d.u32(100, 104)
	return &madeUp{d, 1 << 60, word}
}

func isL1(off int64) bool  { return off >= madeL1 && off < madeL1+maxL1Bytes }
func isRef(off int64) bool { return off >= madeRef && off < madeRef+maxRefcountBytes }

// until ends a case after so many bytes were read.
func until(t *testing.T, src Source, bytes int64) (Source, context.Context) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	t.Cleanup(cancel)
	return &enough{src, bytes, cancel, t}, ctx
}

var memoryCases = map[string]func(t *testing.T){
	"256 layers of one table each": func(t *testing.T) {
		readLayers(t, func(int) *madeUp {
			return newMadeUp(16, func(off int64) uint64 {
				if isL1(off) {
					return madeEnd | flagCopied
				}
				return 0
			})
		})
	},
	"256 layers with all tables": func(t *testing.T) {
		readLayers(t, func(layer int) *madeUp {
			return newMadeUp(16, func(off int64) uint64 {
				if isL1(off) {
					return uint64(madeEnd+(off-madeL1)/8<<16) | flagCopied
				}
				return uint64(off>>3%256) / uint64(255-layer+1) * (madeEnd + 1<<50) // more data in each layer
			})
		})
	},
	"256 layers of large compressed clusters": readCompressedLayers,
	"256 headers full of extensions": func(t *testing.T) {
		confine(t)
		var all []*Header
		for range 256 {
			src := newMadeUp(21, func(off int64) uint64 { return 0x11111111 << 32 })
			src.head = src.head[:104]
			h, err := ReadHeader(src, src.size)
			if err == nil {
				t.Fatal("accepted")
			}
			all = append(all, h)
		}
		if len(all[0].Extensions) == 0 {
			t.Error("no extensions")
		}
	},
	"entries far apart": func(t *testing.T) {
		checkOne(t, newMadeUp(9, func(off int64) uint64 {
			switch {
			case isRef(off):
				return 0
			case isL1(off):
				return uint64(madeEnd+(off-madeL1)/8<<9) | flagCopied
			}
			return uint64(off*1<<16)&(1<<55-1)&^511 | flagCopied
		}))
	},
	"entries far apart in few tables": func(t *testing.T) {
		checkOne(t, newMadeUp(9, func(off int64) uint64 {
			switch {
			case isRef(off), isL1(off) && off >= madeL1+8<<16:
				return 0
			case isL1(off):
				return uint64(madeEnd+(off-madeL1)/8<<9) | flagCopied
			}
			return uint64(off*1<<16)&(1<<55-1)&^511 | flagCopied
		}))
	},
	"tables far apart": func(t *testing.T) {
		checkOne(t, newMadeUp(9, func(off int64) uint64 {
			if isL1(off) {
				return uint64(madeEnd+(off-madeL1)/8<<9<<4) | flagCopied
			}
			return 0
		}))
	},
	"all refcount blocks": func(t *testing.T) {
		checkOne(t, newMadeUp(21, func(off int64) uint64 {
			if isRef(off) {
				return uint64(madeEnd + (off-madeRef)/8<<21)
			}
			return 0
		}))
	},
	"millions of tables": func(t *testing.T) {
		checkOne(t, newMadeUp(9, func(off int64) uint64 {
			switch {
			case isRef(off):
				return uint64(madeEnd + 1<<40 + (off-madeRef)/8<<9)
			case isL1(off):
				return uint64(madeEnd + (off-madeL1)/8<<9)
			}
			return 0
		}))
	},
	"one table in millions of places": func(t *testing.T) {
		checkOne(t, newMadeUp(21, func(off int64) uint64 {
			if isL1(off) {
				return madeEnd | flagCopied
			}
			return 0
		}))
	},
	"65536 snapshots": func(t *testing.T) {
		src := newMadeUp(16, nil)
		draft(src.head).u32(60, maxSnapshots)
		draft(src.head).u64(64, madeEnd)
		src.word = func(off int64) uint64 {
			switch at := off - madeEnd; {
			case isL1(off):
				return madeEnd + 1<<30 + uint64(off-madeL1)/8<<16
			case at >= 0 && at < maxSnapshots*40 && at%40 == 0:
				return madeL1
			case at >= 0 && at < maxSnapshots*40 && at%40 == 8:
				return maxL1Bytes / 8 << 32
			}
			return 0
		}
		checkOne(t, src)
	},
	"file of 8 EiB": func(t *testing.T) {
		src := newMadeUp(16, func(int64) uint64 { return 0 })
		src.size = 1<<63 - 1
		checkOne(t, src)
		im, err := OpenRaw(src)
		if err != nil {
			t.Fatal(err)
		}
		lookAt(context.Background(), t, im)
	},
	"counts to be given back": func(t *testing.T) {
		confine(t)
		src := newMadeUp(21, func(off int64) uint64 {
			if isRef(off) {
				return uint64(madeEnd + (off-madeRef)/8<<21)
			}
			if off >= madeEnd && off%(2<<20) == 0 {
				return 1
			}
			return 0
		})
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		counted := &enough{src, 600 << 20, cancel, t}
		im, err := Open(counted)
		if err != nil {
			t.Fatal(err)
		}
		r, err := openRefcounts(im)
		if err != nil {
			t.Fatal(err)
		}
		c := newCensus(ctx, im)
		c.again = make([]bool, r.entries())
		if err := c.free(src, r, 0); err == nil {
			t.Error("came to an end")
		}
	},
}

// readLayers reads and maps a chain of 256 layers here and there.
func readLayers(t *testing.T, layer func(i int) *madeUp) {
	confine(t)
	var layers []*Image
	for i := range 256 {
		im, err := Open(layer(i))
		if err != nil {
			t.Fatal(err)
		}
		layers = append(layers, im)
	}
	c, p := NewChain(layers...), make([]byte, 4096)
	for i := range int64(20) {
		if _, err := c.ReadAt(p, c.VirtualSize()/20*i); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	_ = c.Map(0, c.VirtualSize(), func(e Extent) error {
		if n++; n >= 2 {
			return errEnough
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Second) // it could go on for years
	defer cancel()
	_, _ = Measure(ctx, layers[0], layers[1:128], layers[128:])
}

// checkOne does all with an image that takes as long as it likes.
func checkOne(t *testing.T, src *madeUp) {
	confine(t)
	counted, ctx := until(t, src, 256<<20)
	im, err := Open(counted)
	if err != nil {
		if src.size <= maxFileSize {
			t.Fatal(err)
		}
		return
	}
	f, err := Check(ctx, counted)
	t.Logf("%d corruptions, %v", func() int {
		if f == nil {
			return -1
		}
		return f.CorruptionCount
	}(), err)
	lookAt(ctx, t, im)
}

// readCompressedLayers has a cluster of 2 MiB in each layer, of a few KiB in the file.
func readCompressedLayers(t *testing.T) {
	confine(t)
	var packed bytes.Buffer
	w, _ := flate.NewWriter(&packed, 9)
	_, _ = w.Write(make([]byte, 2<<20))
	_ = w.Close()
	packed.Write(make([]byte, 4096))
	const table, data = madeEnd, madeEnd + 2<<20
	var layers []*Image
	for i := range int64(256) {
		im, err := Open(newMadeUp(21, func(off int64) uint64 {
			switch at := off - data; {
			case off == madeL1:
				return table | flagCopied
			case off == table+i*8:
				return flagCompressed | 7<<49 | data
			case at >= 0 && at < int64(packed.Len())-8:
				return binary.BigEndian.Uint64(packed.Bytes()[at:])
			}
			return 0
		}))
		if err != nil {
			t.Fatal(err)
		}
		layers = append(layers, im)
	}
	c, p := NewChain(layers...), make([]byte, 4096)
	for i := range int64(256) {
		if e, err := c.Extent(i<<21, 4096); err != nil || e.Kind != Compressed || e.Layer != int(i) {
			t.Fatal(fmt.Sprint(e), err)
		}
		if _, err := c.ReadAt(p, i<<21); err != nil {
			t.Fatal(err)
		}
	}
}
