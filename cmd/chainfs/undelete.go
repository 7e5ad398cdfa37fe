package main

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/cmd/chainfs/control"
)

func undeleteCommand() *cli.Command {
	return &cli.Command{
		Name:      "undelete",
		Usage:     "bring back a deleted image, or all images of a deleted directory, as long as nothing has absorbed them",
		ArgsUsage: "PATH",
		Description: "PATH is what it was called; chainfs trash lists what can be brought back. --as gives an\n" +
			"image another name: one in the same directory, or a path. Files that are no images, as\n" +
			"a domain-config.xml, are deleted at once and do not come back.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "as", Usage: "bring it back as `NAME`"},
			jsonFlag(), storeFlag(),
		},
		Action: runUndelete,
	}
}

func runUndelete(c *cli.Context) error {
	if err := arguments(c, 1, 1); err != nil {
		return err
	}
	at, err := locateGone(c.Context, c.Args().First())
	if err != nil {
		return err
	}
	as, err := newNameOf(c, at)
	if err != nil {
		return err
	}
	return at.use(c, toWrite, func(svc control.Service) error {
		back, err := svc.Undelete(c.Context, control.UndeleteRequest{Path: at.path, As: as})
		switch {
		case errors.Is(err, fs.ErrNotExist) && !errors.Is(err, chain.ErrTreeGone):
			return fmt.Errorf("%s: nothing that was deleted there can be brought back; chainfs trash lists what can", chain.Printable(at.given))
		case err != nil:
			return err
		case c.Bool("json"):
			return printJSON(c.App.Writer, back)
		}
		for _, p := range back {
			fmt.Fprintln(c.App.Writer, p)
		}
		return nil
	})
}

// newNameOf is the name that --as gives, empty for the old one.
func newNameOf(c *cli.Context, at place) (chain.Path, error) {
	as := c.String("as")
	switch {
	case as == "" && c.IsSet("as"):
		return "", fmt.Errorf("the name to bring %s back as is empty", chain.Printable(at.given))
	case as == "":
		return "", nil
	case as == "." || as == "..":
		return "", fmt.Errorf("%s is no name to bring %s back as", as, chain.Printable(at.given))
	case !strings.Contains(as, "/"):
		return at.path.Dir().Join(as), nil
	}
	to, err := locateGone(c.Context, as)
	if err == nil && to.tree != at.tree {
		err = fmt.Errorf("%s is not in the tree that %s was deleted from; name a place in it", chain.Printable(as), chain.Printable(at.given))
	}
	return to.path, err
}
