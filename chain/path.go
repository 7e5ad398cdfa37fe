package chain

import (
	"bytes"
	"encoding/json"
	"path"
	"strings"
	"unicode/utf8"
)

// Path names a file in the tree: slash-separated, relative to the tree's root,
// clean, without a leading slash. The root itself is the empty Path. Its bytes
// are whatever the tree has; they need not be UTF-8.
type Path string

// NewPath cleans name, which is relative to the root of the tree, and reports
// whether it stays inside the tree.
func NewPath(name string) (Path, bool) {
	clean := path.Clean("/" + name)
	inside := path.Clean(name)
	if inside == ".." || strings.HasPrefix(inside, "../") || strings.HasPrefix(name, "/") {
		return "", false
	}
	return Path(clean[1:]), true
}

// Dir is the directory that holds p; the root is its own directory.
func (p Path) Dir() Path {
	i := strings.LastIndexByte(string(p), '/')
	if i < 0 {
		return ""
	}
	return p[:i]
}

// Base is the last element of p.
func (p Path) Base() string {
	return string(p[strings.LastIndexByte(string(p), '/')+1:])
}

// Join appends one name to p.
func (p Path) Join(name string) Path {
	if p == "" {
		return Path(name)
	}
	return p + "/" + Path(name)
}

// Within reports whether p is dir or lies below it.
func (p Path) Within(dir Path) bool {
	return dir == "" || p == dir ||
		len(p) > len(dir) && p[:len(dir)] == dir && p[len(dir)] == '/'
}

// Moved is where p ends up when from becomes to. A path outside from stays.
func (p Path) Moved(from, to Path) Path {
	if !p.Within(from) {
		return p
	}
	return to + p[len(from):]
}

// String is p as a user reads it: the root is ".", and bytes that are not
// UTF-8 are shown as \x escapes so that a terminal never receives them raw.
func (p Path) String() string {
	if p == "" {
		return "."
	}
	return Printable(string(p))
}

// Printable replaces what a terminal or a log must not get raw: control
// characters and bytes that are not UTF-8.
func Printable(s string) string {
	clean := true
	for _, r := range s {
		if r < 0x20 || r == 0x7f || r == utf8.RuneError {
			clean = false
			break
		}
	}
	if clean {
		return s
	}
	const hex = "0123456789abcdef"
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		if r < 0x20 || r == 0x7f || r == utf8.RuneError && n == 1 {
			b.WriteString(`\x`)
			b.WriteByte(hex[s[0]>>4])
			b.WriteByte(hex[s[0]&15])
			s = s[1:]
			continue
		}
		b.WriteString(s[:n])
		s = s[n:]
	}
	return b.String()
}

// rawPath carries a path that is not UTF-8 through JSON, which would otherwise
// replace its bytes and so name another file.
type rawPath struct {
	Bytes []byte `json:"bytes"`
}

// MarshalJSON writes p as a string, or as {"bytes": base64} where p is not UTF-8.
func (p Path) MarshalJSON() ([]byte, error) {
	if utf8.ValidString(string(p)) {
		return json.Marshal(string(p))
	}
	return json.Marshal(rawPath{[]byte(p)})
}

// UnmarshalJSON reads both forms that MarshalJSON writes.
func (p *Path) UnmarshalJSON(data []byte) error {
	if len(data) > 0 && data[0] == '{' {
		var raw rawPath
		if err := json.Unmarshal(data, &raw); err != nil {
			return err
		}
		*p = Path(raw.Bytes)
		return nil
	}
	if n := len(data); n >= 2 && data[0] == '"' && bytes.IndexByte(data, '\\') < 0 {
		*p = Path(data[1 : n-1]) // the common case, at a fraction of the cost
		return nil
	}
	return json.Unmarshal(data, (*string)(p))
}
