//go:build !failpoints

package main

import "github.com/urfave/cli/v2"

// failpoint is the hook before each step of an operation: none, except in a
// binary for crash tests (go build -tags failpoints).
func failpoint() (func(label string), error) { return nil, nil }

// byCopy has no rebase done in place; for tests of the other way.
func byCopy() bool { return false }

func testCommands() []*cli.Command { return nil }
