package main

import (
	"strings"
	"testing"
	"time"

	"github.com/chainfs/chainfs/chain"
)

func TestParseInlineLimit(t *testing.T) {
	for in, want := range map[string]int64{"0": 0, "all": -1, "64M": 64 << 20, "500k": 500 << 10, "1.5GiB": 3 << 29, "7": 7} {
		if got, err := parseInlineLimit(in); err != nil || got != want {
			t.Errorf("%q: got %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "-1", "ALL", "none", "64 M", "1M/s", "NaN", "9e99"} {
		if got, err := parseInlineLimit(in); err == nil || !strings.Contains(err.Error(), "500K, 64M or 1.5G") {
			t.Errorf("%q: got %d, %v", in, got, err)
		}
	}
}

func TestParseDuration(t *testing.T) {
	const day = 24 * time.Hour
	for in, want := range map[string]time.Duration{
		"0": 0, "0s": 0, "5s": 5 * time.Second, "1h30m": 90 * time.Minute, "1.5h": 90 * time.Minute, "250ms": 250 * time.Millisecond,
		"7d": 7 * day, "2w": 14 * day, "1w2d": 9 * day, "1d12h": 36 * time.Hour, "0.5d": 12 * time.Hour, "0d": 0,
	} {
		if got, err := parseDuration("keep", in); err != nil || got != want {
			t.Errorf("%q: got %v, %v, want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "5", "d", "7 d", "-7d", "7d-1h", "7d+1h", "7y", "12hd", "1h2d", "-5s", "+5s", "999999w", "1e3d", "NaN"} {
		if got, err := parseDuration("keep", in); err == nil || !strings.Contains(err.Error(), "7d or 2w") {
			t.Errorf("%q: got %v, %v", in, got, err)
		}
	}
}

func TestMountOptionsOfDeferral(t *testing.T) {
	o := mountOptions{Deferral: defaultDeferral}
	if err := o.parse("settle=1m,keep=7d,workers=3"); err != nil {
		t.Fatal(err)
	}
	want := chain.Deferral{InlineLimit: 64 << 20, Settle: time.Minute, Grace: time.Second, Keep: 7 * 24 * time.Hour, Workers: 3}
	if got := o.Deferral; got.InlineLimit != want.InlineLimit || got.Settle != want.Settle || got.Keep != want.Keep || got.Workers != want.Workers {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if err := o.parse("inline-limit=all"); err != nil || o.Deferral.InlineLimit != -1 {
		t.Errorf("inline-limit=all: %d, %v", o.Deferral.InlineLimit, err)
	}
	for _, bad := range []string{"workers=0", "workers=65", "workers=two", "workers=", "keep=always", "keep", "settle=5", "inline-limit=much"} {
		if err := o.parse(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
