package main

import (
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/cmd/chainfs/control"
)

func rmCommand() *cli.Command {
	return &cli.Command{
		Name:      "rm",
		Usage:     "delete files, and directories with all that is in them, as one operation",
		ArgsUsage: "PATH...",
		Description: "What still stands on a deleted image absorbs what it needs from it first. A full\n" +
			"on which others stand is refused (exit status 3), with --force it is deleted with\n" +
			"all that stands on it.",
		Flags: append(copyFlags(),
			&cli.BoolFlag{Name: "dry-run", Aliases: []string{"n"}, Usage: "print the plan and do nothing"},
			&cli.BoolFlag{Name: "wait", Usage: "return when nothing is left to be done in the background for what was deleted"},
			&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "delete every descendant too, newest first"},
			&cli.BoolFlag{Name: "recursive", Aliases: []string{"r", "R"}, Usage: "accepted for habit's sake: directories are always deleted with their content"},
			jsonFlag(), storeFlag(),
		),
		Action: runRm,
	}
}

func runRm(c *cli.Context) error {
	if err := arguments(c, 1, -1); err != nil {
		return err
	}
	at, req, err := removal(c)
	if err != nil {
		return err
	}
	if c.Bool("dry-run") {
		return at.use(c, toLook, func(svc control.Service) error { return explain(dryRun(c, svc, req), at) })
	}
	return at.use(c, toWrite, func(svc control.Service) error {
		bar := newBar(c.App.ErrWriter)
		result, err := svc.Remove(c.Context, req, bar.report)
		bar.clear()
		if err != nil {
			return explain(err, at)
		}
		if c.Bool("wait") {
			if _, err := waitFor(c, svc, req.Paths); err != nil {
				return fmt.Errorf("it is deleted, but its space is not free: %w", err)
			}
			result = settled(result)
		}
		if c.Bool("json") {
			return printJSON(c.App.Writer, result)
		}
		printLater(c.App.Writer, result.Later)
		return nil
	})
}

// settled is the result of a deletion of which nothing is left to be done.
func settled(r control.Result) control.Result {
	if r.Later != nil {
		r.Freed, r.Later = r.Freed+r.Later.Bytes, nil
	}
	return r
}

// printLater says what a deletion has left to be done, if anything.
func printLater(w io.Writer, later *control.Later) {
	if later != nil {
		fmt.Fprintf(w, "%s of %s will be free later; chainfs ops follows it, chainfs undelete takes it back\n",
			chain.Size(later.Bytes), count(later.Images, "deleted image"))
	}
}

// removal finds all paths, which must be of one tree: they are one operation.
func removal(c *cli.Context) (place, control.RemoveRequest, error) {
	var first place
	req := control.RemoveRequest{Force: c.Bool("force")}
	for i, path := range c.Args().Slice() {
		at, err := locate(c.Context, path)
		if err != nil {
			return at, req, err
		}
		if i == 0 {
			first = at
		} else if at.tree != first.tree {
			return at, req, fmt.Errorf("%s and %s are of different trees; delete them one after the other",
				chain.Printable(first.given), chain.Printable(at.given))
		}
		req.Paths = append(req.Paths, at.path)
	}
	return first, req, nil
}

// plannedRemoval is what rm --dry-run --json prints.
type plannedRemoval struct {
	chain.Plan
	Copies int64 `json:"copies"` // bytes at most
	Frees  int64 `json:"frees"`  // bytes
}

func dryRun(c *cli.Context, svc control.Service, req control.RemoveRequest) error {
	plan, err := svc.Plan(c.Context, req)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		err = printJSON(c.App.Writer, plannedRemoval{plan, plan.Copies(), plan.Frees()})
	} else {
		for i, step := range plan.Steps {
			plan.Steps[i].Path = called(step.Path)
			plan.Steps[i].NewParent = called(step.NewParent)
			plan.Steps[i].Merges = called(step.Merges)
		}
		printPlan(c.App.Writer, &plan)
	}
	if err == nil && plan.Err() != nil {
		err = errRefusedQuietly
	}
	return err
}

func printPlan(w io.Writer, plan *chain.Plan) {
	fmt.Fprint(w, plan)
	if plan.Err() == nil {
		atMost := "at most "
		if plan.Exact() {
			atMost = ""
		}
		fmt.Fprintf(w, "copies %s%s, frees %s\n", atMost, chain.Size(plan.Copies()), chain.Size(plan.Frees()))
	}
}
