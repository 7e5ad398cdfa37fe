package main

import (
	"context"
	"errors"
	"strings"

	"github.com/chainfs/chainfs/chain"
)

// The exit statuses. They are part of the interface.
const (
	exitOK      = 0 // it is done, or the answer is yes
	exitError   = 1 // it failed; check: there are findings
	exitRefused = 3 // a decision: it would destroy a backup, and nothing was changed
)

// exits says which errors have a status of their own, the first that matches.
// All others are exitError.
var exits = []struct {
	is   func(error) bool
	code int
}{
	{isRefused, exitRefused},
	{isErr(errRefusedQuietly), exitRefused},
	{isErr(errFound), exitError},
	{isErr(context.Canceled), exitError},
}

var (
	// errRefusedQuietly: the answer is a refusal and has been printed.
	errRefusedQuietly = errors.New("refused")
	// errFound: check has printed findings.
	errFound = errors.New("there are findings")
)

func isRefused(err error) bool {
	var refused *chain.RefusedError
	return errors.As(err, &refused)
}

func isErr(target error) func(error) bool {
	return func(err error) bool { return errors.Is(err, target) }
}

func exitCode(err error) int {
	var told *daemonError
	if errors.As(err, &told) {
		return told.Code
	}
	for _, e := range exits {
		if e.is(err) {
			return e.code
		}
	}
	return exitError
}

// messageOf is the one line on stderr, empty where the answer says it all.
func messageOf(err error) string {
	switch {
	case errors.Is(err, errRefusedQuietly), errors.Is(err, errFound):
		return ""
	case errors.Is(err, context.Canceled):
		return "interrupted; what was not yet committed is undone (chainfs ops shows it)"
	}
	lines := strings.Split(strings.TrimSpace(err.Error()), "\n")
	return chain.Printable(strings.Join(lines, "; "))
}
