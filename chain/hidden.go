package chain

import (
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"
)

// Hidden names of chainfs all start with hiddenPrefix, and are of three kinds:
//
//	.chainfs-scratch-OP-NAME  a scratch file: deleted without asking when it is stale
//	.chainfs-OP-NAME          a condemned image, or a directory of such, that was NAME
//	.chainfs-OP~END           the same where NAME is too long for a file's name: END
//	                          is a digest of NAME and its end
//
// OP is the number of the operation that condemned it. The name alone tells, to
// any host and without the store, that its user has deleted the image.
const hiddenPrefix = ".chainfs-"

// scratchPrefix starts the name of every scratch file: a copy of a child while
// it is being rebased. It differs from every other hidden name, because a stale
// scratch file is deleted without asking.
const scratchPrefix = hiddenPrefix + "scratch-"

// ControlName is the name of chainfs's own directory: at the root of the tree
// it holds the tree's id and the owner's lock.
const ControlName = ".chainfs"

const maxName = 255 // bytes, NAME_MAX of every file system we run on

// ScratchName is the name of the scratch file for the child named base. Of a
// condemned child it takes the end, so that the name tells that it is a scratch.
func ScratchName(op OpID, base string) string {
	name := fmt.Sprintf("%s%s-%s", scratchPrefix, op, base)
	return name[:min(len(name), maxName)]
}

// IsScratch reports whether name is a scratch file's.
func IsScratch(name string) bool { return strings.HasPrefix(name, scratchPrefix) }

// IsHidden reports whether name belongs to chainfs and is left out of listings.
func IsHidden(name string) bool {
	return name == ControlName || strings.HasPrefix(name, hiddenPrefix)
}

// InHidden reports whether any element of p belongs to chainfs.
func InHidden(p Path) bool {
	for _, name := range split(p) {
		if IsHidden(name) {
			return true
		}
	}
	return false
}

// CondemnedName is the hidden name for the file or directory named base, which
// operation op condemns.
func CondemnedName(op OpID, base string) string {
	name := fmt.Sprintf("%s%s-%s", hiddenPrefix, op, base)
	if len(name) <= maxName {
		return name
	}
	sum := fnv.New64a()
	sum.Write([]byte(base))
	start := fmt.Sprintf("%s%s~%016x-", hiddenPrefix, op, sum.Sum64())
	return start + base[len(base)-(maxName-len(start)):]
}

// ParseCondemned takes a hidden name apart. whole reports whether base is all of
// the name that it was, and not only its end.
func ParseCondemned(name string) (op OpID, base string, whole, ok bool) {
	rest, is := strings.CutPrefix(name, hiddenPrefix)
	i := strings.IndexAny(rest, "-~")
	if !is || i <= 0 || i == len(rest)-1 || rest[0] == '+' {
		return 0, "", false, false
	}
	n, err := strconv.ParseUint(rest[:i], 10, 64)
	if err != nil {
		return 0, "", false, false
	}
	return OpID(n), rest[i+1:], rest[i] == '-', true
}

// IsCondemned reports whether name is that of a condemned file or directory.
func IsCondemned(name string) bool {
	_, _, _, ok := ParseCondemned(name)
	return ok
}

// Shown is p with each hidden name replaced by the one that it was, as far as the
// name itself tells: how a condemned image is called when users are spoken to.
func Shown(p Path) Path {
	if !strings.Contains(string(p), hiddenPrefix) {
		return p
	}
	names := split(p)
	for i, name := range names {
		if _, base, _, ok := ParseCondemned(name); ok {
			names[i] = base
		}
	}
	return Path(strings.Join(names, "/"))
}
