package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/cmd/chainfs/control"
)

// What a session answers about deletions that are not finished yet.

// Scan walks the tree. Without a daemon the tree was walked when it was opened,
// for this command, and what that found belongs to it; and nobody else finishes
// what is pending.
func (s *session) Scan(ctx context.Context, tell func(chain.Progress)) (chain.Report, error) {
	report, err := s.tree.Scan(ctx)
	if s.daemon {
		return report, err
	}
	report = s.tree.Opening().Plus(report)
	if err == nil && s.config.Deferral != nil && s.isPending() {
		s.startReclaimer()
		err = s.tree.Wait(ctx, "", tell)
	}
	return report, err
}

func (s *session) isPending() bool {
	return len(s.tree.Pending())+len(s.tree.Running())+s.tree.Summary().Condemned > 0
}

// Operations lists pending, running and past operations.
func (s *session) Operations(_ context.Context, req control.OperationsRequest) (control.Operations, error) {
	ops := s.current()
	known := map[chain.OpID]bool{}
	for _, list := range [][]chain.Progress{ops.Pending, ops.Running} {
		for _, p := range list {
			known[p.Op] = true
		}
	}
	all, err := s.store.Operations(false)
	for _, op := range all {
		if !known[op.ID] {
			ops.Past = append(ops.Past, op)
		}
	}
	if n := len(ops.Past) - req.Last; req.Last > 0 && n > 0 {
		ops.Past = ops.Past[n:]
	}
	return ops, err
}

// current lists what is pending and running. What begins to run between the two
// looks is met by both, and runs.
func (s *session) current() control.Operations {
	ops := control.Operations{Pending: []chain.Progress{}, Running: []chain.Progress{}, Past: []chain.Operation{}}
	if s.tree == nil {
		return ops
	}
	pending := s.tree.Pending()
	ops.Running = append(ops.Running, s.tree.Running()...)
	runs := map[chain.OpID]bool{}
	for _, p := range ops.Running {
		runs[p.Op] = true
	}
	for _, p := range pending {
		if !runs[p.Op] {
			ops.Pending = append(ops.Pending, p)
		}
	}
	return ops
}

// Cancel stops an operation.
func (s *session) Cancel(_ context.Context, req control.OperationRequest) error {
	if err := s.works("cancel"); err != nil {
		return err
	}
	return s.tree.Cancel(req.ID)
}

// Retry goes on with an operation.
func (s *session) Retry(_ context.Context, req control.OperationRequest) error {
	if err := s.works("retry"); err != nil {
		return err
	}
	return s.tree.Retry(req.ID)
}

// works is an error where no operation is ever worked on.
func (s *session) works(act string) error {
	switch {
	case !s.daemon:
		return control.BadRequest("nothing is working on the tree, so there is nothing to %s; mount it (chainfs mount), or finish what is pending (chainfs scan)", act)
	case s.config.ReadOnly:
		return control.BadRequest("the mount is read-only and works on nothing; %s where the tree is mounted for writing", act)
	}
	return nil
}

// errEnding: the daemon was told to end.
var errEnding = errors.New("the daemon is ending; what is unfinished goes on at the next mount")

// Wait returns when nothing is pending for the chains of the paths.
func (s *session) Wait(ctx context.Context, req control.WaitRequest, report func(chain.Progress)) (control.Result, error) {
	for _, p := range req.Paths {
		err := s.waitFor(ctx, p, report)
		if err != nil && s.life.Err() != nil {
			err = errEnding
		}
		if err != nil {
			return control.Result{}, err
		}
	}
	return control.Result{}, nil
}

func (s *session) waitFor(ctx context.Context, p chain.Path, report func(chain.Progress)) error {
	if s.works("wait") == nil {
		return s.tree.Wait(ctx, p, report)
	}
	left, err := s.tree.Trash(ctx, p)
	if err == nil && len(left) > 0 {
		err = control.BadRequest("%s deleted %s %s still to be absorbed, and nothing is working on it here; mount the tree for writing (chainfs mount) or finish it (chainfs scan)",
			count(len(left), "image"), where(p), isOrAre(len(left)))
	}
	return err
}

