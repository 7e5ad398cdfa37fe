package main

import (
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/cmd/chainfs/control"
)

func opsCommand() *cli.Command {
	return &cli.Command{
		Name:      "ops",
		Usage:     "list running and past operations, the newest last",
		ArgsUsage: "[PATH]",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "limit", Value: 50, Usage: "show the last `N` past operations, 0 for all that are kept"},
			jsonFlag(), storeFlag(),
		},
		Action: runOps,
	}
}

func runOps(c *cli.Context) error {
	if err := arguments(c, 0, 1); err != nil {
		return err
	}
	path := c.Args().First()
	if path == "" {
		path = "."
	}
	return withTree(c, path, toRecall, func(svc control.Service, _ chain.Path) error {
		ops, err := svc.Operations(c.Context)
		if err != nil {
			return err
		}
		if n := c.Int("limit"); n > 0 && len(ops.Past) > n {
			ops.Past = ops.Past[len(ops.Past)-n:]
		}
		if c.Bool("json") {
			return printJSON(c.App.Writer, ops)
		}
		printOps(c.App.Writer, ops)
		return nil
	})
}

func printOps(w io.Writer, ops control.Operations) {
	if len(ops.Past)+len(ops.Running) == 0 {
		fmt.Fprintln(w, "no operations")
		return
	}
	t := table{right: map[int]bool{0: true}}
	t.add("OP", "ACT", "STATE", "STARTED", "TOOK", "PATHS", "ERROR")
	for _, op := range ops.Past {
		state, took := string(op.State), ""
		if op.State.Running() {
			state = "interrupted" // the next mount ends it
		} else {
			took = op.Ended.Sub(op.Started).Round(time.Millisecond).String()
		}
		t.add(op.ID.String(), string(op.Act), state, date(op.Started), took, someOf(op.Plan.Paths), chain.Printable(op.Error))
	}
	for _, p := range ops.Running {
		state := fmt.Sprintf("running %d%%", percent(p))
		t.add(p.Op.String(), string(p.Act), state, date(p.Started), time.Since(p.Started).Round(time.Second).String(), someOf(p.Paths), "")
	}
	t.print(w, terminalWidth(w))
}

// someOf names a path, or the directory that all are in, or the first of them.
func someOf(ps []chain.Path) string {
	switch {
	case len(ps) == 0:
		return ""
	case len(ps) == 1:
		return ps[0].String()
	}
	dir := ps[0].Dir()
	for _, p := range ps {
		for !p.Within(dir) {
			dir = dir.Dir()
		}
	}
	if dir == "" {
		return fmt.Sprintf("%s and %d more", ps[0], len(ps)-1)
	}
	return fmt.Sprintf("%s in %s", count(len(ps), "file"), dir)
}
