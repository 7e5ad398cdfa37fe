package main

import (
	"context"
	"errors"

	"github.com/urfave/cli/v2"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/cmd/chainfs/control"
)

func waitCommand() *cli.Command {
	return &cli.Command{
		Name:      "wait",
		Usage:     "return when nothing is pending for the chains at or below PATH (default: all of the tree around the working directory)",
		ArgsUsage: "[PATH]",
		Description: "PATH may have been deleted. The exit status is 1, with the reason, when what was\n" +
			"pending failed or was cancelled.",
		Flags:  []cli.Flag{jsonFlag(), storeFlag()},
		Action: runWait,
	}
}

func runWait(c *cli.Context) error {
	return withDeleted(c, func(svc control.Service, p chain.Path) error {
		result, err := waitFor(c, svc, []chain.Path{p})
		if err != nil || !c.Bool("json") {
			return err
		}
		return printJSON(c.App.Writer, result)
	})
}

// waitFor waits with a bar.
func waitFor(c *cli.Context, svc control.Service, paths []chain.Path) (control.Result, error) {
	bar := newBar(c.App.ErrWriter)
	result, err := svc.Wait(c.Context, control.WaitRequest{Paths: paths}, bar.report)
	bar.clear()
	return result, inBackground(err)
}

// errGoesOn: whoever looked on has been interrupted, not the work.
var errGoesOn = errors.New("interrupted; the work goes on in the background (chainfs ops shows it)")

// inBackground is err of work that others do. What stopped that may be a refusal,
// and is none of this command: what was deleted stays so.
func inBackground(err error) error {
	switch {
	case errors.Is(err, context.Canceled):
		return errGoesOn
	case isRefused(err):
		return errors.New(err.Error())
	}
	return err
}

// withDeleted looks at the tree that a path leads into, or led into before it was
// deleted. Without a path it is the whole tree around the working directory.
func withDeleted(c *cli.Context, act func(svc control.Service, p chain.Path) error) error {
	if err := arguments(c, 0, 1); err != nil {
		return err
	}
	at, err := locateGone(c.Context, pathOrHere(c))
	if err != nil {
		return err
	}
	if c.NArg() == 0 {
		at.path = ""
	}
	return at.use(c, toLook, func(svc control.Service) error { return act(svc, at.path) })
}
