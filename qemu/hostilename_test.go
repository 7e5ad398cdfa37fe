package qemu

import (
	"strings"
	"testing"
)

// A NUL in a JSON backing name becomes a path that no call takes.
func TestJSONWithNUL(t *testing.T) {
	for _, p := range nameOf(`json:{"driver":"qcow2","file.filename":"a\u0000b"}`).others {
		if strings.ContainsRune(string(p), 0) {
			t.Errorf("%q is given to Resolve, which answers an error: the image counts as unreadable", p)
		}
	}
}
