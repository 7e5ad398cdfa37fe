package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/cmd/chainfs/control"
)

func whyCommand() *cli.Command {
	return &cli.Command{
		Name:      "why",
		Usage:     "say in one sentence whether PATH can be deleted, and why not (exit status 3)",
		ArgsUsage: "PATH",
		Flags:     []cli.Flag{jsonFlag(), storeFlag()},
		Action:    runWhy,
	}
}

func runWhy(c *cli.Context) error {
	if err := arguments(c, 1, 1); err != nil {
		return err
	}
	return withTree(c, c.Args().First(), toLook, func(svc control.Service, p chain.Path) error {
		v, err := svc.Why(c.Context, p)
		if err != nil {
			return err
		}
		if c.Bool("json") {
			err = printJSON(c.App.Writer, v)
		} else {
			fmt.Fprintln(c.App.Writer, v.Reason)
		}
		if err == nil && v.Decision == chain.Refused {
			err = errRefusedQuietly
		}
		return err
	})
}
