package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/cmd/chainfs/control"
)

func treeCommand() *cli.Command {
	return &cli.Command{
		Name:      "tree",
		Usage:     "draw the chains at or below PATH (default: all of the tree around the working directory)",
		ArgsUsage: "[PATH]",
		Flags:     []cli.Flag{jsonFlag(), storeFlag()},
		Action:    runTree,
	}
}

func runTree(c *cli.Context) error {
	if err := arguments(c, 0, 1); err != nil {
		return err
	}
	return withTree(c, pathOrHere(c), toLook, func(svc control.Service, p chain.Path) error {
		if c.NArg() == 0 {
			p = ""
		}
		infos, err := svc.Tree(c.Context, p)
		switch {
		case err != nil:
			return err
		case c.Bool("json"):
			return printJSON(c.App.Writer, infos)
		}
		drawTree(c.App.Writer, infos, terminalWidth(c.App.Writer))
		return nil
	})
}

// drawTree prints a listing: parents before their children.
func drawTree(w io.Writer, infos []chain.Info, width int) {
	if len(infos) == 0 {
		fmt.Fprintln(w, "no images")
		return
	}
	t := table{right: map[int]bool{2: true, 3: true, 4: true}}
	t.add("IMAGE", "KIND", "POS", "VIRTUAL", "ALLOCATED", "WRITTEN", "IN THE WAY OF ITS DELETION")
	branches := branchesOf(infos)
	for i, info := range infos {
		t.add(imageCell(branches[i], shown(info.Path), width), info.Kind.String(), strconv.Itoa(int(info.Position)),
			chain.Size(info.VirtualSize), chain.Size(info.Allocated), date(info.Written), inTheWay(info))
	}
	t.print(w, width)
}

// imageCell is a branch and a name; on a terminal it takes a half of the width
// at most.
func imageCell(branch, name string, width int) string {
	if width == 0 {
		return branch + name
	}
	branch = cutFront(branch, max(width/6, 8))
	room := max(width/2-len([]rune(branch)), 12)
	return branch + cutFront(name, room)
}

// branchesOf draws the lines before each name. The listing is a walk of trees,
// so an image's parent is the last one before it that has its parent's path.
func branchesOf(infos []chain.Info) []string {
	listed := map[chain.Path]bool{}
	left := map[chain.Path]int{} // children still to come
	for _, info := range infos {
		listed[info.Path] = true
		if listed[info.Parent] && info.Parent != "" {
			left[info.Parent]++
		}
	}
	indent := map[chain.Path]string{} // of the children of a path
	branches := make([]string, len(infos))
	for i, info := range infos {
		before, has := indent[info.Parent]
		if info.Parent == "" || !has {
			indent[info.Path] = ""
			continue
		}
		if left[info.Parent]--; left[info.Parent] > 0 {
			branches[i], indent[info.Path] = before+"├── ", before+"│   "
		} else {
			branches[i], indent[info.Path] = before+"└── ", before+"    "
		}
	}
	return branches
}

// inTheWay is in few words what chainfs why says in a sentence.
func inTheWay(info chain.Info) string {
	switch {
	case info.Problem != "":
		return info.Problem
	case chain.Shown(info.Path) != info.Path:
		return "" // it is deleted
	case info.Decision != chain.Refused:
		return ""
	case info.Kind != chain.Incremental && len(info.Children) == 1:
		return "1 image stands on it"
	case info.Kind != chain.Incremental && len(info.Children) > 1:
		return fmt.Sprintf("%d images stand on it", len(info.Children))
	}
	reason, _, _ := strings.Cut(info.Reason, ";")
	return reason
}
