package main

import (
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/cmd/chainfs/control"
)

func scanCommand() *cli.Command {
	return &cli.Command{
		Name:  "scan",
		Usage: "read the headers of new and changed images, and make the index equal to the tree",
		Description: "PATH is any path in the tree or its mount. A directory that is in no tree becomes\n" +
			"the root of one. Without a daemon it also finishes what is pending.",
		ArgsUsage: "[PATH]",
		Flags:     []cli.Flag{jsonFlag(), storeFlag()},
		Action:    runScan,
	}
}

func runScan(c *cli.Context) error {
	if err := arguments(c, 0, 1); err != nil {
		return err
	}
	return withTree(c, pathOrHere(c), toAdopt, func(svc control.Service, _ chain.Path) error {
		bar := newBar(c.App.ErrWriter)
		report, err := svc.Scan(c.Context, bar.report)
		bar.clear()
		switch {
		case err != nil:
			return err
		case c.Bool("json"):
			return printJSON(c.App.Writer, report)
		}
		printReport(c.App.Writer, report)
		return nil
	})
}

func printReport(w io.Writer, r chain.Report) {
	fmt.Fprintf(w, "%s; %s read: %d added, %d changed, %d moved, %d removed\n",
		count(r.Images, "image"), count(r.Read, "file"), r.Added, r.Changed, r.Moved, r.Removed)
	for _, f := range r.Unreadable {
		fmt.Fprintf(w, "%s: until it can be, nothing that it may depend on is deleted\n", f)
	}
	for _, p := range r.Leftovers {
		fmt.Fprintf(w, "%s is a scratch file\n", p)
	}
}
