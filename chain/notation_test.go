package chain

import (
	"fmt"
	"strings"
	"testing"
)

// parse builds a graph from a notation: "full <- a <- b, a <- c" is a full with
// a line of two incrementals, of which a has a second child c. "d/x" is x in
// directory d. A name may be followed by marks in brackets:
//
//	[raw]       a raw base
//	[missing]   not in the tree
//	[bad]       has trouble of its own
//	[pinned]    cannot be rewritten
//	[external]  names a parent outside the tree
//	[unreadable]
//
// Each image has 1 MiB allocated and 1 GiB of virtual size.
func parse(t *testing.T, text string) *Graph {
	t.Helper()
	g := NewGraph()
	images := map[string]*Image{}
	get := func(token string) *Image {
		name, marks, _ := strings.Cut(strings.TrimSpace(token), "[")
		if images[name] == nil {
			images[name] = &Image{
				ID: ImageID(len(images) + 1), Path: Path(name), Kind: Full, Allocated: 1 << 20,
				Identity: Identity{Inode: uint64(100 + len(images)), MTime: int64(len(images))},
				Header:   Header{Format: QCOW2, VirtualSize: 1 << 30},
			}
		}
		apply(images[name], strings.TrimSuffix(marks, "]"))
		return images[name]
	}
	for _, line := range strings.Split(text, ",") {
		var below *Image
		for _, token := range strings.Split(line, "<-") {
			im := get(token)
			if below != nil {
				im.Kind, im.Target = Incremental, below.Path
				im.Header.Backing, im.Header.BackingFormat = RelativeName(im.Path, below.Path), below.Format()
			}
			below = im
		}
	}
	for _, im := range images {
		switch im.Header.Trouble {
		case "missing":
		case "unreadable":
			g.blind[im.Path] = "Permission denied"
		default:
			g.put(im)
		}
	}
	g.settle(g.All())
	return g
}

func apply(im *Image, mark string) {
	switch mark {
	case "":
	case "raw":
		im.Kind, im.Header.Format = RawBase, ""
	case "bad":
		im.Header.Trouble = "is encrypted"
	case "pinned":
		im.Header.Pinned = "has internal snapshots"
	case "external":
		im.Kind, im.External, im.Header.Backing, im.Header.BackingFormat = Incremental, true, "/var/lib/libvirt/images/live.qcow2", QCOW2
	case "missing", "unreadable":
		im.Header.Trouble = mark
	default:
		panic(fmt.Sprintf("mark %q", mark))
	}
}

func paths(names string) []Path {
	var ps []Path
	for _, n := range strings.Fields(names) {
		ps = append(ps, Path(n))
	}
	return ps
}
