package qcow2

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// breach is what goes wrong at one call.
type breach struct {
	call     string // read, write, copy, truncate, sync
	err      error
	absorbed bool // the engine goes on, and the absorb succeeds
	onwards  bool // every later call of any kind fails as well
}

var breaches = []breach{
	{call: "write", err: unix.EIO},
	{call: "write", err: unix.ENOSPC},
	{call: "write", err: short{unix.ENOSPC, 0.4}},
	{call: "write", err: short{unix.EINTR, 0.5}, absorbed: true},
	{call: "write", err: unix.EINTR, absorbed: true},
	{call: "write", err: short{nil, 0.3}, absorbed: true},
	{call: "write", err: unix.EIO, onwards: true},
	{call: "copy", err: unix.EIO},
	{call: "copy", err: unix.ENOSPC},
	{call: "copy", err: unix.EINTR, absorbed: true},
	{call: "copy", err: short{nil, 0.3}, absorbed: true},
	{call: "copy", err: short{nil, 0}, absorbed: true},
	{call: "copy", err: unix.EXDEV, absorbed: true},
	{call: "copy", err: unix.EINVAL, absorbed: true},
	{call: "copy", err: unix.ENOSYS, absorbed: true},
	{call: "copy", err: unix.EOPNOTSUPP, absorbed: true},
	{call: "truncate", err: unix.ENOSPC},
	{call: "truncate", err: unix.EFBIG},
	{call: "sync", err: unix.EIO},
	{call: "sync", err: unix.ENOSPC},
	{call: "sync", err: unix.EIO, onwards: true},
	{call: "read", err: unix.EIO},
}

// at names the breach at the n-th call.
func (f breach) at(n int) string { return fmt.Sprintf("%s %d: %v", f.call, n, f.err) }

// inject makes the n-th call of the fault's kind fail.
func (f breach) inject(d *disk, n int) {
	met, broken := 0, false
	d.fail = func(call string) error {
		if broken && f.onwards {
			return f.err
		}
		if call != f.call {
			return nil
		}
		if met++; met-1 == n {
			broken = true
			return f.err
		}
		return nil
	}
}

// TestCancel ends an absorb at each of its steps and in the middle of copying.
func TestCancel(t *testing.T) {
	all := scenes(t, dice(t))
	for i := range all {
		s := &all[i]
		for _, label := range Labels[:len(Labels)-1] {
			ctx, cancel := context.WithCancel(context.Background())
			d := &disk{data: append([]byte{}, s.child...)}
			j := s.job(t, d, true)
			met := false
			j.Step = func(l string) {
				if l == label {
					met = true
					cancel()
				}
			}
			_, err := Absorb(ctx, j)
			if !met { // there was nothing to be moved
				cancel()
				continue
			}
			if !errors.Is(err, context.Canceled) {
				t.Fatalf("%s: %s: got error %v", s.name, label, err)
			}
			if s.reads(t, d.data) {
				t.Fatalf("%s: %s: it was done", s.name, label)
			}
			s.sound(t, d.data, false)
		}
	}
}

// TestLimit: each byte that is moved was asked for before.
func TestLimit(t *testing.T) {
	all := scenes(t, dice(t))
	for i := range all {
		s := &all[i]
		d := &disk{data: append([]byte{}, s.child...)}
		j := s.job(t, d, false)
		var asked, last int64
		j.Limit = func(_ context.Context, n int64) error { asked += n; return nil }
		j.Progress = func(done, total int64) {
			if done > total || done < last || done > asked {
				t.Fatalf("%s: %d of %d bytes after %d, asked for %d", s.name, done, total, last, asked)
			}
			last = done
		}
		r, err := Absorb(context.Background(), j)
		if err != nil {
			t.Fatal(err)
		}
		if last != r.Bytes() || asked < last {
			t.Errorf("%s: %d bytes moved, %d told, %d asked for", s.name, r.Bytes(), last, asked)
		}
	}
}
