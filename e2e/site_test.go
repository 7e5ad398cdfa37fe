package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// site is a tree with a mount of it, as an administrator has it.
type site struct {
	t      testing.TB
	tree   string
	mnt    string
	store  string
	refs   string            // flattened copies of the images, outside the tree
	want   map[string]string // image to its flattened copy: what it must read as
	fail   string            // CHAINFS_FAIL for the next daemon
	leaks  bool              // images may have leaks: something was cut off and not recovered
	leaky  bool              // and still will after the next recovery
	byCopy bool              // the next daemon does no rebase in place
}

// newSite makes an empty tree; nothing is mounted yet.
func newSite(t *testing.T) *site {
	t.Helper()
	return newSiteAt(t, t.TempDir())
}

func newSiteAt(t *testing.T, tree string) *site {
	t.Helper()
	s := &site{t: t, tree: tree, mnt: t.TempDir(), store: t.TempDir(), refs: t.TempDir(), want: map[string]string{}}
	t.Cleanup(s.kill)
	return s
}

// mount starts a daemon; it answers when this returns.
func (s *site) mount(options ...string) {
	s.t.Helper()
	if out, err := s.tryMount(options...); err != nil {
		s.t.Fatalf("chainfs mount: %v\n%s", err, out)
	}
}

func (s *site) tryMount(options ...string) (string, error) {
	args := append([]string{"mount", "--store", s.store}, options...)
	cmd := exec.Command(chainfs, append(args, s.tree, s.mnt)...)
	cmd.Env = os.Environ()
	if s.fail != "" {
		cmd.Env = append(cmd.Env, "CHAINFS_FAIL="+s.fail)
	}
	if s.byCopy {
		cmd.Env = append(cmd.Env, "CHAINFS_BY_COPY=1")
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (s *site) umount() {
	s.t.Helper()
	s.cli(0, "umount", s.mnt)
}

// pid is the daemon's process, 0 when there is none.
func (s *site) pid() int {
	data, err := os.ReadFile(filepath.Join(s.tree, ".chainfs/owner.lock"))
	var owner struct{ PID int }
	if err != nil || json.Unmarshal(data, &owner) != nil || owner.PID == 0 {
		return 0
	}
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", owner.PID))
	if err != nil || exe != chainfs {
		return 0
	}
	return owner.PID
}

// kill ends the daemon without mercy and removes the mount.
func (s *site) kill() {
	if pid := s.pid(); pid != 0 {
		syscall.Kill(pid, syscall.SIGKILL)
		s.waitGone(pid)
	}
	abort(s.mnt)
	for unix.Unmount(s.mnt, unix.MNT_DETACH) == nil {
	}
}

// abort cuts a mount off from its daemon, so that nobody hangs in it.
func abort(mnt string) {
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for _, line := range strings.Split(string(mounts), "\n") {
		f := strings.Fields(line)
		if len(f) < 5 || f[4] != mnt || !strings.Contains(line, " - fuse.chainfs ") {
			continue
		}
		const control = "/sys/fs/fuse/connections"
		unix.Mount("none", control, "fusectl", 0, "") // it may be mounted
		os.WriteFile(control+"/"+strings.TrimPrefix(f[2], "0:")+"/abort", []byte("1"), 0)
	}
}

func (s *site) waitGone(pid int) {
	for range 500 {
		if ended(pid) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	s.t.Errorf("process %d does not end", pid)
}

// ended reports whether a process has ended. One that nobody has asked for its
// status yet has, too, when all its threads are gone: what it had open is closed.
func ended(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	return strings.Contains(string(stat), ") Z ") && err == nil && len(threads) == 1
}

// result is what a command said.
type result struct {
	code     int
	out, err string
}

func command(t testing.TB, name string, args ...string) result {
	t.Helper()
	cmd := exec.Command(name, args...)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s %q: %v", name, args, err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), stderr.String()}
}

// cli runs chainfs and wants the exit code.
func (s *site) cli(code int, args ...string) result {
	s.t.Helper()
	r := command(s.t, chainfs, args...)
	if r.code != code {
		s.t.Fatalf("chainfs %q: exit code %d, want %d\n%s%s", args, r.code, code, r.out, r.err)
	}
	return r
}

// offline runs chainfs on the tree without a daemon.
func (s *site) offline(code int, command string, args ...string) result {
	s.t.Helper()
	return s.cli(code, append([]string{command, "--store", s.store}, args...)...)
}

// run runs another program and wants success.
func (s *site) run(name string, args ...string) string {
	s.t.Helper()
	r := command(s.t, name, args...)
	if r.code != 0 {
		s.t.Fatalf("%s %q: exit code %d\n%s%s", name, args, r.code, r.out, r.err)
	}
	return r.out
}

// busy runs a program in the mount's root and wants it to fail with EBUSY.
func (s *site) busy(name string, args ...string) {
	s.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = s.mnt
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "Device or resource busy") {
		s.t.Errorf("%s %q: got %v, want Device or resource busy\n%s", name, args, err, out)
	}
}

// sh runs a script in the mount's root and wants success.
func (s *site) sh(script string) {
	s.t.Helper()
	cmd := exec.Command("sh", "-ec", script)
	cmd.Dir = s.mnt
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

// image makes an image in the tree and remembers what it reads as. Each has
// data of its own, data that hides its parent's and a zeroed range. The backing
// name is relative unless one is given.
func (s *site) image(name, parent string, backing ...string) {
	s.t.Helper()
	file := filepath.Join(s.tree, name)
	mustDo(s.t, os.MkdirAll(filepath.Dir(file), 0o755))
	n := len(s.want) + 1
	if parent == "" {
		s.run("qemu-img", "create", "-q", "-f", "qcow2", file, "32M")
	} else {
		back, err := filepath.Rel(filepath.Dir(name), parent)
		mustDo(s.t, err)
		if len(backing) > 0 {
			back = backing[0]
		}
		format := "qcow2"
		if strings.HasSuffix(parent, ".raw") {
			format = "raw"
		}
		s.run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", back, "-F", format, file, "32M")
	}
	s.run("qemu-io", "-f", "qcow2",
		"-c", fmt.Sprintf("write -q -P %d %dk 192k", n%250+1, n%29*1024),
		"-c", fmt.Sprintf("write -q -P %d 30M 64k", n%250+1),
		"-c", fmt.Sprintf("write -q -z %dk 64k", (n+1)%29*1024), file)
	s.remember(name)
}

// raw makes a raw image.
func (s *site) raw(name string) {
	s.t.Helper()
	file := filepath.Join(s.tree, name)
	mustDo(s.t, os.MkdirAll(filepath.Dir(file), 0o755))
	s.run("qemu-img", "create", "-q", "-f", "raw", file, "32M")
	s.run("qemu-io", "-f", "raw", "-c", "write -q -P 99 1M 3M", file)
}

func (s *site) remember(name string) {
	s.t.Helper()
	ref := s.want[name]
	if ref == "" {
		ref = filepath.Join(s.refs, fmt.Sprint(len(s.want)))
	}
	s.run("qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", filepath.Join(s.tree, name), ref)
	s.want[name] = ref
}

// sidecar makes an XML file.
func (s *site) sidecar(name string) {
	s.t.Helper()
	mustDo(s.t, os.WriteFile(filepath.Join(s.tree, name), []byte("<domain/>\n"), 0o644))
}

func mustDo(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// gone takes images out of what must be there, and wants them not to be.
func (s *site) gone(names ...string) {
	s.t.Helper()
	for _, name := range names {
		delete(s.want, name)
		for _, at := range []string{s.tree, s.mnt} {
			if _, err := os.Lstat(filepath.Join(at, name)); !os.IsNotExist(err) {
				s.t.Errorf("%s is still in %s: %v", name, at, err)
			}
		}
	}
}

// intact compares every image that must be there with what it must read as,
// straight from the tree, and checks its metadata.
func (s *site) intact() {
	s.t.Helper()
	s.intactIn(s.tree)
}

func (s *site) intactIn(at string) {
	s.t.Helper()
	for name, ref := range s.want {
		file := filepath.Join(at, name)
		if r := command(s.t, "qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", file, ref); r.code != 0 {
			s.t.Errorf("%s does not read as before: %s%s", name, r.out, r.err)
		}
		const leaks = 3 // the exit status of qemu-img check when there is nothing worse
		if r := command(s.t, "qemu-img", "check", "-q", "-f", "qcow2", file); r.code != 0 && (!s.leaks || r.code != leaks) {
			s.t.Errorf("%s is damaged: %s%s", name, r.out, r.err)
		}
	}
}

// clean wants `chainfs check` to find nothing and the tree to hold no hidden
// files, with a daemon.
func (s *site) clean() {
	s.t.Helper()
	s.cli(0, "scan", s.mnt)
	s.cli(0, "check", s.mnt)
	s.noLeftovers()
}

func (s *site) noLeftovers() {
	s.t.Helper()
	filepath.WalkDir(s.tree, func(p string, _ os.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(filepath.Base(p), ".chainfs-") {
			s.t.Errorf("left over: %s", p)
		}
		return nil
	})
}

// attr is a computed attribute of a file in the mount.
func (s *site) attr(name, attr string) string {
	s.t.Helper()
	return s.run("getfattr", "--absolute-names", "--only-values", "-n", "user.chainfs."+attr, filepath.Join(s.mnt, name))
}

// merges counts the rebases that operations in the journal planned.
func (s *site) merges() int {
	s.t.Helper()
	return strings.Count(s.cli(0, "ops", "--json", s.mnt).out, `"verb":"rebase"`) +
		strings.Count(s.cli(0, "ops", "--json", s.mnt).out, `"verb": "rebase"`)
}

// line makes a line of images, each in a directory of its own.
func (s *site) line(n int, format string) []string {
	s.t.Helper()
	var names []string
	for i := range n {
		parent := ""
		if i > 0 {
			parent = names[i-1]
		}
		names = append(names, fmt.Sprintf(format, i))
		s.image(names[i], parent)
	}
	return names
}
