package qemu

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chainfs/chainfs/chain"
	"golang.org/x/sys/unix"
)

// tree is a directory with images; it is the chain.Files of these tests.
type tree struct {
	t          testing.TB
	dir        string
	mountpoint string // absolute names below it are names in the tree
	loop       string // the device of its own file system, empty without one
}

var _ chain.Files = (*tree)(nil)

func newTree(t testing.TB) *tree { return &tree{t: t, dir: t.TempDir()} }

func (tr *tree) host(p chain.Path) string { return filepath.Join(tr.dir, string(p)) }

func (tr *tree) Walk(context.Context, chain.Walker) error { return errors.ErrUnsupported }
func (tr *tree) Unlink(p chain.Path) error                { return os.Remove(tr.host(p)) }
func (tr *tree) Rename(from, to chain.Path, _ uint) error {
	return os.Rename(tr.host(from), tr.host(to))
}
func (tr *tree) Link(from, to chain.Path) error { return os.Link(tr.host(from), tr.host(to)) }
func (tr *tree) ReadDir(chain.Path) ([]chain.Entry, error) {
	return nil, errors.ErrUnsupported
}
func (tr *tree) MkdirLike(p, _ chain.Path) error        { return os.Mkdir(tr.host(p), 0o755) }
func (tr *tree) Rmdir(p chain.Path) error               { return os.Remove(tr.host(p)) }
func (tr *tree) SyncDir(chain.Path) error               { return nil }
func (tr *tree) Present() error                         { return nil }
func (tr *tree) OpenDir(p chain.Path) (*os.File, error) { return os.Open(tr.host(p)) }
func (tr *tree) Open(p chain.Path) (*os.File, error)    { return os.Open(tr.host(p)) }
func (tr *tree) Stat(p chain.Path) (e chain.Entry, err error) {
	var st unix.Stat_t
	if err := unix.Lstat(tr.host(p), &st); err != nil {
		return e, err
	}
	return chain.Entry{Path: p, Type: chain.Regular, Identity: identityOf(&st), Allocated: st.Blocks * 512, Device: st.Dev}, nil
}

func (tr *tree) Resolve(dir chain.Path, name string) (chain.Resolution, error) {
	full := path.Join(tr.dir, string(dir), name)
	if path.IsAbs(name) {
		full = path.Clean(name)
		if tr.mountpoint != "" && strings.HasPrefix(full, tr.mountpoint+"/") {
			full = tr.dir + strings.TrimPrefix(full, tr.mountpoint)
		}
	}
	rel, ok := strings.CutPrefix(full, tr.dir+"/")
	return chain.Resolution{Path: chain.Path(rel), External: !ok}, nil
}

// qemu runs qemu-img or qemu-io in the tree and returns what it prints.
func (tr *tree) qemu(program string, args ...string) string {
	tr.t.Helper()
	for try := 0; ; try++ {
		cmd := exec.Command(program, args...)
		cmd.Dir = tr.dir
		out, err := cmd.CombinedOutput()
		if err == nil {
			return string(out)
		}
		// On a loaded machine qemu now and then fails to measure how fast it derives keys.
		if try == 20 || !strings.Contains(string(out), "Unable to get accurate CPU usage") {
			tr.t.Fatalf("%s %q: %v\n%s", program, args, err, out)
		}
	}
}

// create makes an image, and its directory.
func (tr *tree) create(p chain.Path, backing string, args ...string) {
	tr.t.Helper()
	if err := os.MkdirAll(filepath.Dir(tr.host(p)), 0o755); err != nil {
		tr.t.Fatal(err)
	}
	all := []string{"create", "-q", "-f", "qcow2"}
	if backing != "" {
		all = append(all, "-u", "-b", backing, "-F", "qcow2")
	}
	all = append(append(all, args...), string(p))
	tr.qemu("qemu-img", append(all, "64M")...)
}

// write puts a pattern at an offset, in MiB, of an image.
func (tr *tree) write(p chain.Path, pattern, at string) {
	tr.t.Helper()
	tr.qemu("qemu-io", "-f", "qcow2", "-c", "write -P "+pattern+" "+at+" 1M", string(p))
}

// check fails on corruption and on leaks.
func (tr *tree) check(p chain.Path) {
	tr.t.Helper()
	tr.qemu("qemu-img", "check", "-q", "-f", "qcow2", string(p))
}

// guest is a digest of what the image's guest reads.
func (tr *tree) guest(p chain.Path) string {
	tr.t.Helper()
	raw := filepath.Join(tr.t.TempDir(), "raw")
	tr.qemu("qemu-img", "convert", "-f", "qcow2", "-O", "raw", string(p), raw)
	b, err := os.ReadFile(raw)
	if err != nil {
		tr.t.Fatal(err)
	}
	// Most of a disk is zeros, which need not be hashed.
	h := sha256.New()
	for off, zeros := 0, make([]byte, 64<<10); off < len(b); off += len(zeros) {
		if block := b[off:min(off+len(zeros), len(b))]; !bytes.Equal(block, zeros[:len(block)]) {
			fmt.Fprintln(h, off)
			h.Write(block)
		}
	}
	return fmt.Sprintf("%x of %d", h.Sum(nil)[:8], len(b))
}

func (tr *tree) header(p chain.Path) chain.Header {
	tr.t.Helper()
	b, err := os.ReadFile(tr.host(p))
	if err != nil {
		tr.t.Fatal(err)
	}
	h, err := Inspector{}.Inspect(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		tr.t.Fatal(err)
	}
	return h
}

// chain makes full <- a <- b, each with data of its own, in three directories.
func (tr *tree) chain() {
	tr.create("0/full", "")
	tr.write("0/full", "0x11", "1M")
	tr.write("0/full", "0x12", "9M")
	tr.create("1/a", "../0/full")
	tr.write("1/a", "0x21", "3M")
	tr.write("1/a", "0x22", "5M")
	tr.create("2/b", "../1/a")
	tr.write("2/b", "0x31", "5M")
	tr.write("2/b", "0x32", "7M")
}

// jobFor is a job for a child without saying where it goes.
func (tr *tree) jobFor(child chain.Path) chain.RebaseJob {
	tr.t.Helper()
	e, err := tr.Stat(child)
	if err != nil {
		tr.t.Fatal(err)
	}
	return chain.RebaseJob{
		Op:       7,
		Child:    child,
		Identity: e.Identity,
		Scratch:  child.Dir().Join(chain.ScratchName(7, child.Base())),
		Bytes:    2 << 20,
	}
}

// job puts 2/b of chain on 0/full.
func (tr *tree) job() chain.RebaseJob {
	tr.t.Helper()
	job := tr.jobFor("2/b")
	job.Layers = []chain.Layer{
		{Path: "1/a", Format: chain.QCOW2, Backing: tr.header("1/a").Backing},
		{Path: "0/full", Format: chain.QCOW2},
	}
	job.NewParent, job.NewName, job.NewFormat = "0/full", "../0/full", chain.QCOW2
	job.NewLayers = job.Layers[1:]
	return job
}

// names lists a directory of the tree.
func (tr *tree) names(p chain.Path) string {
	entries, err := os.ReadDir(tr.host(p))
	if err != nil {
		tr.t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return strings.Join(all, " ")
}

func needQemu(t testing.TB) {
	for _, program := range []string{"qemu-img", "qemu-io"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip("needs real images: ", err)
		}
	}
}

func needRoot(t testing.TB) {
	if os.Getuid() != 0 {
		t.Skip("needs root for mounts")
	}
}
