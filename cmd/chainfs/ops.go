package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/cmd/chainfs/control"
)

func opsCommand() *cli.Command {
	return &cli.Command{
		Name:      "ops",
		Usage:     "list past, waiting and running operations, the newest last",
		ArgsUsage: "[PATH]",
		Description: "What is left of deletions is worked on in the background. An operation waits until\n" +
			"its chain was left alone for a while, or nobody reads what it has to change; one that\n" +
			"failed is tried again; one that was cancelled waits for chainfs ops retry.\n\n" +
			"--watch follows them until nothing is pending: with bars on a terminal, and with a\n" +
			"line for each change elsewhere.",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "limit", Value: 50, Usage: "show the last `N` past operations, 0 for all that are kept"},
			&cli.BoolFlag{Name: "watch", Aliases: []string{"w"}, Usage: "follow what is pending until nothing is"},
			jsonFlag(), storeFlag(),
		},
		Action: runOps,
		Subcommands: []*cli.Command{
			actOnOperation("cancel", "stop an operation; what it deleted stays deleted", control.Service.Cancel),
			actOnOperation("retry", "go on at once with an operation that waits, failed or was cancelled", control.Service.Retry),
		},
	}
}

func runOps(c *cli.Context) error {
	if err := arguments(c, 0, 1); err != nil {
		return err
	}
	limit := c.Int("limit")
	if limit < 0 {
		return fmt.Errorf("limit %d is below 0; 0 shows all that are kept", limit)
	}
	return withTree(c, pathOrHere(c), toRecall, func(svc control.Service, _ chain.Path) error {
		if c.Bool("watch") {
			return inBackground(newWatch(c.App.Writer, svc, c.Bool("json")).follow(c.Context))
		}
		ops, err := svc.Operations(c.Context, control.OperationsRequest{Last: limit})
		if err != nil {
			return err
		}
		if c.Bool("json") {
			return printJSON(c.App.Writer, ops)
		}
		printOps(c.App.Writer, ops, time.Now())
		return nil
	})
}

// actOnOperation is a subcommand of ops.
func actOnOperation(name, usage string, act func(control.Service, ctxt, control.OperationRequest) error) *cli.Command {
	return &cli.Command{
		Name:      name,
		Usage:     usage,
		ArgsUsage: "ID [PATH]",
		Flags:     []cli.Flag{jsonFlag(), storeFlag()},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 1, 2); err != nil {
				return err
			}
			id, err := strconv.ParseUint(c.Args().First(), 10, 64)
			if err != nil {
				return fmt.Errorf("%q is no operation's number; chainfs ops lists them", c.Args().First())
			}
			path := "."
			if c.NArg() == 2 {
				path = c.Args().Get(1)
			}
			return withTree(c, path, toInspect, func(svc control.Service, _ chain.Path) error {
				err := act(svc, c.Context, control.OperationRequest{ID: chain.OpID(id)})
				switch {
				case errors.Is(err, fs.ErrNotExist) && !errors.Is(err, chain.ErrTreeGone):
					return fmt.Errorf("there is no operation %d to %s; chainfs ops lists what waits and runs", id, name)
				case err != nil:
					return err
				}
				if c.Bool("json") {
					return printJSON(c.App.Writer, control.OperationRequest{ID: chain.OpID(id)})
				}
				return nil
			})
		},
	}
}

// printOps prints what has ended, and below it what has not.
func printOps(w io.Writer, ops control.Operations, now time.Time) {
	if len(ops.Past)+len(ops.Pending)+len(ops.Running) == 0 {
		fmt.Fprintln(w, "no operations")
		return
	}
	if len(ops.Past) > 0 {
		printPast(w, ops.Past)
	}
	if len(ops.Pending)+len(ops.Running) == 0 {
		return
	}
	if len(ops.Past) > 0 {
		fmt.Fprintln(w)
	}
	printCurrent(w, ops, now)
}

func printPast(w io.Writer, past []chain.Operation) {
	t := table{right: map[int]bool{0: true}}
	t.add("OP", "ACT", "STATE", "STARTED", "TOOK", "PATHS", "ERROR")
	for _, op := range past {
		state, took := string(op.State), ""
		if op.State.Running() {
			state = "interrupted" // the next mount ends it
		} else {
			took = op.Ended.Sub(op.Started).Round(time.Millisecond).String()
		}
		t.add(op.ID.String(), string(op.Act), state, date(op.Started), took, someOf(op.Plan.Paths), chain.Printable(op.Error))
	}
	t.print(w, terminalWidth(w))
}

// printCurrent prints what is pending and what is running.
func printCurrent(w io.Writer, ops control.Operations, now time.Time) {
	t := table{right: map[int]bool{0: true, 3: true, 4: true, 5: true, 6: true, 7: true}}
	t.add("OP", "ACT", "STATUS", "DONE", "TO DO", "RATE", "LEFT", "FREES", "WAITS FOR / ERROR", "PATHS")
	for _, p := range inOrder(ops) {
		t.add(p.Op.String(), string(p.Act), string(statusOf(p)), chain.Size(p.Done), toDo(p),
			rateOf(p), leftOf(p), freesOf(p), reasonOf(p, now), someOf(p.Paths))
	}
	t.print(w, terminalWidth(w))
}

// someOf names a path, or the directory that all are in, or the first of them.
func someOf(ps []chain.Path) string {
	switch {
	case len(ps) == 0:
		return ""
	case len(ps) == 1:
		return chain.Shown(ps[0]).String()
	}
	dir := ps[0].Dir()
	for _, p := range ps {
		for !p.Within(dir) {
			dir = dir.Dir()
		}
	}
	if dir == "" {
		return fmt.Sprintf("%s and %d more", chain.Shown(ps[0]), len(ps)-1)
	}
	return fmt.Sprintf("%s in %s", count(len(ps), "file"), chain.Shown(dir))
}
