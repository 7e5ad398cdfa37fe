package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/cmd/chainfs/control"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares with a file in testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil || got != string(want) {
		t.Errorf("%s: got\n%swant\n%s%v", name, got, want, err)
	}
}

// now is when the made-up operations are looked at.
var now = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

const mib = 1 << 20

// madeUp are operations of every kind.
func madeUp() control.Operations {
	return control.Operations{
		Past: []chain.Operation{
			{ID: 1, Act: chain.ActDelete, State: chain.Done, Started: now, Ended: now.Add(1500 * time.Millisecond), Plan: chain.Plan{Paths: []chain.Path{"vm/1/r"}}},
			{ID: 2, Act: chain.ActRebase, State: chain.Undone, Started: now, Ended: now.Add(time.Second), Error: "no space", Plan: chain.Plan{Paths: []chain.Path{"vm/2/r"}}},
			{ID: 3, Act: chain.ActDelete, State: chain.Committed, Started: now, Plan: chain.Plan{Paths: []chain.Path{"vm/3/r"}}},
		},
		Pending: []chain.Progress{
			{Op: 4, Act: chain.ActDelete, Status: chain.Waiting, Paths: []chain.Path{"vm/4/r"}, Total: 300 * mib, AtMost: true, Frees: 400 * mib,
				Reason: "its chain was used a moment ago", Next: now.Add(4 * time.Second)},
			{Op: 5, Act: chain.ActDelete, Status: chain.Waiting, Paths: []chain.Path{"vm/.chainfs-5-5/r"}, Total: mib,
				Reason: "vm/6/r is in use by qemu (process 4711)"},
			{Op: 7, Act: chain.ActDelete, Status: chain.Failing, Paths: []chain.Path{"vm/7/a", "vm/7/b"}, Done: mib, Total: 2 * mib,
				Reason: "no space left on device", Tries: 3, Next: now.Add(10 * time.Minute)},
			{Op: 8, Act: chain.ActDelete, Status: chain.Cancelled, Paths: []chain.Path{"vm/8/r"}, Total: 2 * mib, Tries: 1},
			{Op: 9, Act: chain.ActDelete, Status: chain.Waiting, Paths: []chain.Path{"vm/9/r"}, Next: now.Add(7*24*time.Hour - time.Minute), Reason: "it is kept"},
		},
		Running: []chain.Progress{
			{Op: 6, Act: chain.ActDelete, Status: chain.Running, Paths: []chain.Path{"vm/6/r"}, Done: 256 * mib, Total: 1024 * mib, Rate: 10 * mib, Frees: 2 << 30},
			{Op: 10, Act: chain.ActRebase, Paths: []chain.Path{"x", "y"}, Total: mib}, // of a user who waits for it
		},
	}
}

func TestPrintOps(t *testing.T) {
	time.Local = time.UTC
	var b strings.Builder
	printOps(&b, madeUp(), now)
	golden(t, "ops.golden", b.String())
	b.Reset()
	printOps(&b, control.Operations{}, now)
	if b.String() != "no operations\n" {
		t.Errorf("without any: %q", b.String())
	}
}

func TestBarLines(t *testing.T) {
	var b strings.Builder
	for _, p := range inOrder(madeUp()) {
		b.WriteString(barLine(p, now) + "\n")
	}
	golden(t, "bars.golden", b.String())
}

func TestPrintTrash(t *testing.T) {
	time.Local = time.UTC
	var b strings.Builder
	printTrash(&b, []chain.Condemned{
		{Op: 12, Path: "vm/2/r", Hidden: "vm/2/.chainfs-12-r", Allocated: 3 << 30, Deleted: now, KeptUntil: now.Add(50 * time.Hour), Children: []chain.Path{"vm/3/r", "vm/.chainfs-9-4/r"}},
		{Op: 9, Path: "vm/4/r", Hidden: "vm/.chainfs-9-4/r", Allocated: mib, Deleted: now.Add(-time.Hour)},
	}, now)
	golden(t, "trash.golden", b.String())
}

func TestPrintSummary(t *testing.T) {
	var b strings.Builder
	printSummary(&b, &control.Summary{ID: "07", Summary: chain.Summary{Images: 5, Chains: 2, Allocated: 3 << 30, Condemned: 1, Returning: 2 << 30, Kept: 1 << 30},
		Copying: control.Copying{Says: "XFS shares extents, so nothing is copied"}})
	b.WriteString("\n")
	printSummary(&b, &control.Summary{ID: "08"})
	golden(t, "summary.golden", b.String())
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 200 * time.Millisecond: "1s", 59 * time.Second: "59s", 61 * time.Second: "1m1s", 3 * time.Hour: "3h", 10 * time.Minute: "10m",
		25*time.Hour + time.Minute: "1d1h", 240 * time.Hour: "10d",
	} {
		if got := span(d); got != want {
			t.Errorf("%v: got %s, want %s", d, got, want)
		}
	}
}

// script is a Service whose operations are those of one list after the other.
type script struct {
	control.Service
	looks []control.Operations
	asked int
}

