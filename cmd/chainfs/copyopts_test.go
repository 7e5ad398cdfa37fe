package main

import (
	"strings"
	"testing"

	"github.com/chainfs/chainfs/qemu"
)

func TestParseRate(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "500": 500, "500K": 500 << 10, "20M": 20 << 20, "20MiB": 20 << 20, "1.5g": 3 << 29, "2T": 2 << 40, "1k": 1024,
	} {
		if got, err := parseRate(in); err != nil || got != want {
			t.Errorf("%q: got %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "M", "-1", "1.2.3", "fast", "1M/s", "0.1", "NaN", "Inf", "9e99T"} {
		if got, err := parseRate(in); err == nil || !strings.Contains(err.Error(), "500K, 20M or 1.5G") {
			t.Errorf("%q: got %d, %v", in, got, err)
		}
	}
}

func TestMountOptionsOfCopying(t *testing.T) {
	var o mountOptions
	if err := o.parse("verify=always,limit-rate=2M"); err != nil || o.Verify != qemu.VerifyAlways || o.LimitRate != 2<<20 {
		t.Errorf("got %+v, %v", o, err)
	}
	for _, bad := range []string{"verify=sometimes", "verify=", "limit-rate=much", "verify"} {
		if err := o.parse(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
