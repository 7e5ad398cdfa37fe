package store

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/e2e/cutfs"
)

// TestMain lets tests run this binary again as the process that is killed.
func TestMain(m *testing.M) {
	dir := os.Getenv("STORE_TEST_DIR")
	switch os.Getenv("STORE_TEST_CHILD") {
	case "write":
		writeForEver(dir)
	case "fail":
		writeAndFail(dir)
	case "idle":
		idle(dir)
	default:
		os.Exit(m.Run())
	}
}

func child(t testing.TB, part, dir string) *exec.Cmd {
	exe, err := os.Executable()
	must(t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), "STORE_TEST_CHILD="+part, "STORE_TEST_DIR="+dir)
	cmd.Stderr = os.Stderr
	return cmd
}

// writeForEver records and finishes operations, each with an image, and says
// what is durable after each step.
func writeForEver(dir string) {
	s, err := Open(dir, quiet)
	for err == nil {
		err = writeOne(s)
	}
	println(err.Error())
	os.Exit(1)
}

func writeOne(s *Store) error {
	op, im, err := newPair(s)
	if err != nil {
		return err
	}
	fmt.Printf("ids %d %d\n", op.ID, im.ID)
	if err := s.Record(op); err != nil {
		return err
	}
	fmt.Printf("recorded %d %d\n", op.ID, im.ID)
	if err := s.Finish(end(op), []chain.Image{im}, nil); err != nil {
		return err
	}
	fmt.Printf("finished %d %d\n", op.ID, im.ID)
	return nil
}

func newPair(s *Store) (op chain.Operation, im chain.Image, err error) {
	if op.ID, err = s.NewOpID(); err != nil {
		return op, im, err
	}
	if im.ID, err = s.NewImageID(); err != nil {
		return op, im, err
	}
	op.State, op.Started = chain.Prepared, time.Unix(1700000000, 0).UTC()
	op.Plan.Paths = []chain.Path{chain.Path(strings.Repeat("p", 3000))} // fills logs, so that tables are written too
	im.Kind, im.Path = chain.Full, chain.Path(im.ID.String())
	return op, im, nil
}

// said is what a writer acknowledged.
type said struct {
	ids                uint64 // highest operation id that was handed out
	recorded, finished map[uint64]uint64
}

func (w *said) hear(line string) {
	f := strings.Fields(line)
	if len(f) != 3 {
		return // cut off by the kill
	}
	op, _ := strconv.ParseUint(f[1], 10, 64)
	im, _ := strconv.ParseUint(f[2], 10, 64)
	switch f[0] {
	case "ids":
		w.ids = max(w.ids, op)
	case "recorded":
		w.recorded[op] = im
	case "finished":
		w.finished[op] = im
	}
}

func newSaid() *said { return &said{recorded: map[uint64]uint64{}, finished: map[uint64]uint64{}} }

// check compares a store after a crash with what was acknowledged before.
func (w *said) check(t *testing.T, s *Store) {
	t.Helper()
	ops, err := s.Operations(false)
	must(t, err)
	states := map[uint64]chain.State{}
	for _, op := range ops {
		states[uint64(op.ID)] = op.State
	}
	ims := images(t, s)
	for op := range w.recorded {
		if states[op] == "" {
			t.Errorf("operation %d was recorded and is gone", op)
		}
	}
	for op, im := range w.finished {
		if states[op] != chain.Done || ims[chain.ImageID(im)].ID == 0 {
			t.Errorf("operation %d was finished and is %q, its image %v", op, states[op], ims[chain.ImageID(im)].Path)
		}
	}
	for _, op := range ops { // Finish is one transaction
		if op.State == chain.Done && len(ims) < len(w.finished) {
			t.Errorf("operation %d ended without its image", op.ID)
		}
	}
	if id, err := s.NewOpID(); err != nil || uint64(id) <= w.ids {
		t.Errorf("operation id %d was handed out again, %v", id, err)
	}
	t.Logf("%d operations acknowledged, %d found", len(w.recorded), len(ops))
}

func TestKill(t *testing.T) {
	dir := t.TempDir()
	w := newSaid()
	for range 5 {
		cmd := child(t, "write", dir)
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		lines := bufio.NewReader(out)
		for range 1000 {
			line, err := lines.ReadString('\n')
			if err != nil {
				t.Fatalf("the writer stopped: %v", err)
			}
			w.hear(line)
		}
		must(t, cmd.Process.Kill())
		for rest := bufio.NewScanner(lines); rest.Scan(); {
			w.hear(rest.Text())
		}
		cmd.Wait() // says that it was killed
		s := openStore(t, dir)
		w.check(t, s)
		closeStore(t, s)
	}
}

