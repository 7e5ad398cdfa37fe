package e2e

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The README says what is so: a function that was renamed, a command that went
// or a demo that prints something else fails here.

func readme(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("../README.md")
	mustDo(t, err)
	return string(data)
}

var (
	codeBlock    = regexp.MustCompile("(?ms)^```\n(.*?)^```$")
	demoBlock    = regexp.MustCompile("(?ms)^<!-- demo:[^\n]*-->\n```\n(.*?)^```$")
	functionName = regexp.MustCompile("`([a-z0-9/]+)\\.\\(\\*(\\w+)\\)\\.(\\w+)`")
	commandLine  = regexp.MustCompile(`(?m)^(?:\$ )?chainfs ([a-z]+)([^#\n]*)`)
	longOption   = regexp.MustCompile(`--[a-z-]+`)
)

func TestE2EReadmeFunctions(t *testing.T) {
	found := functionName.FindAllStringSubmatch(readme(t), -1)
	if len(found) != 5 {
		t.Errorf("README.md names %d functions to read first, want 5", len(found))
	}
	for _, m := range found {
		if !methods(t, "../"+m[1])[m[2]+"."+m[3]] {
			t.Errorf("README.md names %s, which is not in the source", m[0])
		}
	}
}

// methods are all of a package, as Type.Name.
func methods(t *testing.T, dir string) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(dir + "/*.go")
	mustDo(t, err)
	all := map[string]bool{}
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		mustDo(t, err)
		for _, d := range file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Recv == nil || strings.HasSuffix(name, "_test.go") {
				continue
			}
			if star, ok := f.Recv.List[0].Type.(*ast.StarExpr); ok {
				all[star.X.(*ast.Ident).Name+"."+f.Name.Name] = true
			}
		}
	}
	return all
}

func TestE2EReadmeCommands(t *testing.T) {
	help := command(t, chainfs, "--help").out
	seen := 0
	for _, block := range codeBlock.FindAllStringSubmatch(readme(t), -1) {
		for _, m := range commandLine.FindAllStringSubmatch(block[1], -1) {
			seen++
			if !regexp.MustCompile(`(?m)^   ` + m[1] + ` +\S`).MatchString(help) {
				t.Errorf("README.md has %q, and there is no command %s", m[0], m[1])
				continue
			}
			options := command(t, chainfs, m[1], "--help").out
			for _, o := range longOption.FindAllString(m[2], -1) {
				if !strings.Contains(options, o) {
					t.Errorf("README.md has %q, and there is no option %s", m[0], o)
				}
			}
		}
	}
	if seen < 10 {
		t.Errorf("only %d commands were found in README.md", seen)
	}
}

func TestE2EReadmeLinks(t *testing.T) {
	for _, m := range regexp.MustCompile(`\]\(([^)#:]+)\)`).FindAllStringSubmatch(readme(t), -1) {
		if _, err := fs.Stat(os.DirFS(".."), m[1]); err != nil {
			t.Errorf("README.md links to %v", err)
		}
	}
}

// TestE2EReadmeDemo runs the demo. A line of three dots in the README stands for
// lines that were left out.
func TestE2EReadmeDemo(t *testing.T) {
	r := command(t, "../docs/demo.sh", chainfs)
	if r.code != 0 {
		t.Fatalf("the demo ends with %d:\n%s%s", r.code, r.out, r.err)
	}
	if temp := os.TempDir() + "/"; strings.Contains(r.out, temp) {
		t.Errorf("the demo prints names in %s:\n%s", temp, r.out)
	}
	m := demoBlock.FindStringSubmatch(readme(t))
	if m == nil {
		t.Fatal("README.md has no block of the demo's output")
	}
	if line := strayLine(steady(m[1]), steady(r.out)); line != "" {
		t.Errorf("README.md has %q where the demo prints something else; it prints:\n%s", line, r.out)
	}
}

// strayLine is the first line of shown that printed does not have at its place,
// empty when there is none.
func strayLine(shown, printed []string) string {
	dots := false
	for _, line := range shown {
		if line == "..." {
			dots = true
			continue
		}
		for dots && len(printed) > 0 && printed[0] != line {
			printed = printed[1:]
		}
		if len(printed) == 0 || printed[0] != line {
			return line
		}
		printed, dots = printed[1:], false
	}
	if len(printed) > 0 && !dots {
		return "the end"
	}
	return ""
}

var (
	size   = regexp.MustCompile(`\d+\.\d [KM]iB`)
	spaces = regexp.MustCompile(` {2,}`)
)

// steady takes out what is not the same everywhere: how much of a file a file
// system allocates, and with it the width of columns.
func steady(text string) (lines []string) {
	text = spaces.ReplaceAllString(size.ReplaceAllString(text, "SIZE"), " ")
	for _, line := range strings.Split(strings.TrimSpace(text), "\n") {
		lines = append(lines, strings.TrimSpace(line))
	}
	return lines
}
