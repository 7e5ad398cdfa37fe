package main

import (
	"fmt"
	"io"
	"strconv"

	"github.com/urfave/cli/v2"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/cmd/chainfs/control"
)

func infoCommand() *cli.Command {
	return &cli.Command{
		Name:  "info",
		Usage: "describe a file, or every image at or below a directory (JSON: an object, or an array of them)",
		Description: "Of the tree's root it is a summary first; in JSON an object with that as \"tree\", and\n" +
			"the array as \"images\".",
		ArgsUsage: "PATH",
		Flags:     []cli.Flag{jsonFlag(), storeFlag()},
		Action:    runInfo,
	}
}

func runInfo(c *cli.Context) error {
	if err := arguments(c, 1, 1); err != nil {
		return err
	}
	return withTree(c, c.Args().First(), toLook, func(svc control.Service, p chain.Path) error {
		d, err := svc.Info(c.Context, p)
		switch {
		case err != nil:
			return err
		case c.Bool("json") && d.Tree != nil:
			return printJSON(c.App.Writer, wholeTree{d.Tree, d.Images})
		case c.Bool("json") && d.Directory:
			return printJSON(c.App.Writer, d.Images)
		case c.Bool("json"):
			return printJSON(c.App.Writer, d.Images[0])
		}
		if d.Tree != nil {
			printSummary(c.App.Writer, d.Tree)
		}
		for i, info := range d.Images {
			if i > 0 || d.Tree != nil {
				fmt.Fprintln(c.App.Writer)
			}
			printInfo(c.App.Writer, info)
		}
		return nil
	})
}

// wholeTree is what info --json prints of a tree's root.
type wholeTree struct {
	Tree   *control.Summary `json:"tree"`
	Images []chain.Info     `json:"images"`
}

func printSummary(w io.Writer, s *control.Summary) {
	t := table{}
	t.add("tree:", s.ID)
	t.add("images:", strconv.Itoa(s.Images))
	t.add("chains:", strconv.Itoa(s.Chains))
	t.add("allocated:", chain.Size(s.Allocated))
	deleted := "no image waits to be absorbed"
	if s.Condemned > 0 {
		deleted = fmt.Sprintf("%s, %s on the way back", count(s.Condemned, "image"), chain.Size(s.Returning))
		if s.Kept > 0 {
			deleted += fmt.Sprintf(", %s of it kept for now", chain.Size(s.Kept))
		}
	}
	t.add("deleted:", deleted)
	t.add("copying:", chain.Printable(s.Copying.Says))
	t.print(w, 0)
}

func printInfo(w io.Writer, info chain.Info) {
	t := table{}
	line := func(key, value string) {
		if value != "" {
			t.add(key+":", value)
		}
	}
	line("path", shown(info.Path))
	if info.ID != 0 {
		line("id", info.ID.String())
		line("kind", info.Kind.String())
		line("format", string(info.Format))
		line("vm", chain.Printable(info.VM))
		line("backup", chain.Printable(info.Backup))
		line("disk", chain.Printable(info.Disk))
		line("parent", pathOrNone(info.Parent))
		line("children", pathsOrNone(info.Children))
		line("position", fmt.Sprint(info.Position))
		line("chain", info.Chain.String())
		line("virtual size", chain.Size(info.VirtualSize))
		line("allocated", chain.Size(info.Allocated))
		line("written", date(info.Written))
		line("problem", info.Problem)
		line("frees", chain.Size(info.Frees))
		line("copies", chain.Size(info.Copies))
	}
	line("decision", string(info.Decision))
	line("reason", info.Reason)
	t.print(w, 0)
}

func pathOrNone(p chain.Path) string {
	if p == "" {
		return "none"
	}
	return shown(p)
}

func pathsOrNone(ps []chain.Path) string {
	if len(ps) == 0 {
		return "none"
	}
	return shownList(ps)
}
