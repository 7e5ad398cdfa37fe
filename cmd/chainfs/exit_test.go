package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/chainfs/chainfs/chain"
)

func TestExits(t *testing.T) {
	tests := []struct {
		err     error
		code    int
		message string
	}{
		{chain.Refuse("a", "a is needed by b"), 3, "a is needed by b"},
		{fmt.Errorf("rm: %w", chain.Refuse("a", "x")), 3, "rm: x"},
		{errRefusedQuietly, 3, ""},
		{errFound, 1, ""},
		{inBackground(context.Canceled), 1, errGoesOn.Error()},
		{inBackground(chain.Refuse("a", "a is in use")), 1, "a is in use"},
		{context.Canceled, 1, "interrupted; what was not yet committed is undone (chainfs ops shows it)"},
		{errors.New("two\nlines\x1b[31m"), 1, `two; lines\x1b[31m`},
		{&daemonError{outcome{3, "no"}}, 3, "no"},
		{&daemonError{outcome{1, "no"}}, 1, "no"},
		{chain.ErrTreeGone, 1, "the tree is not there"},
	}
	matched := map[int]bool{}
	for _, tt := range tests {
		if got := exitCode(tt.err); got != tt.code {
			t.Errorf("exitCode(%v) = %d, want %d", tt.err, got, tt.code)
		}
		if got := messageOf(tt.err); got != tt.message {
			t.Errorf("messageOf(%v) = %q, want %q", tt.err, got, tt.message)
		}
		for i, e := range exits {
			if e.is(tt.err) {
				matched[i] = true
				break
			}
		}
	}
	for i := range exits {
		if !matched[i] {
			t.Errorf("no case for line %d of the table", i)
		}
	}
}

// TestFlagsFirst: options stand where people write them.
func TestFlagsFirst(t *testing.T) {
	tests := []struct{ args, want string }{
		{"chainfs", "chainfs"},
		{"chainfs nonsense a -b", "chainfs nonsense a -b"},
		{"chainfs rm a --dry-run b", "chainfs rm --dry-run -- a b"},
		{"chainfs rm -rf a", "chainfs rm -rf -- a"},
		{"chainfs mount /a /b -o ro,store=/x", "chainfs mount -o ro,store=/x -- /a /b"},
		{"chainfs mount --store /x /a /b --foreground", "chainfs mount --store /x --foreground -- /a /b"},
		{"chainfs mount --store=/x /a /b", "chainfs mount --store=/x -- /a /b"},
		{"chainfs rm -- -f --json", "chainfs rm -- -f --json"},
		{"chainfs info -", "chainfs info -- -"},
		{"chainfs ops cancel 7 mnt --json", "chainfs ops cancel --json -- 7 mnt"},
		{"chainfs ops --json retry 7", "chainfs ops retry --json -- 7"},
		{"chainfs ops mnt cancel", "chainfs ops -- mnt cancel"},
		{"chainfs ops cancel retry", "chainfs ops cancel -- retry"},
		{"chainfs ops --limit 3 mnt", "chainfs ops --limit 3 -- mnt"},
	}
	for _, tt := range tests {
		got, err := flagsFirst(newApp(nil, nil), strings.Fields(tt.args))
		if err != nil || strings.Join(got, " ") != tt.want {
			t.Errorf("flagsFirst(%s) = %s, %v, want %s", tt.args, strings.Join(got, " "), err, tt.want)
		}
	}
}
