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
	asked     any // the last request of another kind
}

func (f *fake) Operations(_ context.Context, req OperationsRequest) (Operations, error) {
	f.asked = req
	waiting := chain.Progress{Op: 7, Status: chain.Waiting, Reason: "a is read", Next: time.Unix(9, 0), Paths: []chain.Path{"a\xff"}, Frees: 5, Tries: 2}
	return Operations{Pending: []chain.Progress{waiting}, Running: []chain.Progress{}}, f.err
}

func (f *fake) Cancel(_ context.Context, req OperationRequest) error { f.asked = req; return f.err }

func (f *fake) Retry(_ context.Context, req OperationRequest) error { f.asked = req; return f.err }

func (f *fake) Wait(_ context.Context, req WaitRequest, report func(chain.Progress)) (Result, error) {
	f.asked = req
	report(chain.Progress{Op: 7, Status: chain.Running})
	return Result{}, f.err
}

func (f *fake) EmptyTrash(_ context.Context, p chain.Path) ([]chain.Condemned, error) {
	f.asked = p
	return []chain.Condemned{{Op: 7, Path: "a"}}, nil
}

func (f *fake) Trash(_ context.Context, p chain.Path) ([]chain.Condemned, error) {
	f.asked = p
	return []chain.Condemned{{Op: 7, Path: "a", Hidden: ".chainfs-7-a", KeptUntil: time.Unix(9, 0)}}, f.err
}

func (f *fake) Undelete(_ context.Context, req UndeleteRequest) ([]chain.Path, error) {
	f.asked = req
	return []chain.Path{req.As}, f.err
}

func (f *fake) Tree(context.Context, chain.Path) ([]chain.Info, error) {
	return []chain.Info{{Path: "a\xff", Kind: chain.Full}}, f.err
}

func (f *fake) Check(context.Context) ([]chain.Finding, error) { return []chain.Finding{}, f.err }

func (f *fake) Scan(context.Context, func(chain.Progress)) (chain.Report, error) {
	return chain.Report{Images: 7}, f.err
}

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
	report, err := c.Scan(context.Background(), nil)
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

// TestPending: what is asked about work that is left for later arrives as it was sent.
func TestPending(t *testing.T) {
	f, ctx := &fake{}, t.Context()
	c := open(t, f)
	asked := func(err error, want any) {
		t.Helper()
		if err != nil || !reflect.DeepEqual(f.asked, want) {
			t.Errorf("got %v, asked %+v, want %+v", err, f.asked, want)
		}
	}
	ops, err := c.Operations(ctx, OperationsRequest{Last: 3})
	asked(err, OperationsRequest{Last: 3})
	p := ops.Pending[0]
	if p.Op != 7 || p.Status != chain.Waiting || p.Reason != "a is read" || !p.Next.Equal(time.Unix(9, 0)) || p.Paths[0] != "a\xff" || p.Frees != 5 || p.Tries != 2 {
		t.Errorf("pending: %+v", p)
	}
	asked(c.Cancel(ctx, OperationRequest{8}), OperationRequest{8})
	asked(c.Retry(ctx, OperationRequest{9}), OperationRequest{9})
	told := 0
	_, err = c.Wait(ctx, WaitRequest{[]chain.Path{"a", ""}}, func(chain.Progress) { told++ })
	if asked(err, WaitRequest{[]chain.Path{"a", ""}}); told != 1 {
		t.Errorf("progress came %d times", told)
	}
	emptied, err := c.EmptyTrash(ctx, "e")
	if asked(err, chain.Path("e")); len(emptied) != 1 || emptied[0].Path != "a" {
		t.Errorf("empty trash: %+v", emptied)
	}
	trash, err := c.Trash(ctx, "d")
	if asked(err, chain.Path("d")); len(trash) != 1 || trash[0].Hidden != ".chainfs-7-a" || !trash[0].KeptUntil.Equal(time.Unix(9, 0)) {
		t.Errorf("trash: %+v", trash)
	}
	back, err := c.Undelete(ctx, UndeleteRequest{Path: "a", As: "b"})
	if asked(err, UndeleteRequest{Path: "a", As: "b"}); len(back) != 1 || back[0] != "b" {
		t.Errorf("undelete: %v", back)
	}
	f.err = chain.Refuse("a", "a is absorbed")
	for name, err := range map[string]error{"cancel": c.Cancel(ctx, OperationRequest{8}), "retry": c.Retry(ctx, OperationRequest{8})} {
		if refused := (*chain.RefusedError)(nil); !errors.As(err, &refused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := c.Wait(ctx, WaitRequest{}, nil); err == nil || err.Error() != "a is absorbed" {
		t.Errorf("wait: %v", err)
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
