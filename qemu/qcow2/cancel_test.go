package qcow2

import (
	"bytes"
	"context"
	"errors"
	"testing"
)

// Who cancels waits. While clusters are stored nothing is synced and no table is
// read after that: what was stored is cut off.
func TestCancelInStoreTakesNoTime(t *testing.T) {
	all := scenes(t, dice(t))
	cancelled := 0
	for i := range all {
		s := &all[i]
		d := &disk{data: append([]byte{}, s.child...)}
		ctx, cancel := context.WithCancel(context.Background())
		j := s.job(t, d, true)
		j.Progress = func(done, _ int64) {
			if done > 0 && ctx.Err() == nil {
				cancel()
				d.log, d.fail = nil, func(call string) error {
					if call == "read" || call == "sync" {
						return errors.New(call + " after the end")
					}
					return nil
				}
			}
		}
		_, err := Absorb(ctx, j)
		if ctx.Err() == nil { // it had nothing to move
			cancel()
			continue
		}
		cancelled++
		if !errors.Is(err, context.Canceled) || err.Error() != context.Canceled.Error() {
			t.Errorf("%s: got error %v", s.name, err)
		}
		if n := len(d.log); n == 0 || d.log[n-1].data != nil || d.log[n-1].sync {
			t.Errorf("%s: the file was not cut off at last", s.name)
		}
		if d.fail = nil; len(d.data) != len(s.child) {
			t.Errorf("%s: the file has %d bytes, had %d", s.name, len(d.data), len(s.child))
		}
		s.sound(t, d.data, false)
	}
	if cancelled == 0 {
		t.Error("nothing was cancelled")
	}
}

// void takes everything and keeps nothing.
type void struct {
	File
	syncs int
}

func (v *void) Size() (int64, error)                                   { return 1 << 40, nil }
func (v *void) ReadAt(p []byte, _ int64) (int, error)                  { return len(p), nil }
func (v *void) WriteAt(p []byte, _ int64) (int, error)                 { return len(p), nil }
func (v *void) CopyRange(_ int64, _ Source, _, n int64) (int64, error) { return n, nil }
func (v *void) Sync() error                                            { v.syncs++; return nil }

// A sync cannot be cancelled, so it never has much to do.
func TestCopierBoundsWhatIsUnsynced(t *testing.T) {
	for _, c := range []struct {
		unmoved, byHand bool
		want            int
	}{{false, false, 10}, {true, false, 0}, {true, true, 10}} {
		v := &void{}
		im, err := OpenRaw(v)
		if err != nil {
			t.Fatal(err)
		}
		k := &copier{file: v, byHand: c.byHand, pace: pace{unmoved: c.unmoved, progress: func(int64) {}}}
		if err := k.copy(context.Background(), im, copying{n: 10*maxUnsynced + 1}); err != nil {
			t.Fatal(err)
		}
		if v.syncs != c.want {
			t.Errorf("%+v: synced %d times", c, v.syncs)
		}
	}
}

// In the middle of a long run as well.
func TestCompareIsCancellable(t *testing.T) {
	v := bytes.NewReader(make([]byte, 1<<20))
	im, err := OpenRaw(sized{v})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	one := NewChain(im)
	if err := new(buffers).same(ctx, one, one, run{0, 1 << 20}); !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v", err)
	}
}

type sized struct{ *bytes.Reader }

func (s sized) Size() (int64, error) { return s.Reader.Size(), nil }

// evicted notes what is evicted.
type evicted struct {
	void
	calls int
	next  int64
	gap   bool
}

func (e *evicted) Evict(off, n int64) {
	e.gap = e.gap || off != e.next || n <= 0
	e.calls, e.next = e.calls+1, off+n
}

func TestEvictAllIsBounded(t *testing.T) {
	for _, n := range []int64{0, 1, 256 << 20, 256<<20 + 1, 1 << 40, 1<<63 - 1} {
		e := &evicted{}
		if err := evictAll(context.Background(), e, 0, n); err != nil || e.calls > 64 || e.gap || e.next != n {
			t.Errorf("%d bytes: %v, up to %d in %d calls, gap: %v", n, err, e.next, e.calls, e.gap)
		}
	}
}
