package imports

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/chainfs/chainfs/"

// rules say what each of our packages may import of ours and of others, by
// prefix, besides the standard library and packages below itself. Imports go
// down: cmd, fs, store, qemu, qemu/qcow2, chain. A package without a rule is
// an error: decide where it belongs.
var rules = []struct {
	of  string
	may []string
}{
	{"chain", []string{"golang.org/x/sys/"}},
	{"qemu/qcow2", []string{"golang.org/x/sys/", "github.com/klauspost/compress/zstd"}},
	{"qemu", []string{"golang.org/x/sys/", "golang.org/x/time/rate", module + "qemu/qcow2", module + "chain"}},
	{"store", []string{"golang.org/x/sys/", "github.com/dgraph-io/badger/v4", module + "chain"}},
	{"fs/source", []string{"golang.org/x/sys/", module + "chain"}},
	{"fs", []string{"golang.org/x/sys/", "github.com/hanwen/go-fuse/v2/", module + "fs/source", module + "chain"}},
	{"cmd/chainfs/control", []string{"golang.org/x/sys/", module + "chain"}},
	{"cmd/chainfs", []string{"golang.org/x/sys/", "github.com/urfave/cli/v2", module}},
	{"e2e", []string{"golang.org/x/sys/", module}},
}

type pkg struct {
	ImportPath string
	Imports    []string
}

func TestImports(t *testing.T) {
	for _, p := range list(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		may, ok := ruleOf(name)
		if !ok {
			t.Errorf("%s has no rule", p.ImportPath)
			continue
		}
		for _, i := range p.Imports {
			if !allowed(i, p.ImportPath, may) {
				t.Errorf("%s must not import %s", p.ImportPath, i)
			}
		}
	}
}

func ruleOf(name string) ([]string, bool) {
	for _, r := range rules {
		if name == r.of || strings.HasPrefix(name, r.of+"/") {
			return r.may, true
		}
	}
	return nil, false
}

func allowed(imported, by string, may []string) bool {
	first, _, _ := strings.Cut(imported, "/")
	if !strings.Contains(first, ".") || strings.HasPrefix(imported, by+"/") {
		return true // the standard library, and what is below
	}
	for _, prefix := range may {
		if imported == strings.TrimSuffix(prefix, "/") || strings.HasPrefix(imported, strings.TrimSuffix(prefix, "/")+"/") {
			return true
		}
	}
	return false
}

// list asks go list, once with and once without the crash tests' hooks.
func list(t *testing.T) (all []pkg) {
	for _, tags := range []string{"", "failpoints"} {
		cmd := exec.Command("go", "list", "-tags", tags, "-json=ImportPath,Imports", module+"...")
		cmd.Dir = "../.."
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("go list: %v", err)
		}
		for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
			var p pkg
			if err := dec.Decode(&p); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			all = append(all, p)
		}
	}
	return all
}
