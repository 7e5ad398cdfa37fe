//go:build failpoints

package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/qemu"
)

// failpoint reads CHAINFS_FAIL, which says what happens before a step:
//
//	LABEL[:N]=kill           the process ends by SIGKILL
//	LABEL[:N]=shutdown:PATH  the file system of PATH loses power, then kill
//	LABEL[:N]=sleep:DURATION
//	LABEL[:N]=pause:FIFO     waits until FIFO is opened for writing and closed
//
// It happens at the N-th time, the first unless said otherwise. chainfs labels
// lists the labels.
func failpoint() (func(label string), error) {
	spec := os.Getenv("CHAINFS_FAIL")
	if spec == "" {
		return nil, nil
	}
	at, what, ok := strings.Cut(spec, "=")
	if !ok {
		return nil, fmt.Errorf("CHAINFS_FAIL=%s has no =", spec)
	}
	act, err := failAct(what)
	if err != nil {
		return nil, err
	}
	label, nth := splitCount(at)
	var met atomic.Int64
	return func(l string) {
		if l == label && met.Add(1) == nth {
			act()
		}
	}, nil
}

// splitCount splits LABEL:N. Labels have colons of their own.
func splitCount(at string) (string, int64) {
	if i := strings.LastIndexByte(at, ':'); i >= 0 {
		if n, err := strconv.ParseInt(at[i+1:], 10, 64); err == nil {
			return at[:i], n
		}
	}
	return at, 1
}

func failAct(what string) (func(), error) {
	verb, arg, _ := strings.Cut(what, ":")
	switch verb {
	case "kill":
		return killSelf, nil
	case "shutdown":
		return func() { powerCut(arg); killSelf() }, nil
	case "sleep":
		d, err := time.ParseDuration(arg)
		return func() { time.Sleep(d) }, err
	case "pause":
		return func() { _, _ = os.ReadFile(arg) }, nil // whatever comes, it is time to go on
	}
	return nil, fmt.Errorf("CHAINFS_FAIL does not know %q", what)
}

func killSelf() {
	unix.Kill(os.Getpid(), unix.SIGKILL)
	select {} // the signal may come a moment later, and not one step more may be made
}

// powerCut is XFS_IOC_GOINGDOWN, which ext4 and btrfs know too, with "discard
// all that is not on disk". When it fails the test must notice.
func powerCut(path string) {
	const goingDown, noLogFlush = 0x8004587d, 2
	fd, err := unix.Open(path, unix.O_RDONLY, 0)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, goingDown, noLogFlush)
	}
	if err != nil {
		panic(fmt.Sprintf("cut the power of %s: %v", path, err))
	}
}

// byCopy: with CHAINFS_BY_COPY=1 every rebase goes by a scratch copy.
func byCopy() bool { return os.Getenv("CHAINFS_BY_COPY") == "1" }

func testCommands() []*cli.Command {
	return []*cli.Command{{
		Name:   "labels",
		Hidden: true,
		Usage:  "print the labels of all steps, for CHAINFS_FAIL",
		Action: func(c *cli.Context) error {
			for _, l := range append(append([]string{}, chain.Labels...), qemu.Labels...) {
				fmt.Fprintln(c.App.Writer, l)
			}
			return nil
		},
	}}
}
