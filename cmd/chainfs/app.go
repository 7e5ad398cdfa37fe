package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

func newApp(stdout, stderr io.Writer) *cli.App {
	app := &cli.App{
		Name:                   "chainfs",
		Usage:                  "a file system over a tree of qcow2 backups in which rm is safe",
		HideVersion:            true, // there is a command
		UseShortOptionHandling: true,
		Writer:                 stdout,
		ErrWriter:              stderr,
		Commands: append([]*cli.Command{
			mountCommand(), umountCommand(),
			treeCommand(), infoCommand(), whyCommand(),
			rmCommand(), undeleteCommand(), trashCommand(), rebaseCommand(),
			scanCommand(), opsCommand(), waitCommand(), checkCommand(),
			versionCommand(),
		}, testCommands()...),
		// Errors are printed in one place, and nothing but main exits.
		ExitErrHandler: func(*cli.Context, error) {},
		OnUsageError:   usageError,
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return fmt.Errorf("there is no command %q; chainfs --help lists them", c.Args().First())
			}
			return cli.ShowAppHelp(c)
		},
	}
	for _, command := range app.Commands {
		command.OnUsageError = usageError
		command.HideHelpCommand = true
		for _, sub := range command.Subcommands {
			sub.OnUsageError = usageError
			sub.HideHelpCommand = true
		}
	}
	return app
}

func usageError(c *cli.Context, err error, _ bool) error {
	return fmt.Errorf("%w; %s --help shows what there is", err, fullName(c))
}

// fullName is how a command is called: chainfs ops cancel.
func fullName(c *cli.Context) string {
	if c.Command != nil && c.Command.HelpName != "" {
		return c.Command.HelpName
	}
	return "chainfs"
}

// The flags that several commands have.
func jsonFlag() cli.Flag {
	return &cli.BoolFlag{Name: "json", Usage: "print JSON"}
}

func storeFlag() cli.Flag {
	return &cli.StringFlag{Name: "store", EnvVars: []string{"CHAINFS_STORE"}, Usage: "the tree's store is in `DIR`, where no daemon answers"}
}

// arguments checks how many there are. max below 0 is any number.
func arguments(c *cli.Context, min, max int) error {
	n := c.NArg()
	if n >= min && (max < 0 || n <= max) {
		return nil
	}
	return fmt.Errorf("usage: %s %s", fullName(c), c.Command.ArgsUsage)
}

// pathOrHere is the path that was given. An empty one was given by mistake: it
// does not mean "here".
func pathOrHere(c *cli.Context) string {
	if c.NArg() == 0 {
		return "."
	}
	return c.Args().First()
}

// flagsFirst moves flags before the arguments: people write them behind, and so
// does mount(8). After "--" nothing is a flag. The name of a subcommand (ops
// cancel) stays in front, and the flags are its own.
func flagsFirst(app *cli.App, args []string) ([]string, error) {
	if len(args) < 2 {
		return args, nil
	}
	command := app.Command(args[1])
	if command == nil {
		return args, nil
	}
	head := slices.Clone(args[:2])
	var flags, rest []string
	for i := 2; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			rest = append(rest, args[i+1:]...)
			break
		}
		if sub := command.Command(arg); sub != nil && len(head) == 2 && len(rest) == 0 {
			command, head = sub, append(head, arg)
			continue
		}
		if len(arg) < 2 || arg[0] != '-' {
			rest = append(rest, arg)
			continue
		}
		flags = append(flags, arg)
		if takesValue(command, arg) {
			if i++; i == len(args) {
				return nil, fmt.Errorf("%s needs a value; %s --help shows what there is", arg, strings.Join(append([]string{"chainfs"}, head[1:]...), " "))
			}
			flags = append(flags, args[i])
		}
	}
	return slices.Concat(head, flags, []string{"--"}, rest), nil
}

// takesValue reports whether the argument after arg is its value.
func takesValue(command *cli.Command, arg string) bool {
	name := strings.TrimLeft(arg, "-")
	for _, f := range command.Flags {
		doc, is := f.(cli.DocGenerationFlag)
		if is && doc.TakesValue() && slices.Contains(f.Names(), name) {
			return true
		}
	}
	return false
}