func where(p chain.Path) string {
	if p == "" {
		return "in the tree"
	}
	return "at or below " + p.String()
}

func isOrAre(n int) string {
	if n == 1 {
		return "is"
	}
	return "are"
}

// Trash lists what was deleted at or below p and can be brought back.
func (s *session) Trash(ctx context.Context, p chain.Path) ([]chain.Condemned, error) {
	all, err := s.tree.Trash(ctx, p)
	if all == nil {
		all = []chain.Condemned{} // [] in JSON
	}
	return all, err
}

// EmptyTrash has what was deleted not kept any longer.
func (s *session) EmptyTrash(ctx context.Context, p chain.Path) ([]chain.Condemned, error) {
	if err := s.works("empty"); err != nil {
		return nil, err
	}
	return s.tree.EmptyTrash(ctx, p)
}

// Undelete brings back what was deleted.
func (s *session) Undelete(ctx context.Context, req control.UndeleteRequest) ([]chain.Path, error) {
	switch {
	case s.config.ReadOnly:
		return nil, control.BadRequest("the mount is read-only; undelete where the tree is mounted for writing")
	case req.Path == "":
		return nil, control.BadRequest("the root of the tree was not deleted; name what was (chainfs trash lists it)")
	case chain.InHidden(req.As):
		return nil, control.BadRequest("%s would be a name of chainfs's own; choose another", req.As)
	}
	if dir := req.As.Dir(); req.As != "" && dir != req.Path.Dir() { // its own is made again
		if there, err := s.isDirectory(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		} else if !there {
			return nil, control.BadRequest("%s is no directory; make it first, or choose another", dir)
		}
	}
	return s.tree.Undelete(ctx, req.Path, req.As)
}

// later is what of a deletion is left to be done, nil when all is done. That it
// cannot be told is no error of the deletion, which stands.
func (s *session) later(ctx context.Context, files []chain.Path, plan *chain.Plan) *control.Later {
	if s.config.Deferral == nil {
		return nil
	}
	deleted := map[chain.Path]bool{}
	for _, p := range files {
		deleted[p] = true
	}
	for _, step := range plan.Steps { // with --force there are more
		deleted[step.Path] = step.Verb == chain.StepUnlink || deleted[step.Path]
	}
	condemned, err := s.tree.Trash(ctx, "")
	if err != nil {
		return nil
	}
	var sum control.Later
	for _, c := range condemned { // the newest first: one at each path is of this deletion
		if deleted[c.Path] {
			deleted[c.Path] = false
			sum.Images++
			sum.Bytes += c.Allocated
		}
	}
	if sum.Images == 0 {
		return nil
	}
	return &sum
}

// summary is the tree in a few numbers.
func (s *session) summary() *control.Summary {
	sum := &control.Summary{ID: s.source.ID(), Summary: s.tree.Summary()}
	can, err := s.probed()
	sum.Copying = control.Copying{FileSystem: can.FileSystem, Shares: can.Shares, Server: can.Server, Links: can.Links, Says: can.String()}
	switch {
	case s.config.ReadOnly:
		sum.Copying.Says = "not known here: it is tried when the tree is mounted for writing"
	case err != nil:
		sum.Copying.Says = fmt.Sprintf("what the file system can do is not known: %v", err)
	}
	return sum
}

// status is the content of .chainfs/status.json.
type status struct {
	Tree    *control.Summary `json:"tree"`
	Pending []chain.Progress `json:"pending"`
	Running []chain.Progress `json:"running"`
}

// statusText is .chainfs/status.json as it is now.
func (s *session) statusText() ([]byte, error) {
	ops := s.current()
	text, err := json.MarshalIndent(status{s.summary(), ops.Pending, ops.Running}, "", "  ")
	return append(text, '\n'), err
}
