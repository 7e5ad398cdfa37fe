package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/cmd/chainfs/control"
)

var _ control.Service = (*session)(nil)

// Tree lists the chains at or below p.
func (s *session) Tree(ctx context.Context, p chain.Path) ([]chain.Info, error) {
	return s.tree.List(ctx, p)
}

// Info describes a file, or the images at or below a directory.
func (s *session) Info(ctx context.Context, p chain.Path) (control.Description, error) {
	dir, err := s.isDirectory(p)
	if err != nil {
		return control.Description{}, err
	}
	if !dir {
		info, err := s.tree.Describe(ctx, p)
		return control.Description{Images: []chain.Info{info}}, err
	}
	infos, err := s.tree.List(ctx, p)
	in := slices.DeleteFunc(infos, func(i chain.Info) bool { return !i.Path.Within(p) })
	d := control.Description{Directory: true, Images: in}
	if p == "" {
		d.Tree = s.summary()
	}
	return d, err
}

func (s *session) isDirectory(p chain.Path) (bool, error) {
	if p == "" {
		return true, nil
	}
	e, err := s.source.Stat(p)
	return e.Type == chain.Directory, err
}

// Why says what deleting p would do. A directory is deleted with all in it.
func (s *session) Why(ctx context.Context, p chain.Path) (control.Verdict, error) {
	dir, err := s.isDirectory(p)
	if err != nil {
		return control.Verdict{}, err
	}
	if !dir {
		info, err := s.tree.Describe(ctx, p)
		return control.Verdict{Path: p, Decision: info.Decision, Reason: info.Reason}, err
	}
	plan, err := s.planDelete(ctx, []chain.Path{p}, false)
	return verdictOf(p, &plan), err
}

// verdictOf is a plan in one sentence.
func verdictOf(p chain.Path, plan *chain.Plan) control.Verdict {
	v := control.Verdict{Path: p, Decision: chain.Unlink}
	switch {
	case len(plan.Refusals) > 0:
		v.Decision, v.Reason = chain.Refused, plan.Err().Error()
	case plan.Rebases():
		v.Decision = chain.Absorb
		v.Reason = fmt.Sprintf("%s can be deleted: the images that depend on it will absorb what they need first, at most %s", p, chain.Size(plan.Copies()))
	default:
		v.Reason = fmt.Sprintf("%s can be deleted with the %s in it: nothing else depends on them", p, count(len(plan.Steps), "file"))
	}
	return v
}

// Plan says how Remove would go about it.
func (s *session) Plan(ctx context.Context, req control.RemoveRequest) (chain.Plan, error) {
	return s.planDelete(ctx, req.Paths, req.Force)
}

func (s *session) planDelete(ctx context.Context, paths []chain.Path, force bool) (chain.Plan, error) {
	files, err := s.files(ctx, paths)
	if err != nil || len(files) == 0 {
		return chain.Plan{Act: chain.ActDelete, Paths: paths}, err
	}
	return s.tree.Plan(ctx, func(g *chain.Graph) chain.Plan {
		return g.PlanDelete(files, chain.DeleteOptions{Force: force})
	})
}

// files are what a deletion of paths has to delete; of chainfs's own it deletes
// none.
func (s *session) files(ctx context.Context, paths []chain.Path) ([]chain.Path, error) {
	for _, p := range paths {
		if p == "" {
			return nil, control.BadRequest("the root of the tree cannot be deleted; name what is in it")
		}
		if chain.InHidden(p) {
			return nil, control.BadRequest("%s belongs to chainfs and cannot be deleted", p)
		}
	}
	files, err := s.tree.Files(ctx, paths)
	files = slices.DeleteFunc(files, chain.InHidden)
	slices.Sort(files)
	return slices.Compact(files), err
}

// Remove deletes files as one operation, and then the directories that were named.
func (s *session) Remove(ctx context.Context, req control.RemoveRequest, report func(chain.Progress)) (control.Result, error) {
	files, err := s.files(ctx, req.Paths)
	if err != nil {
		return control.Result{}, err
	}
	dirs, err := s.source.Directories(ctx, req.Paths)
	if err != nil {
		return control.Result{}, err
	}
	var plan chain.Plan
	if len(files) > 0 {
		opt := chain.DeleteOptions{Force: req.Force}
		decide := func(g *chain.Graph) chain.Plan { return g.PlanDelete(files, opt) }
		if plan, err = s.tree.Plan(ctx, decide); err != nil {
			return control.Result{}, err
		}
		if err := s.tree.Delete(ctx, files, opt, report); err != nil {
			return control.Result{}, err
		}
	}
	result := control.Result{Freed: plan.Frees(), Copied: plan.Copies(), Files: deletions(&plan)}
	if result.Later = s.later(ctx, files, &plan); result.Later != nil {
		result.Freed = max(result.Freed-result.Later.Bytes, 0)
	}
	return result, s.removeDirs(ctx, dirs)
}

func deletions(plan *chain.Plan) int {
	n := 0
	for _, step := range plan.Steps {
		if step.Verb == chain.StepUnlink {
			n++
		}
	}
	return n
}

// removeDirs removes directories whose files are gone, or condemned.
func (s *session) removeDirs(ctx context.Context, dirs []chain.Path) error {
	for _, dir := range dirs {
		err := s.source.Rmdir(dir)
		if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
			err = s.removeHiding(ctx, dir, err)
		}
		if err != nil {
			return fmt.Errorf("the files of %s are deleted, but not the directory: %w", dir, err)
		}
	}
	return nil
}

// removeHiding removes a directory that has hidden names alone; notEmpty is the
// error when it has others.
func (s *session) removeHiding(ctx context.Context, dir chain.Path, notEmpty error) error {
	only, err := s.source.OnlyHidden(dir)
	switch {
	case err != nil:
		return err
	case !only:
		return notEmpty
	}
	return s.tree.Rmdir(ctx, dir)
}

// Rebase puts an image on another parent.
func (s *session) Rebase(ctx context.Context, req control.RebaseRequest, report func(chain.Progress)) (control.Result, error) {
	plan, err := s.tree.Plan(ctx, func(g *chain.Graph) chain.Plan { return g.PlanRebase(req.Target, req.Parent) })
	if err != nil {
		return control.Result{}, err
	}
	err = s.tree.Rebase(ctx, req.Target, req.Parent, report)
	return control.Result{Copied: plan.Copies()}, err
}

// CheckImages looks into images. Without a graph, nothing is repaired first.
func (s *session) CheckImages(ctx context.Context, req control.CheckImagesRequest, report func(chain.Progress)) (control.Result, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	var done chain.ImagesChecked
	var err error
	if s.tree != nil {
		done, err = s.tree.CheckImages(ctx, req.Path, req.RepairLeaks, report)
	} else {
		done, err = chain.CheckImages(ctx, s.config, req.Path, report)
	}
	return control.Result{Images: &done, Freed: done.Freed}, err
}

// Check looks for what should not be. Without a graph, nothing is repaired first.
func (s *session) Check(ctx context.Context) ([]chain.Finding, error) {
	check := func() ([]chain.Finding, error) { return chain.Check(ctx, s.config) }
	if s.tree != nil {
		check = func() ([]chain.Finding, error) { return s.tree.Check(ctx) }
	}
	found, err := check()
	if err != nil {
		return nil, err
	}
	bad, err := s.store.Check()
	for _, sentence := range bad {
		found = append(found, chain.Finding{Reason: "store: " + sentence})
	}
	if found == nil {
		found = []chain.Finding{} // [] in JSON
	}
	return found, err
}
