package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/cmd/chainfs/control"
)

func checkCommand() *cli.Command {
	return &cli.Command{
		Name:  "check",
		Usage: "look for what should not be; exit status 1 when there is any",
		Description: "Reads each image's header and looks for its parent, compares the index with the\n" +
			"tree, and looks for leftovers. Nothing is changed or repaired.",
		ArgsUsage: "[PATH]",
		Flags:     []cli.Flag{jsonFlag(), storeFlag()},
		Action:    runCheck,
	}
}

func runCheck(c *cli.Context) error {
	if err := arguments(c, 0, 1); err != nil {
		return err
	}
	path := c.Args().First()
	if path == "" {
		path = "."
	}
	return withTree(c, path, toInspect, func(svc control.Service, _ chain.Path) error {
		found, err := svc.Check(c.Context)
		if err != nil {
			return err
		}
		if c.Bool("json") {
			err = printJSON(c.App.Writer, found)
		} else {
			for _, f := range found {
				fmt.Fprintln(c.App.Writer, chain.Printable(f.String()))
			}
		}
		if err == nil && len(found) > 0 {
			err = errFound
		}
		return err
	})
}
