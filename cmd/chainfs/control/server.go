package control

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/chainfs/chainfs/chain"
)

// maxRequest bounds the body of a request, in bytes: an rm may name many files.
const maxRequest = 64 << 20

// Handler answers on the control socket for svc.
func Handler(svc Service, status Status) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /v1/status", answer(func(context.Context, struct{}) (Status, error) { return status, nil }))
	mux.Handle("POST /v1/tree", answer(func(ctx context.Context, r PathRequest) ([]chain.Info, error) { return svc.Tree(ctx, r.Path) }))
	mux.Handle("POST /v1/info", answer(func(ctx context.Context, r PathRequest) (Description, error) { return svc.Info(ctx, r.Path) }))
	mux.Handle("POST /v1/why", answer(func(ctx context.Context, r PathRequest) (Verdict, error) { return svc.Why(ctx, r.Path) }))
	mux.Handle("POST /v1/plan", answer(svc.Plan))
	mux.Handle("POST /v1/rm", stream(svc.Remove))
	mux.Handle("POST /v1/rebase", stream(svc.Rebase))
	mux.Handle("POST /v1/scan", stream(func(ctx context.Context, _ struct{}, tell func(chain.Progress)) (Result, error) {
		report, err := svc.Scan(ctx, tell)
		return Result{Report: &report}, err
	}))
	mux.Handle("POST /v1/ops", answer(svc.Operations))
	mux.Handle("POST /v1/ops/cancel", answer(done(svc.Cancel)))
	mux.Handle("POST /v1/ops/retry", answer(done(svc.Retry)))
	mux.Handle("POST /v1/wait", stream(svc.Wait))
	mux.Handle("POST /v1/trash/empty", answer(func(ctx context.Context, r PathRequest) ([]chain.Condemned, error) {
		return svc.EmptyTrash(ctx, r.Path)
	}))
	mux.Handle("POST /v1/trash", answer(func(ctx context.Context, r PathRequest) ([]chain.Condemned, error) { return svc.Trash(ctx, r.Path) }))
	mux.Handle("POST /v1/undelete", answer(svc.Undelete))
	mux.Handle("POST /v1/check", answer(func(ctx context.Context, _ struct{}) ([]chain.Finding, error) { return svc.Check(ctx) }))
	mux.Handle("POST /v1/check-images", stream(svc.CheckImages))
	return mux
}

// answer handles a request that is answered in one piece.
func answer[Req, Resp any](act func(context.Context, Req) (Resp, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		req, err := read[Req](w, r)
		if err != nil {
			writeFailure(w, err)
			return
		}
		resp, err := act(r.Context(), req)
		if err != nil {
			writeFailure(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(resp) // fails only when the client is gone
	})
}

// done is act with an answer that says no more than that it is done.
func done[Req any](act func(context.Context, Req) error) func(context.Context, Req) (struct{}, error) {
	return func(ctx context.Context, req Req) (struct{}, error) { return struct{}{}, act(ctx, req) }
}

// stream handles a request whose progress is told while it runs.
func stream[Req any](act func(context.Context, Req, func(chain.Progress)) (Result, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		req, err := read[Req](w, r)
		if err != nil {
			writeFailure(w, err)
			return
		}
		s := &lines{w: w}
		result, err := act(r.Context(), req, func(p chain.Progress) { s.send(Event{Progress: &p}) })
		switch {
		case err == nil:
			s.send(Event{Result: &result})
		case s.begun:
			s.send(Event{Error: failureOf(err)})
		default:
			writeFailure(w, err)
		}
	})
}

// read reads the body, which may be empty.
func read[Req any](w http.ResponseWriter, r *http.Request) (req Req, err error) {
	if r.ContentLength == 0 {
		return req, nil
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest)).Decode(&req); err != nil {
		return req, BadRequest("read the request: %v", err)
	}
	return req, nil
}

func writeFailure(w http.ResponseWriter, err error) {
	f := failureOf(err)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(statuses[f.Class])
	json.NewEncoder(w).Encode(f) // fails only when the client is gone
}

// lines writes events, one a line, each at once.
type lines struct {
	w     http.ResponseWriter
	begun bool
}

func (l *lines) send(e Event) {
	if !l.begun {
		l.w.Header().Set("Content-Type", "application/x-ndjson")
		l.begun = true
	}
	json.NewEncoder(l.w).Encode(e) // fails only when the client is gone, which cancels the request
	if f, ok := l.w.(http.Flusher); ok {
		f.Flush()
	}
}
