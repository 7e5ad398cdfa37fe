package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/cmd/chainfs/control"
)

func infoCommand() *cli.Command {
	return &cli.Command{
		Name:      "info",
		Usage:     "describe a file, or every image at or below a directory (JSON: an object, or an array of them)",
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
		case c.Bool("json") && d.Directory:
			return printJSON(c.App.Writer, d.Images)
		case c.Bool("json"):
			return printJSON(c.App.Writer, d.Images[0])
		}
		for i, info := range d.Images {
			if i > 0 {
				fmt.Fprintln(c.App.Writer)
			}
			printInfo(c.App.Writer, info)
		}
		return nil
	})
}

func printInfo(w io.Writer, info chain.Info) {
	t := table{}
	line := func(key, value string) {
		if value != "" {
			t.add(key+":", value)
		}
	}
	line("path", info.Path.String())
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
	return p.String()
}

func pathsOrNone(ps []chain.Path) string {
	if len(ps) == 0 {
		return "none"
	}
	var names []string
	for _, p := range ps {
		names = append(names, p.String())
	}
	return strings.Join(names, ", ")
}
