package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
)

// ErrNoDaemon: nobody answers at the socket.
var ErrNoDaemon = errors.New("no chainfs daemon answers for this tree")

// patience is how long a daemon has to say that it is there. Work takes as long
// as it takes.
const patience = 10 * time.Second

// Client is a Service that asks the daemon.
type Client struct {
	socket string
	http   *http.Client
	status Status
}

var _ Service = (*Client)(nil)

// Dial connects to the daemon at socket. It is ErrNoDaemon when there is none.
func Dial(ctx context.Context, socket string) (*Client, error) {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: patience}).DialContext(ctx, "unix", socket)
	}
	c := &Client{socket: socket, http: &http.Client{Transport: &http.Transport{DialContext: dial}}}
	asked, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := c.call(asked, http.MethodGet, "status", nil, &c.status)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED):
		return nil, fmt.Errorf("%s: %w", socket, ErrNoDaemon)
	case errors.Is(err, unix.EACCES):
		return nil, fmt.Errorf("the chainfs daemon at %s is another user's; run this command as that user", socket)
	case errors.Is(err, context.DeadlineExceeded):
		return nil, fmt.Errorf("the chainfs daemon at %s does not answer within %s; it may be waiting for the NAS", socket, patience)
	case err != nil:
		return nil, err
	}
	return c, nil
}

// Status is what the daemon said of itself.
func (c *Client) Status() Status { return c.status }

// Close drops idle connections.
func (c *Client) Close() error { c.http.CloseIdleConnections(); return nil }

// Tree lists the chains at or below p.
func (c *Client) Tree(ctx context.Context, p chain.Path) (infos []chain.Info, err error) {
	return infos, c.call(ctx, http.MethodPost, "tree", PathRequest{p}, &infos)
}

// Info describes p.
func (c *Client) Info(ctx context.Context, p chain.Path) (d Description, err error) {
	return d, c.call(ctx, http.MethodPost, "info", PathRequest{p}, &d)
}

// Why says what deleting p would do.
func (c *Client) Why(ctx context.Context, p chain.Path) (v Verdict, err error) {
	return v, c.call(ctx, http.MethodPost, "why", PathRequest{p}, &v)
}

// Plan says how Remove would go about it.
func (c *Client) Plan(ctx context.Context, req RemoveRequest) (plan chain.Plan, err error) {
	return plan, c.call(ctx, http.MethodPost, "plan", req, &plan)
}

// Remove deletes files.
func (c *Client) Remove(ctx context.Context, req RemoveRequest, report func(chain.Progress)) (Result, error) {
	return c.stream(ctx, "rm", req, report)
}

// Rebase puts an image on another parent.
func (c *Client) Rebase(ctx context.Context, req RebaseRequest, report func(chain.Progress)) (Result, error) {
	return c.stream(ctx, "rebase", req, report)
}

// Scan walks the tree.
func (c *Client) Scan(ctx context.Context, report func(chain.Progress)) (chain.Report, error) {
	result, err := c.stream(ctx, "scan", struct{}{}, report)
	if err != nil || result.Report == nil {
		return chain.Report{}, err
	}
	return *result.Report, nil
}

// Operations lists pending, running and past operations.
func (c *Client) Operations(ctx context.Context, req OperationsRequest) (ops Operations, err error) {
	return ops, c.call(ctx, http.MethodPost, "ops", req, &ops)
}

// Cancel stops an operation.
func (c *Client) Cancel(ctx context.Context, req OperationRequest) error {
	return c.call(ctx, http.MethodPost, "ops/cancel", req, &struct{}{})
}

// Retry goes on with an operation.
func (c *Client) Retry(ctx context.Context, req OperationRequest) error {
	return c.call(ctx, http.MethodPost, "ops/retry", req, &struct{}{})
}

// Wait returns when nothing is pending for the chains of the paths.
func (c *Client) Wait(ctx context.Context, req WaitRequest, report func(chain.Progress)) (Result, error) {
	return c.stream(ctx, "wait", req, report)
}

// EmptyTrash has what was deleted at or below p not kept any longer.
func (c *Client) EmptyTrash(ctx context.Context, p chain.Path) (all []chain.Condemned, err error) {
	return all, c.call(ctx, http.MethodPost, "trash/empty", PathRequest{p}, &all)
}

// Trash lists what was deleted at or below p and can be brought back.
func (c *Client) Trash(ctx context.Context, p chain.Path) (all []chain.Condemned, err error) {
	return all, c.call(ctx, http.MethodPost, "trash", PathRequest{p}, &all)
}

// Undelete brings back what was deleted.
func (c *Client) Undelete(ctx context.Context, req UndeleteRequest) (back []chain.Path, err error) {
	return back, c.call(ctx, http.MethodPost, "undelete", req, &back)
}

// Check looks for what should not be.
func (c *Client) Check(ctx context.Context) (found []chain.Finding, err error) {
	return found, c.call(ctx, http.MethodPost, "check", nil, &found)
}

// CheckImages looks into images.
func (c *Client) CheckImages(ctx context.Context, req CheckImagesRequest, report func(chain.Progress)) (Result, error) {
	return c.stream(ctx, "check-images", req, report)
}

// call asks for an answer in one piece.
func (c *Client) call(ctx context.Context, method, name string, req, resp any) error {
	body, err := c.send(ctx, method, name, req)
	if err != nil {
		return err
	}
	defer body.Close() // it was only read
	if err := json.NewDecoder(body).Decode(resp); err != nil {
		return c.lost(ctx, name, err)
	}
	return nil
}

// stream asks for something that takes a while.
func (c *Client) stream(ctx context.Context, name string, req any, report func(chain.Progress)) (Result, error) {
	body, err := c.send(ctx, http.MethodPost, name, req)
	if err != nil {
		return Result{}, err
	}
	defer body.Close() // it was only read
	for dec := json.NewDecoder(body); ; {
		var e Event
		if err := dec.Decode(&e); err != nil {
			return Result{}, c.lost(ctx, name, err)
		}
		switch {
		case e.Error != nil:
			return Result{}, e.Error.restore()
		case e.Result != nil:
			return *e.Result, nil
		case e.Progress != nil && report != nil:
			report(*e.Progress)
		}
	}
}

func (c *Client) send(ctx context.Context, method, name string, req any) (io.ReadCloser, error) {
	var body io.Reader
	if req != nil {
		text, err := json.Marshal(req)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(text)
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://chainfs/v1/"+name, body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return nil, c.lost(ctx, name, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close() // it was only read
	f := &Failure{}
	if err := json.NewDecoder(resp.Body).Decode(f); err != nil || f.Message == "" {
		return nil, fmt.Errorf("ask the daemon at %s for %s: it answered %s", c.socket, name, resp.Status)
	}
	return nil, f.restore()
}

// lost is an answer that did not come.
func (c *Client) lost(ctx context.Context, name string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("ask the daemon at %s for %s: %w", c.socket, name, err)
}
