package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/cmd/chainfs/control"
)

// releaseTime is how long a daemon may take to give up its tree.
const releaseTime = time.Minute

func umountCommand() *cli.Command {
	return &cli.Command{
		Name:      "umount",
		Usage:     "unmount, and return when the tree is free",
		ArgsUsage: "MOUNTPOINT",
		Action:    runUmount,
	}
}

func runUmount(c *cli.Context) error {
	if err := arguments(c, 1, 1); err != nil {
		return err
	}
	m, err := findMount(c.Context, c.Args().First())
	if err != nil {
		return err
	}
	id, err := inTime(c.Context, func() (string, error) { return treeAttr(m.Point) })
	switch {
	case errors.Is(err, unix.ENOTCONN):
		return detachDead(m)
	case err != nil:
		return fmt.Errorf("%s %w", m.Point, err)
	}
	if err := unmount(m.Point, 0); err != nil {
		return busy(m.Point, err)
	}
	readOnlyAt := ""
	if m.ReadOnly {
		readOnlyAt = m.Point
	}
	socket := filepath.Join(control.Dir(m.UID), control.Name(id, readOnlyAt))
	if err := control.WaitReleased(socket, releaseTime); err != nil {
		return fmt.Errorf("%s is unmounted, but its daemon has not let go of the tree: %w", m.Point, err)
	}
	return nil
}

// findMount is the chainfs mount at a mountpoint, which may be dead.
func findMount(ctx context.Context, given string) (mountEntry, error) {
	at, err := inTime(ctx, func() (string, error) { return resolve(given) })
	if err != nil {
		if at, err = filepath.Abs(given); err != nil {
			return mountEntry{}, err
		}
	}
	mounts, err := readMounts()
	if err != nil {
		return mountEntry{}, err
	}
	real, _ := inTime(ctx, func() (string, error) { return realDir(given) }) // a link to it, where it answers
	for _, at := range []string{at, real} {
		if m, is := mountAt(mounts, at); is && m.Point == at {
			return m, nil
		}
	}
	return mountEntry{}, fmt.Errorf("%s is not the mountpoint of a chainfs mount; findmnt -t %s lists them", chain.Printable(given), fuseType)
}

// detachDead removes what a daemon that was killed has left.
func detachDead(m mountEntry) error {
	if err := detach(m.Point); err != nil {
		return fmt.Errorf("detach the dead mount at %s: %w", m.Point, err)
	}
	return nil
}
