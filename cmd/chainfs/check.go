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
			"tree, and looks for leftovers. Nothing is changed or repaired.\n\n" +
			"With --images it also looks into each image at or below PATH, as qemu-img check\n" +
			"does: for corruption, which needs another copy, and for leaked clusters, which only\n" +
			"take space. --repair-leaks removes leaks from images that are not corrupt and not in\n" +
			"use; it takes all that --images does, and what was repaired is no reason for exit\n" +
			"status 1.",
		ArgsUsage: "[PATH]",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "images", Usage: "look into the images at or below PATH, too"},
			&cli.BoolFlag{Name: "repair-leaks", Usage: "remove leaked clusters (implies --images)"},
			jsonFlag(), storeFlag(),
		},
		Action: runCheck,
	}
}

func runCheck(c *cli.Context) error {
	if err := arguments(c, 0, 1); err != nil {
		return err
	}
	n := toInspect
	if c.Bool("repair-leaks") {
		n = toWrite
	}
	return withTree(c, pathOrHere(c), n, func(svc control.Service, p chain.Path) error {
		found, err := checkAll(c, svc, p)
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
		if err == nil && anyLeft(found) {
			err = errFound
		}
		return err
	})
}

// checkAll checks the tree, and then the images where that was asked for: what a
// repair changes is in the index when it returns.
func checkAll(c *cli.Context, svc control.Service, p chain.Path) ([]chain.ImageFinding, error) {
	all := []chain.ImageFinding{} // [] in JSON
	found, err := svc.Check(c.Context)
	if err != nil {
		return nil, err
	}
	for _, f := range found {
		all = append(all, chain.ImageFinding{Finding: f})
	}
	if !c.Bool("images") && !c.Bool("repair-leaks") {
		return all, nil
	}
	bar := newBar(c.App.ErrWriter)
	result, err := svc.CheckImages(c.Context, control.CheckImagesRequest{Path: p, RepairLeaks: c.Bool("repair-leaks")}, bar.report)
	bar.clear()
	if err != nil || result.Images == nil {
		return nil, err
	}
	return append(all, result.Images.Findings...), nil
}

// anyLeft reports whether something was found that was not repaired.
func anyLeft(found []chain.ImageFinding) bool {
	for _, f := range found {
		if !f.Repaired {
			return true
		}
	}
	return false
}
