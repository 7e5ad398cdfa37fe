package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/cmd/chainfs/control"
)

func trashCommand() *cli.Command {
	return &cli.Command{
		Name:        "trash",
		Usage:       "list deleted images that can be brought back, the newest first",
		ArgsUsage:   "[PATH]",
		Description: "They are those at or below PATH (default: in all of the tree around the working\ndirectory), which may itself be deleted. chainfs undelete brings them back.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "empty", Usage: "keep them no longer (--keep of the mount), and list those: their space comes back as soon as their chains are quiet"},
			jsonFlag(), storeFlag(),
		},
		Action: runTrash,
	}
}

func runTrash(c *cli.Context) error {
	return withDeleted(c, func(svc control.Service, p chain.Path) error {
		list := svc.Trash
		if c.Bool("empty") {
			list = svc.EmptyTrash
		}
		all, err := list(c.Context, p)
		switch {
		case err != nil:
			return err
		case c.Bool("json"):
			return printJSON(c.App.Writer, all)
		}
		printTrash(c.App.Writer, all, time.Now())
		return nil
	})
}

func printTrash(w io.Writer, all []chain.Condemned, now time.Time) {
	if len(all) == 0 {
		fmt.Fprintln(w, "nothing can be brought back")
		return
	}
	t := table{right: map[int]bool{0: true, 3: true}}
	t.add("OP", "DELETED", "KEPT FOR", "ALLOCATED", "IMAGE", "READ THROUGH BY")
	for _, c := range all {
		kept := ""
		if left := c.KeptUntil.Sub(now); left > 0 {
			kept = span(left)
		}
		t.add(c.Op.String(), date(c.Deleted), kept, chain.Size(c.Allocated), c.Path.String(), shownList(c.Children))
	}
	t.print(w, terminalWidth(w))
}

func shownList(ps []chain.Path) string {
	var names []string
	for _, p := range ps {
		names = append(names, shown(p))
	}
	return strings.Join(names, ", ")
}
