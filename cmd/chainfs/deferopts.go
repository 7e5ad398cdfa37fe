package main

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/chainfs/chainfs/chain"
)

// defaultDeferral is what a mount does unless it is told otherwise.
var defaultDeferral = chain.Deferral{InlineLimit: 64 << 20, Settle: 5 * time.Second, Grace: time.Second, Workers: 2}

// maxWorkers bounds --workers: each has images open, and the NAS is one.
const maxWorkers = 64

// deferralFlags say what of a deletion is done after unlink has returned, and how.
func deferralFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "inline-limit", EnvVars: []string{"CHAINFS_INLINE_LIMIT"}, Usage: "unlink waits until at most `SIZE` is copied, as 64M; what takes more is done in the background; 0 or all (default: 64M)"},
		&cli.StringFlag{Name: "settle", EnvVars: []string{"CHAINFS_SETTLE"}, Usage: "begin in the background when a chain was left alone for `DURATION`, as 30s or 10m (default: 5s)"},
		&cli.StringFlag{Name: "keep", EnvVars: []string{"CHAINFS_KEEP"}, Usage: "deleted images can be brought back for `DURATION`, as 12h, 7d or 2w (default: 0, until work on them begins)"},
		&cli.StringFlag{Name: "workers", EnvVars: []string{"CHAINFS_WORKERS"}, Usage: "work on `N` chains at a time in the background (default: 2)"},
	}
}

// parseInlineLimit reads a size; all is no limit.
func parseInlineLimit(s string) (int64, error) {
	if s == "all" {
		return -1, nil
	}
	if n, ok := parseBytes(s); ok {
		return n, nil
	}
	return 0, fmt.Errorf("inline-limit %q is no size; write it as 500K, 64M or 1.5G, 0 to do everything in the background that copies anything, or all to do nothing there", s)
}

func parseWorkers(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > maxWorkers {
		return 0, fmt.Errorf("workers %q is no number from 1 to %d", s, maxWorkers)
	}
	return n, nil
}

// longUnits are what Go's durations lack.
var longUnits = map[string]time.Duration{"d": 24 * time.Hour, "w": 7 * 24 * time.Hour}

var longPart = regexp.MustCompile(`^([0-9]+(?:\.[0-9]+)?)([dw])`)

// parseDuration reads a duration of Go with weeks and days before it: 2w, 1d12h.
func parseDuration(option, s string) (time.Duration, error) {
	bad := fmt.Errorf("%s %q is no duration; write it as 30s, 10m, 12h, 7d or 2w, or 0", option, s)
	var sum float64
	rest := s
	for part := longPart.FindStringSubmatch(rest); part != nil; part = longPart.FindStringSubmatch(rest) {
		n, err := strconv.ParseFloat(part[1], 64)
		if err != nil {
			return 0, bad
		}
		sum += n * float64(longUnits[part[2]])
		rest = rest[len(part[0]):]
	}
	if rest != "" || s == "" {
		d, err := time.ParseDuration(rest)
		if err != nil || rest[0] == '-' || rest[0] == '+' {
			return 0, bad
		}
		sum += float64(d)
	}
	if sum >= math.MaxInt64 {
		return 0, bad
	}
	return time.Duration(sum), nil
}
