package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// A daemon is the same command run again in a session of its own. It has a pipe
// to the first process, which waits for one outcome on it: that the mount
// answers, or why it does not.

// readyEnv names the pipe's descriptor. With --foreground it can be used to
// learn when the mount answers.
const readyEnv = "CHAINFS_READY_FD"

// daemonEnv tells the second process that it is the daemon.
const daemonEnv = "CHAINFS_DAEMON"

// outcome is what goes through the pipe.
type outcome struct {
	Code    int    `json:"code"`
	Message string `json:"message,omitempty"`
}

// readyPipe is the daemon's end. Without a pipe it tells nobody.
type readyPipe struct {
	file   *os.File
	daemon bool
}

// readiness is the pipe that this process was started with, and whether it is
// the daemon.
func readiness() (*readyPipe, bool) {
	p := &readyPipe{daemon: os.Getenv(daemonEnv) != ""}
	if fd, err := strconv.Atoi(os.Getenv(readyEnv)); err == nil && fd > 2 {
		unix.CloseOnExec(fd) // qemu-img must not keep it open
		p.file = os.NewFile(uintptr(fd), "ready")
	}
	os.Unsetenv(daemonEnv)
	os.Unsetenv(readyEnv)
	return p, p.daemon
}

// tell reports the outcome, once, and returns err.
func (p *readyPipe) tell(err error) error {
	if p.file == nil {
		return err
	}
	o := outcome{Code: exitOK}
	if err != nil {
		o = outcome{exitCode(err), messageOf(err)}
	}
	json.NewEncoder(p.file).Encode(o) // fails when nobody waits any more
	p.file.Close()
	p.file = nil
	return err
}

// daemonise starts the daemon and returns its outcome.
func daemonise(ctx context.Context) error {
	ours, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ours.Close() // it was only read
	cmd, err := startDaemon(theirs)
	theirs.Close() // the daemon has it
	if err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	defer context.AfterFunc(ctx, func() { cmd.Process.Signal(unix.SIGTERM) })()
	var o outcome
	switch err := json.NewDecoder(ours).Decode(&o); {
	case errors.Is(err, io.EOF):
		return fmt.Errorf("the daemon ended before the mount answered (%v); its log may tell why", cmd.Wait())
	case err != nil:
		return fmt.Errorf("wait for the daemon: %w", err)
	case o.Code == exitOK:
		return nil
	}
	cmd.Wait() // what it has to say was in the pipe
	return &daemonError{o}
}

// daemonError is what kept the daemon from mounting.
type daemonError struct{ outcome }

func (e *daemonError) Error() string { return e.Message }

// startDaemon runs this command again. Of the caller's descriptors it gets none.
func startDaemon(ready *os.File) (*exec.Cmd, error) {
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return nil, fmt.Errorf("close the caller's descriptors: %w", err)
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.ExtraFiles = []*os.File{ready} // descriptor 3
	cmd.Env = append(os.Environ(), daemonEnv+"=1", readyEnv+"=3")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd, cmd.Start() // with nil for all three, stdio is /dev/null
}
