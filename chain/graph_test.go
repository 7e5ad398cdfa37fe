package chain

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestRelativeName(t *testing.T) {
	for _, c := range []struct{ child, parent, want Path }{
		{"b", "a", "a"},
		{"vm/T1/r", "vm/T0/r", "../T0/r"},
		{"vm/T1/r", "r", "../../r"},
		{"r", "vm/T0/r", "vm/T0/r"},
		{"d/b", "d/a:1", "./a:1"},
		{"d/b", "e:1/a", "../e:1/a"},
		{"b", "e:1/a", "./e:1/a"},
		{"a/b/c", "a/b", "../b"},
	} {
		if got := RelativeName(c.child, c.parent); got != c.want {
			t.Errorf("RelativeName(%q, %q) = %q, want %q", c.child, c.parent, got, c.want)
		}
	}
}

func TestNewestFirst(t *testing.T) {
	g := parse(t, "vm/T0/r <- vm/T1/r <- vm/T2/r, vm/T3/r <- vm/T4/r, other/T0/r, flat/f <- flat/b <- flat/a")
	for _, c := range []struct{ dir, names, want string }{
		{"vm", "T0 T1 T2 T3 T4 lost+found", "T4 T3 T2 T1 T0 lost+found"},
		{"flat", "a b f x.xml", "a b f x.xml"},
		{"", "vm other flat", "flat other vm"},
		{"nothing", "b a", "b a"},
	} {
		names := strings.Fields(c.names)
		g.NewestFirst(Path(c.dir), names)
		if got := strings.Join(names, " "); got != c.want {
			t.Errorf("NewestFirst(%q, %s) = %s, want %s", c.dir, c.names, got, c.want)
		}
	}
}

// Children come before the images they stand on whatever their times say.
func TestNewestFirstWithWrongTimes(t *testing.T) {
	g := parse(t, "T0/r <- T1/r <- T2/r")
	for _, im := range g.All() {
		im.Identity.MTime = -im.Identity.MTime
	}
	names := []string{"T0", "T1", "T2"}
	g.NewestFirst("", names)
	if want := []string{"T2", "T1", "T0"}; !slices.Equal(names, want) {
		t.Errorf("got %v, want %v", names, want)
	}
}

// Two directories that hold each other's parents have no right order, and
// listing them must end all the same.
func TestNewestFirstWithMutualDirectories(t *testing.T) {
	g := parse(t, "d/a <- e/b, e/x <- d/y")
	names := []string{"d", "e"}
	g.NewestFirst("", names)
	if slices.Sort(names); !slices.Equal(names, []string{"d", "e"}) {
		t.Errorf("got %v", names)
	}
}

func TestCheckMove(t *testing.T) {
	const text = "vm/T0/r <- vm/T1/r <- vm/T2/r, lone, f <- g, e/x[external]"
	for _, c := range []struct {
		from, to Path
		exchange bool
		refused  bool
	}{
		{"lone", "d/elsewhere", false, false},
		{"vm", "vm2", false, false},
		{"vm", "deeper/down/vm", false, false},
		{"vm/T2", "vm/T9", false, false},
		{"vm/T2", "T2", false, true},
		{"vm/T1", "vm/T9", false, true},
		{"vm/T0/r", "vm/T0/s", false, true},
		{"vm/T2/r", "vm/T2/s", false, false},
		{"vm/T2/r", "vm/T1/s", false, false},
		{"vm/T2/r", "s", false, true},
		{"g", "h", false, false},
		{"f", "h", false, true},
		{"f", "g", true, true},
		{"lone", "g", true, false},
		{"lone", "other", true, false},
	} {
		err := parse(t, text).checkMove(move{c.from, c.to, c.exchange})
		var refused *RefusedError
		if got := errors.As(err, &refused); got != c.refused {
			t.Errorf("move %s to %s: refused = %v (%v), want %v", c.from, c.to, got, err, c.refused)
		}
	}
}

func TestLabelOf(t *testing.T) {
	for p, want := range map[Path]Label{
		"i-2-5-VM/2024.05.01.12.00.00/root.ab-1.qcow2":     {"i-2-5-VM", "2024.05.01.12.00.00", "root", "ab-1"},
		"i-2-5-VM/2024.05.01.12.00.00/datadisk.cd-2.qcow2": {"i-2-5-VM", "2024.05.01.12.00.00", "datadisk", "cd-2"},
		"web/disk1.full.qcow2":                             {"web", "", "disk1.full", ""},
		"disk.qcow2":                                       {"", "", "disk", ""},
		"a/b/c/d.img":                                      {"b", "c", "d", ""},
	} {
		if got := LabelOf(p); got != want {
			t.Errorf("LabelOf(%s) = %+v, want %+v", p, got, want)
		}
	}
}

func TestPathJSON(t *testing.T) {
	for _, p := range []Path{"", "a/b", "\xff\xfe/x", "with \"quotes\" and \n", "ünïcode", "{"} {
		data, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		var got Path
		if err := json.Unmarshal(data, &got); err != nil || got != p {
			t.Errorf("%q came back as %q (%v) from %s", string(p), string(got), err, data)
		}
	}
	if got, want := Path("a\x1b[31m\xff").String(), `a\x1b[31m\xff`; got != want {
		t.Errorf("String() = %q, want %q", got, want)
	}
}

func TestNewPath(t *testing.T) {
	for _, c := range []struct {
		name string
		want Path
		ok   bool
	}{
		{"a/../b", "b", true}, {".", "", true}, {"", "", true}, {"..", "", false}, {"../x", "", false},
		{"a/../../x", "", false}, {"/etc", "", false}, {"a//b/", "a/b", true}, {"..a", "..a", true},
	} {
		if got, ok := NewPath(c.name); got != c.want && c.ok || ok != c.ok {
			t.Errorf("NewPath(%q) = %q, %v, want %q, %v", c.name, got, ok, c.want, c.ok)
		}
	}
}

func TestScratchName(t *testing.T) {
	long := strings.Repeat("x", 255)
	if n := ScratchName(12345, long); len(n) > 255 || !IsScratch(n) || !IsHidden(n) {
		t.Errorf("ScratchName of a long name is %q", n)
	}
}
