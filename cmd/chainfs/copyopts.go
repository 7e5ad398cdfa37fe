package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/chainfs/chainfs/qemu"
)

// copyFlags say how what is merged is copied. A daemon that serves the tree goes
// by its own.
func copyFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "verify", EnvVars: []string{"CHAINFS_VERIFY"}, Usage: "read back what was copied before anything depends on it: always, never, or `WHEN` it is at most 1 GiB: auto (default: auto)"},
		&cli.StringFlag{Name: "limit-rate", EnvVars: []string{"CHAINFS_LIMIT_RATE"}, Usage: "copy at most `BYTES` a second in all, as 20M or 1.5G (default: no limit)"},
	}
}

func parseVerify(s string) (qemu.Verify, error) {
	switch v := qemu.Verify(s); v {
	case qemu.VerifySome, qemu.VerifyAlways, qemu.VerifyNever:
		return v, nil
	}
	return "", fmt.Errorf("verify %q is unknown; it is one of auto, always, never", s)
}

func parseRate(s string) (int64, error) {
	if n, ok := parseBytes(s); ok {
		return n, nil
	}
	return 0, fmt.Errorf("limit-rate %q is no number of bytes a second; write it as 500K, 20M or 1.5G, or 0 for no limit", s)
}

// parseBytes reads a number of bytes with an optional binary unit.
func parseBytes(s string) (int64, bool) {
	number, factor := strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(s), "B"), "I"), 1.0
	if i := strings.IndexAny(number, "KMGT"); i >= 0 && i == len(number)-1 {
		factor = math.Pow(1024, float64(strings.IndexByte("KMGT", number[i])+1))
		number = number[:i]
	}
	n, err := strconv.ParseFloat(number, 64)
	if bytes := n * factor; err == nil && (n == 0 || bytes >= 1) && bytes < math.MaxInt64 {
		return int64(bytes), true
	}
	return 0, false
}
