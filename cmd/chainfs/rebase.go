package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/cmd/chainfs/control"
)

// nothing, in the place of a backing name, makes the target a full.
const nothing = "none"

func rebaseCommand() *cli.Command {
	return &cli.Command{
		Name:      "rebase",
		Usage:     "put an image on another image of its chain; it reads as before",
		ArgsUsage: "TARGET NEW_BACKING",
		Description: "TARGET is a path, or relative to the root of the tree around the working directory.\n" +
			"NEW_BACKING is relative to TARGET's directory, as in the image itself; or a path;\n" +
			"or relative to the root of the tree. \"\" or none makes TARGET a full.",
		Flags:  append(copyFlags(), jsonFlag(), storeFlag()),
		Action: runRebase,
	}
}

func runRebase(c *cli.Context) error {
	if err := arguments(c, 2, 2); err != nil {
		return err
	}
	at, err := locateInTree(c.Context, c.Args().Get(0))
	if err != nil {
		return err
	}
	return at.use(c, toWrite, func(svc control.Service) error {
		parent, err := findParent(c.Context, svc, at, c.Args().Get(1))
		if err != nil {
			return err
		}
		bar := newBar(c.App.ErrWriter)
		result, err := svc.Rebase(c.Context, control.RebaseRequest{Target: at.path, Parent: parent}, bar.report)
		bar.clear()
		if err != nil || !c.Bool("json") {
			return explain(err, at)
		}
		return printJSON(c.App.Writer, result)
	})
}

// locateInTree is locate, and where that finds nothing, a path relative to the
// root of the tree around the working directory.
func locateInTree(ctx context.Context, given string) (place, error) {
	at, err := locate(ctx, given)
	if err == nil && at.tree != "" || filepath.IsAbs(given) {
		return at, err
	}
	around, aroundErr := locate(ctx, ".")
	p, inside := chain.NewPath(given)
	if aroundErr != nil || around.tree == "" || !inside {
		return at, err
	}
	around.given, around.path = given, p
	return around, nil
}

// findParent is the image that a new backing name means.
func findParent(ctx context.Context, svc control.Service, target place, name string) (chain.Path, error) {
	if name == "" || name == nothing {
		return "", nil
	}
	for _, p := range candidates(ctx, target, name) {
		_, err := svc.Info(ctx, p)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return p, err
		}
	}
	return "", fmt.Errorf("%s: there is no such file, neither in the directory of %s nor in the tree; name an image of its chain, or none",
		chain.Printable(name), target.path)
}

// candidates are what name may mean, the likeliest first.
func candidates(ctx context.Context, target place, name string) []chain.Path {
	var all []chain.Path
	if !filepath.IsAbs(name) {
		if p, ok := chain.NewPath(path.Join(string(target.path.Dir()), name)); ok {
			all = append(all, p)
		}
	}
	if at, err := locate(ctx, name); err == nil && at.tree == target.tree {
		all = append(all, at.path)
	}
	if p, ok := chain.NewPath(name); ok {
		all = append(all, p)
	}
	return all
}
