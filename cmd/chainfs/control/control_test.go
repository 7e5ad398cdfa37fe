package control

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/chainfs/chainfs/chain"
)

// fake is a Service that answers what it is told to.
type fake struct {
	Service
	err       error
	cancelled chan struct{}
	removed   RemoveRequest
}

func (f *fake) Tree(context.Context, chain.Path) ([]chain.Info, error) {
	return []chain.Info{{Path: "a\xff", Kind: chain.Full}}, f.err
}

func (f *fake) Check(context.Context) ([]chain.Finding, error) { return []chain.Finding{}, f.err }

func (f *fake) Scan(context.Context) (chain.Report, error) { return chain.Report{Images: 7}, f.err }

func (f *fake) Remove(ctx context.Context, req RemoveRequest, report func(chain.Progress)) (Result, error) {
	f.removed = req
	if f.err != nil && !req.Force {
		return Result{}, f.err
	}
	report(chain.Progress{Op: 1, Done: 1, Total: 2})
	report(chain.Progress{Op: 1, Done: 2, Total: 2})
	if f.cancelled != nil {
		<-ctx.Done()
		close(f.cancelled)
		return Result{}, ctx.Err()
	}
	return Result{Freed: 5}, f.err
}

// open serves f at a socket and connects to it.
func open(t *testing.T, f *fake) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "run", "t.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: Handler(f, Status{Tree: "t"})}
	go server.Serve(l)
	t.Cleanup(func() {
		server.Close()
		if err := l.Release(); err != nil {
			t.Error(err)
		}
	})
	c, err := Dial(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestAnswers(t *testing.T) {
	f := &fake{}
	c := open(t, f)
	if c.Status().Tree != "t" {
		t.Errorf("status %+v", c.Status())
	}
	infos, err := c.Tree(context.Background(), "")
	if err != nil || len(infos) != 1 || infos[0].Path != "a\xff" || infos[0].Kind != chain.Full {
		t.Errorf("Tree = %+v, %v", infos, err)
	}
	report, err := c.Scan(context.Background())
	if err != nil || report.Images != 7 {
		t.Errorf("Scan = %+v, %v", report, err)
	}
	var progress []int64
	req := RemoveRequest{Paths: []chain.Path{"a", "b\xff"}}
	result, err := c.Remove(context.Background(), req, func(p chain.Progress) { progress = append(progress, p.Done) })
	if err != nil || result.Freed != 5 || !reflect.DeepEqual(progress, []int64{1, 2}) || !reflect.DeepEqual(f.removed, req) {
		t.Errorf("Remove = %+v, %v, progress %v, request %+v", result, err, progress, f.removed)
	}
}

// TestFailures: an error keeps its class and its text, before and in a stream.
func TestFailures(t *testing.T) {
	refused := chain.Refuse("a", "a is needed")
	tests := []struct {
		name string
		err  error
		same func(error) bool
	}{
		{"refused", refused, func(err error) bool {
			var r *chain.RefusedError
			return errors.As(err, &r) && reflect.DeepEqual(error(r), refused)
		}},
		{"not found", fs.ErrNotExist, func(err error) bool { return errors.Is(err, fs.ErrNotExist) }},
		{"bad request", BadRequest("no %d", 1), func(err error) bool { return err.Error() == "no 1" }},
		{"error", chain.ErrTreeGone, func(err error) bool { return err.Error() == chain.ErrTreeGone.Error() }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := open(t, &fake{err: tt.err})
			if _, err := c.Check(context.Background()); err == nil || !tt.same(err) {
				t.Errorf("Check: %v", err)
			}
			for _, streamed := range []bool{false, true} {
				_, err := c.Remove(context.Background(), RemoveRequest{Force: streamed}, nil)
				if err == nil || !tt.same(err) {
					t.Errorf("Remove, streamed %v: %v", streamed, err)
				}
			}
		})
	}
}

// TestCancel: a client that goes away cancels what it asked for.
func TestCancel(t *testing.T) {
	f := &fake{cancelled: make(chan struct{})}
	c := open(t, f)
	ctx, cancel := context.WithCancel(context.Background())
	_, err := c.Remove(ctx, RemoveRequest{}, func(chain.Progress) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Remove: %v", err)
	}
	select {
	case <-f.cancelled:
	case <-time.After(10 * time.Second):
		t.Error("the service was not cancelled")
	}
}

func TestSocket(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	path := filepath.Join(dir, "t.sock")
	if _, err := Dial(context.Background(), path); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("Dial without a socket: %v", err)
	}
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{dir: 0o700, path: 0o600} {
		if st, err := os.Stat(name); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want mode %v", name, st.Mode(), err, want)
		}
	}
	if err := WaitReleased(path, 50*time.Millisecond); err == nil {
		t.Error("WaitReleased returned while it was held")
	}
	// A dead process leaves the file, and the lock goes with it.
	l.Close()
	l.lock.Close()
	if _, err := Dial(context.Background(), path); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("Dial of a stale socket: %v", err)
	}
	again, err := Listen(path)
	if err != nil {
		t.Fatalf("Listen at a stale socket: %v", err)
	}
	if err := again.Release(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	if err := WaitReleased(path, time.Second); err != nil {
		t.Error(err)
	}
}
