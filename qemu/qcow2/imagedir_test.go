package qcow2

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const defaultSeed = 20261125

// A test that everybody runs must say the same to everybody: the default is fixed,
// and "make proof" takes a new one each time.
var seedFlag = flag.Uint64("seed", defaultSeed, "of the random tests; 0 takes one from the clock. It is logged")

// testSeed is the seed of a test, logged so that its run can be repeated.
func testSeed(t *testing.T) uint64 {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano()) % 1e9
	}
	t.Logf("to repeat this: go test -run '^%s$' -seed %d", t.Name(), seed)
	return seed
}

func rngOf(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }

func needQemu(t *testing.T) {
	t.Helper()
	for _, tool := range []string{"qemu-img", "qemu-io"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("needs QEMU's tools as the oracle: ", err)
		}
	}
}

// imageDir is a directory of images and how they were made.
type imageDir struct {
	t        testing.TB
	dir      string
	commands []string // what was run in it, for a shell
}

// newImageDir makes one that says how it was made if the test fails.
func newImageDir(t testing.TB) *imageDir {
	d := &imageDir{t: t, dir: quickDir(t)}
	for i, p := range patterns() {
		d.write(fmt.Sprintf("p%d", i), p)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the images were made so:\n%s", strings.Join(d.commands, "\n"))
		}
	})
	return d
}

// quickDir is in memory where that is possible: QEMU's tools sync what they make,
// and these tests would wait for the disk three quarters of their time.
func quickDir(t testing.TB) string {
	dir, err := os.MkdirTemp("/dev/shm", "qcow2-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// patterns is what is written to images: several, since each write takes one from
// its start. They compress, no two lines of them are the same, and their length is
// no multiple of a cluster, so that a cluster in the wrong place is never right by
// chance.
var patterns = sync.OnceValue(func() [][]byte {
	all := make([][]byte, patternFiles)
	for i := range all {
		for line := range 15001 {
			all[i] = fmt.Appendf(all[i], "%c pattern %d, line %8d%37s\n", 'a'+i, i, line, "")
		}
	}
	return all
})

const patternFiles = 4

func (d *imageDir) path(name string) string { return filepath.Join(d.dir, name) }

func (d *imageDir) write(name string, b []byte) {
	d.t.Helper()
	if err := os.WriteFile(d.path(name), b, 0o644); err != nil {
		d.t.Fatal(err)
	}
}

func (d *imageDir) read(name string) []byte {
	d.t.Helper()
	b, err := os.ReadFile(d.path(name))
	if err != nil {
		d.t.Fatal(err)
	}
	return b
}

// remove moves a file out of the way, so that a look at the directory still helps.
func (d *imageDir) remove(name string) {
	d.t.Helper()
	if err := os.Rename(d.path(name), d.path(name+".gone")); err != nil {
		d.t.Fatal(err)
	}
}

// try runs a command in the directory.
func (d *imageDir) try(args ...string) (string, error) {
	d.commands = append(d.commands, shellWords(args))
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = d.dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (d *imageDir) run(args ...string) string {
	d.t.Helper()
	out, err := d.try(args...)
	if err != nil {
		d.t.Fatalf("%s: %v\n%s", shellWords(args), err, out)
	}
	return out
}

// io runs many qemu-io commands in one process: starting one takes longer than
// most of them.
func (d *imageDir) io(image string, commands ...string) {
	d.t.Helper()
	if len(commands) == 0 {
		return
	}
	out, err := d.try(ioArgs(image, commands)...)
	if err != nil && !strings.Contains(out, refusedCompressed) || strings.Count(out, "failed") > strings.Count(out, refusedCompressed) {
		d.t.Fatalf("%s: %v\n%s", d.commands[len(d.commands)-1], err, out)
	}
}

// refusedCompressed is what QEMU says to a compressed write where there is data
// already. It changes nothing then.
const refusedCompressed = "write failed: Input/output error"

func ioArgs(image string, commands []string) []string {
	args := []string{"qemu-io", "-f", "qcow2"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	return append(args, image)
}

// raw is what a guest reads of a qcow2 image, by qemu-img.
func (d *imageDir) raw(image string) []byte {
	d.t.Helper()
	const out = "converted.raw"
	d.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, out)
	b := d.read(out)
	if err := os.Remove(d.path(out)); err != nil {
		d.t.Fatal(err)
	}
	return b
}

func shellWords(args []string) string {
	var words []string
	for _, a := range args {
		if strings.ContainsAny(a, " ;*") {
			a = "'" + a + "'"
		}
		words = append(words, a)
	}
	return strings.Join(words, " ")
}