func TestPowerCut(t *testing.T) {
	disk := cutfs.New(t, 256)
	dir := filepath.Join(disk.Dir, "store")
	w := newSaid()
	for range 3 {
		cmd := child(t, "write", dir)
		cmd.Stderr = io.Discard // it ends with the I/O error that it should get
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		lines := bufio.NewReader(out)
		for range 1500 {
			line, err := lines.ReadString('\n')
			if err != nil {
				t.Fatalf("the writer stopped: %v", err)
			}
			w.hear(line)
		}
		disk.Cut()
		for rest := bufio.NewScanner(lines); rest.Scan(); {
			w.hear(rest.Text())
		}
		cmd.Wait() // fails with the disk
		disk.Restore()
		s := openStore(t, dir)
		w.check(t, s)
		closeStore(t, s)
	}
}

// A write that failed may leave a hole in the log; none may follow it.
func TestNoWriteAfterAFailedOne(t *testing.T) {
	disk := cutfs.New(t, 256)
	dir := filepath.Join(disk.Dir, "store")
	cmd := child(t, "fail", dir)
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	lines := bufio.NewReader(out)
	if line, err := lines.ReadString('\n'); err != nil {
		t.Fatalf("got %q, %v", line, err)
	}
	disk.Cut()
	in.Close()
	rest, err := io.ReadAll(lines)
	must(t, err)
	cmd.Wait() // its output says all
	if got := strings.Count(string(rest), "error: "); got != 3 || !strings.Contains(string(rest), "opened again") {
		t.Errorf("got %q, want three errors, the second of which says to open the store again", rest)
	}
	disk.Restore()
	s := openStore(t, dir)
	if got, err := s.Mountpoint(); err != nil || got != "/before" {
		t.Errorf("got %q, %v, want what was acknowledged", got, err)
	}
	closeStore(t, s)
}

// writeAndFail writes before and after its disk fails.
func writeAndFail(dir string) {
	s, err := Open(dir, quiet)
	if err == nil {
		err = s.SetMountpoint("/before")
	}
	fmt.Println("first:", err)
	io.Copy(io.Discard, os.Stdin)
	for _, err := range []error{s.SetMountpoint("/lost"), s.SetMountpoint("/later"), s.Close()} {
		if err != nil {
			fmt.Printf("error: %q\n", err)
		}
	}
	os.Exit(0)
}

// idle opens a store, loads all images and then says what it costs.
func idle(dir string) {
	opened := time.Now()
	s, err := Open(dir, quiet)
	if err != nil {
		println(err.Error())
		os.Exit(1)
	}
	start := time.Now()
	n := 0
	err = s.Images(context.Background(), func(chain.Image) error { n++; return nil })
	took := time.Since(start)
	for range busyWrites() {
		if err := writeQuietly(s); err != nil {
			println(err.Error())
		}
	}
	if busyWrites() > 0 {
		time.Sleep(20 * time.Second) // Badger frees one unused buffer every two seconds
		debug.FreeOSMemory()         // as the runtime does, later
	}
	fmt.Println(n, err, took, "open", start.Sub(opened))
	io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

func busyWrites() int {
	n, _ := strconv.Atoi(os.Getenv("STORE_TEST_WRITES")) // 0 when it is not set
	return n
}

func writeQuietly(s *Store) error {
	op, im, err := newPair(s)
	if err != nil {
		return err
	}
	return s.Finish(end(op), []chain.Image{im}, nil)
}

// BenchmarkIndex loads 100,000 images, in a process of its own for the memory.
func BenchmarkIndex(b *testing.B) {
	dir := b.TempDir()
	s := openStore(b, dir)
	var ims []chain.Image
	for i := range 100_000 {
		ims = append(ims, newImage(b, s, chain.Path(fmt.Sprintf("i-2-%d-VM/2025.11.%02d.00.00.00/root.3b241101-e2bb-4255-8caf-%012d.qcow2", i/30, i%30, i))))
	}
	start := time.Now()
	must(b, s.Update(ims, nil))
	b.ReportMetric(time.Since(start).Seconds(), "store-s")
	n := 0
	must(b, s.Close())
	s = openStore(b, dir)
	for b.Loop() {
		n = 0
		must(b, s.Images(context.Background(), func(chain.Image) error { n++; return nil }))
	}
	must(b, s.Close())
	if n != len(ims) {
		b.Fatalf("got %d images", n)
	}
	memoryOf(b, "empty", b.TempDir())
	memoryOf(b, "full", dir)
	b.Setenv("STORE_TEST_WRITES", "5000")
	memoryOf(b, "after 5000 writes", dir)
}

// memoryOf reports resident memory of a process with an open, idle store.
func memoryOf(b *testing.B, name, dir string) {
	cmd := child(b, "idle", dir)
	in, err := cmd.StdinPipe()
	must(b, err)
	out, err := cmd.StdoutPipe()
	must(b, err)
	must(b, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	must(b, err)
	b.Logf("%s: %s", name, strings.TrimSpace(line))
	time.Sleep(4 * time.Second) // for compactions to end
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	must(b, err)
	for _, l := range strings.Split(string(status), "\n") {
		if strings.HasPrefix(l, "VmRSS") || strings.HasPrefix(l, "RssAnon") || strings.HasPrefix(l, "RssFile") || strings.HasPrefix(l, "VmHWM-") {
			b.Logf("%s: %s", name, strings.Fields(l))
		}
	}
	in.Close()
	must(b, cmd.Wait())
}
