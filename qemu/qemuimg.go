package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/chainfs/chainfs/chain"
	"golang.org/x/sys/unix"
)

// outcome is how a qemu-img that ran ended.
type outcome struct {
	act    string // "rebase", "compare", ...
	status int    // -1 when a signal ended it
	output string // the end of what it printed
	state  string
}

// error is the outcome as an error, unix.ENOSPC where that was the cause.
func (o outcome) error() error {
	text := o.output
	if text == "" {
		text = o.state
	}
	err := fmt.Errorf("qemu-img %s: %s", o.act, text)
	switch {
	case strings.Contains(o.output, unix.ENOSPC.Error()), strings.Contains(o.output, "No space left on device"):
		return fmt.Errorf("%w: %w", err, unix.ENOSPC)
	case strings.Contains(o.output, "Disk quota exceeded"):
		return fmt.Errorf("%w: %w", err, unix.EDQUOT)
	}
	return err
}

// qemuImg runs qemu-img in the child's directory and waits for its end. The
// error is about running it at all, and about a cancelled context.
func (w *rebase) qemuImg(ctx context.Context, args ...string) (outcome, error) {
	program, err := exec.LookPath(w.opts.Program)
	if err != nil {
		return outcome{}, fmt.Errorf("find qemu-img: %w", err)
	}
	if err := w.mounts.open(w.files, w.opts); err != nil {
		return outcome{}, err
	}
	out := &tail{}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{"LC_ALL=C", "PATH=" + os.Getenv("PATH")}
	cmd.Stdout = &percent{total: w.job.Bytes, report: w.progress, rest: out}
	cmd.Stderr = out
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setpgid:   true,
		Pdeathsig: syscall.SIGKILL, // of the thread; see start
	}
	cmd.Cancel = func() error { return w.kill(cmd.Process.Pid) }
	cmd.WaitDelay = 5 * time.Second

	err = w.inOwnThread(cmd)
	if ctxErr := ctx.Err(); ctxErr != nil {
		return outcome{}, fmt.Errorf("qemu-img %s: %w", args[0], ctxErr)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return outcome{}, fmt.Errorf("run qemu-img %s: %w", args[0], err)
	}
	return outcome{args[0], cmd.ProcessState.ExitCode(), chain.Printable(out.String()), cmd.ProcessState.String()}, nil
}

// kill ends a qemu-img that was cancelled, and has it end soon: a process that waits
// for a sync cannot be killed before that ends. So what it syncs is taken away. The
// scratch file is of no use any more, whatever becomes of qemu-img.
func (w *rebase) kill(pid int) error {
	err := syscall.Kill(-pid, syscall.SIGKILL)
	_ = w.scratch.Truncate(0) // only to be quick
	return err
}

// inOwnThread runs cmd in a thread of its own that lives as long as cmd does:
// Pdeathsig strikes when the thread that started it ends, and the mount namespace
// belongs to the thread. The thread is never unlocked, so it ends with the
// goroutine and no other goroutine ever runs in its namespace.
func (w *rebase) inOwnThread(cmd *exec.Cmd) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			// The main thread cannot end, and its namespace is what /proc shows
			// as that of the process. While it is locked here, the next
			// goroutine gets another thread.
			defer runtime.UnlockOSThread()
			done <- w.inOwnThread(cmd)
			return
		}
		done <- w.start(cmd)
	}()
	return <-done
}

func (w *rebase) start(cmd *exec.Cmd) error {
	if err := w.mounts.enter(w.dir); err != nil {
		return err
	}
	// The thread may outlive the call by a moment, and must not keep the tree from
	// being unmounted. "/" is always there.
	defer func() { _ = unix.Chdir("/") }()
	if err := cmd.Start(); err != nil { // in the working directory of this thread
		return err
	}
	limit(cmd.Process.Pid, w.opts.AddressSpace)
	return cmd.Wait()
}

// limit bounds what a qemu-img that is led astray by an image can take: memory,
// and no core file, which would hold data of guests. CPU time is not bounded: a
// large disk takes hours. The limits come a moment after the start, because Go
// cannot set them between fork and exec and they must not be ours; no image can
// make qemu-img allocate that fast. It cannot fail for a child that we have not
// waited for, except that it has ended.
func limit(pid int, addressSpace uint64) {
	_ = unix.Prlimit(pid, unix.RLIMIT_AS, &unix.Rlimit{Cur: addressSpace, Max: addressSpace}, nil)
	_ = unix.Prlimit(pid, unix.RLIMIT_CORE, &unix.Rlimit{}, nil)
}
