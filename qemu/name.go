package qemu

import (
	"slices"
	"strconv"
	"strings"

	"github.com/chainfs/chainfs/chain"
)

// name is what a backing name means to qemu.
type name struct {
	plain   chain.Path   // a path that a rebase could rewrite
	others  []chain.Path // files it may name otherwise
	trouble string
}

// maxTails bounds how many readings of one protocol name are tried.
const maxTails = 16

// nameOf classifies a backing name. What is no plain path may name a file in
// many ways; others has every reading that could be one, because a name too many
// only keeps a file that could have gone, and a name too few loses one.
func nameOf(s string) name {
	// qemu takes the name as a C string: behind a NUL it reads nothing.
	cut, _, hasNUL := strings.Cut(s, "\x00")
	switch {
	case s == "":
		return name{}
	case strings.HasPrefix(cut, "json:"):
		return name{others: readings(cut), trouble: "names its parent in JSON"}
	case hasProtocol(cut):
		return name{others: readings(cut), trouble: "names its parent through a protocol"}
	case hasNUL:
		return name{others: readings(cut), trouble: "names its parent with a NUL byte"}
	}
	return name{plain: chain.Path(s)}
}

// hasProtocol is path_has_protocol of QEMU's block.c: a colon before the first
// slash. A plain file name with a colon is a protocol to qemu, too.
func hasProtocol(s string) bool {
	i := strings.IndexAny(s, ":/")
	return i >= 0 && s[i] == ':'
}

// readings lists every path that qemu might open for s: s itself, what follows
// each colon ("file:a", "blkdebug:conf:a"), and each string in a JSON text.
func readings(s string) []chain.Path {
	var found []chain.Path
	add := func(p string) {
		p, _, _ = strings.Cut(p, "\x00") // where a path ends for the kernel
		if p != "" && !slices.Contains(found, chain.Path(p)) {
			found = append(found, chain.Path(p))
		}
	}
	if text, ok := strings.CutPrefix(s, "json:"); ok {
		for _, value := range jsonStrings(text) {
			for _, p := range append([]chain.Path{chain.Path(value)}, tails(value)...) {
				add(string(p))
			}
		}
		return found
	}
	add(s)
	for _, p := range tails(s) {
		add(string(p))
	}
	return found
}

// tails is what follows each colon of a protocol name. A JSON text inside a
// JSON text is one of them.
func tails(s string) []chain.Path {
	if !hasProtocol(s) {
		return nil
	}
	if text, ok := strings.CutPrefix(s, "json:"); ok {
		return readings("json:" + text)
	}
	var all []chain.Path
	for i := 0; i < len(s) && len(all) < maxTails; i++ {
		if s[i] == ':' {
			all = append(all, chain.Path(s[i+1:]))
		}
	}
	return all
}

// jsonStrings lists the string values of a JSON text as qemu reads it: strings
// may stand in single quotes. Which keys hold a file's name depends on the
// driver ("filename", "file.filename", "backing", "data-file", ...), so the values
// of all are taken. A text that is broken gives what it has.
func jsonStrings(text string) []string {
	var values []string
	for i := 0; i < len(text); i++ {
		if text[i] != '"' && text[i] != '\'' {
			continue
		}
		value, n := jsonString(text[i:])
		i += n - 1
		if !strings.HasPrefix(strings.TrimLeft(text[i+1:], " \t\r\n"), ":") {
			values = append(values, value)
		}
	}
	return values
}

// jsonString reads the string that s starts with, in either kind of quotes, and
// tells how many bytes of s it takes.
func jsonString(s string) (value string, n int) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == s[0]:
			return b.String(), i + 1
		case s[i] == '\\' && i+1 < len(s):
			i++
			i += unescape(&b, s[i:]) - 1
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String(), len(s)
}

// unescape writes the character that follows a backslash and tells how many
// bytes of s it takes.
func unescape(b *strings.Builder, s string) int {
	if i := strings.IndexByte("bfnrt", s[0]); i >= 0 {
		b.WriteByte("\b\f\n\r\t"[i])
		return 1
	}
	if s[0] == 'u' && len(s) >= 5 {
		if r, err := strconv.ParseUint(s[1:5], 16, 16); err == nil {
			b.WriteRune(rune(r))
			return 5
		}
	}
	b.WriteByte(s[0])
	return 1
}