func (s *script) Operations(context.Context, control.OperationsRequest) (control.Operations, error) {
	if s.asked++; s.asked > len(s.looks) {
		return control.Operations{}, errors.New("asked after the end")
	}
	return s.looks[s.asked-1], nil
}

// history is a deletion that waits, runs, fails, runs again and ends.
func history() []control.Operations {
	p := chain.Progress{Op: 7, Act: chain.ActDelete, Paths: []chain.Path{"vm/7/r"}, Total: 100 * mib}
	at := func(status chain.Status, percent int64, reason string) control.Operations {
		p := p
		p.Status, p.Done, p.Reason = status, percent*mib, reason
		if status == chain.Running {
			return control.Operations{Running: []chain.Progress{p}}
		}
		return control.Operations{Pending: []chain.Progress{p}}
	}
	gone := control.Operations{Past: []chain.Operation{
		{ID: 3, Act: chain.ActDelete, State: chain.Done},
		{ID: 7, Act: chain.ActDelete, State: chain.Done, Plan: chain.Plan{Paths: p.Paths}},
	}}
	return []control.Operations{
		at(chain.Waiting, 0, "vm/7/r was used"), at(chain.Waiting, 0, "vm/7/r was used"), {}, at(chain.Running, 1, ""), at(chain.Running, 5, ""),
		at(chain.Running, 55, ""), at(chain.Failing, 55, "no space"), at(chain.Running, 55, ""), gone, gone,
	}
}

// TestWatchWithoutTerminal: a line for each change and none for what is as it was.
// A look between two lists, which sees nothing, is not the end.
func TestWatchWithoutTerminal(t *testing.T) {
	var b bytes.Buffer
	v := newWatch(&b, &script{looks: history()}, false)
	v.every = time.Millisecond
	if err := v.follow(t.Context()); err != nil {
		t.Error(err)
	}
	golden(t, "watch.golden", b.String())
}

func TestWatchJSON(t *testing.T) {
	var b bytes.Buffer
	v := newWatch(&b, &script{looks: history()}, true)
	v.every = time.Millisecond
	if err := v.follow(t.Context()); err != nil {
		t.Error(err)
	}
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	if len(lines) != 6 || !strings.Contains(lines[0], `"status":"waiting"`) || !strings.Contains(lines[5], `"state":"done"`) {
		t.Errorf("got\n%s", b.String())
	}
}

// TestWatchNothing: with nothing pending it returns at once, and says nothing.
func TestWatchNothing(t *testing.T) {
	var b bytes.Buffer
	v := newWatch(&b, &script{looks: []control.Operations{{}}}, false)
	v.every = time.Hour
	if err := v.follow(t.Context()); err != nil || b.Len() > 0 {
		t.Errorf("%v, %q", err, b.String())
	}
}

// TestWatchTerminal: what is drawn fits, and is drawn over what was drawn before.
func TestWatchTerminal(t *testing.T) {
	var b bytes.Buffer
	v := newWatch(&b, nil, false)
	v.width = 60
	var many control.Operations
	for i := range 30 {
		many.Pending = append(many.Pending, chain.Progress{Op: chain.OpID(i), Status: chain.Waiting, Reason: strings.Repeat("long ", 30)})
	}
	for _, ops := range []control.Operations{many, madeUp(), {}} {
		if err := v.draw(ops); err != nil {
			t.Error(err)
		}
	}
	text := b.String()
	for _, want := range []string{"and 10 more\n", "\x1b[21A\x1b[J", "\x1b[7A\x1b[J"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in %q", want, text)
		}
	}
	if i := slices.IndexFunc(strings.Split(text, "\n"), func(l string) bool {
		return utf8.RuneCountInString(l[strings.LastIndex(l, "\x1b[J")+1:]) > 62
	}); i >= 0 {
		t.Errorf("line %d is too long", i)
	}
}

// TestLocateGone: what was deleted, with the directories that it was in, is
// still in its tree.
func TestLocateGone(t *testing.T) {
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"t/.chainfs", "t/vm/1", "links"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(root+"/t/.chainfs/tree.json", []byte(`{"id":"07"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(root+"/t/vm", root+"/links/vm"); err != nil {
		t.Fatal(err)
	}
	t.Chdir(root)
	for given, want := range map[string]chain.Path{
		"t": "", "t/vm/1": "vm/1", "t/vm/1/r": "vm/1/r", "t/vm/2/r": "vm/2/r", "t/vm/2/3/4/": "vm/2/3/4",
		"links/vm/2/r": "vm/2/r", root + "/t/x": "x", "t/../t/x": "x",
	} {
		at, err := locateGone(t.Context(), given)
		if err != nil || at.path != want || at.tree != "07" || at.given != given {
			t.Errorf("%s: got %+v, %v, want %s", given, at, err, want)
		}
	}
	if at, err := locateGone(t.Context(), "elsewhere/x"); err != nil || at.tree != "" {
		t.Errorf("outside of trees: %+v, %v", at, err)
	}
	if _, err := locateGone(t.Context(), ""); err == nil {
		t.Error("the empty path was taken")
	}
}
