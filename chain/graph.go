package chain

import (
	"slices"
	"strings"
)

// maxDepth bounds the number of images below another. qemu opens them all.
const maxDepth = 256

// Graph is the images of a tree and what hangs on what. Edges are names: an
// image's children are those whose backing name leads to its path, so an image
// that appears, moves or vanishes takes its place without any relinking.
//
// A Graph does no I/O and has no lock; Tree guards its own.
type Graph struct {
	byID     map[ImageID]*Image
	byPath   map[Path]*Image
	children map[Path][]*Image // by Target
	needers  map[Path][]*Image // by each of Needs
	inDir    map[Path][]*Image
	// condemned are the images that their users have deleted.
	condemned map[*Image]bool
	subdirs   map[Path]map[Path]int // directories in a directory, and the images at or below each
	blind     map[Path]string       // what could not be read, and why: it may be a child of anything
}

// NewGraph is a graph without images.
func NewGraph() *Graph {
	return &Graph{
		byID:      map[ImageID]*Image{},
		byPath:    map[Path]*Image{},
		children:  map[Path][]*Image{},
		needers:   map[Path][]*Image{},
		inDir:     map[Path][]*Image{},
		condemned: map[*Image]bool{},
		subdirs:   map[Path]map[Path]int{},
		blind:     map[Path]string{},
	}
}

// Len is the number of images.
func (g *Graph) Len() int { return len(g.byID) }

// At is the image at p, nil when there is none.
func (g *Graph) At(p Path) *Image { return g.byPath[p] }

// ByID is the image with that id, nil when there is none.
func (g *Graph) ByID(id ImageID) *Image { return g.byID[id] }

// Parent is the image that im's backing name leads to, nil when im names none
// or it is not in the tree.
func (g *Graph) Parent(im *Image) *Image {
	if im.Target == "" {
		return nil
	}
	return g.byPath[im.Target]
}

// Children are the images whose backing name leads to p, by path.
func (g *Graph) Children(p Path) []*Image { return sorted(g.children[p]) }

// InDir are the images in a directory, by path.
func (g *Graph) InDir(dir Path) []*Image { return sorted(g.inDir[dir]) }

// All are all images, by path.
func (g *Graph) All() []*Image {
	all := make([]*Image, 0, len(g.byID))
	for _, im := range g.byID {
		all = append(all, im)
	}
	return byPath(all)
}

// Within are the images at p or below it, by path.
func (g *Graph) Within(p Path) []*Image {
	var in []*Image
	if im := g.byPath[p]; im != nil {
		in = append(in, im)
	}
	return byPath(g.below(p, in))
}

// namesOf are the images that are names of one inode.
func (g *Graph) namesOf(inode uint64) []Path {
	var names []Path
	for p, im := range g.byPath {
		if im.Identity.Inode == inode {
			names = append(names, p)
		}
	}
	return names
}

// below appends the images in the directory dir, at any depth.
func (g *Graph) below(dir Path, to []*Image) []*Image {
	to = append(to, g.inDir[dir]...)
	for sub := range g.subdirs[dir] {
		to = g.below(sub, to)
	}
	return to
}

func sorted(ims []*Image) []*Image { return byPath(slices.Clone(ims)) }

func byPath(ims []*Image) []*Image {
	slices.SortFunc(ims, func(a, b *Image) int { return strings.Compare(string(a.Path), string(b.Path)) })
	return ims
}

// put adds im, replacing the image with its id or at its path. The graph owns im.
func (g *Graph) put(im *Image) {
	if old := g.byID[im.ID]; old != nil {
		g.remove(old)
	}
	if old := g.byPath[im.Path]; old != nil {
		g.remove(old)
	}
	g.byID[im.ID] = im
	g.byPath[im.Path] = im
	g.inDir[im.Path.Dir()] = append(g.inDir[im.Path.Dir()], im)
	g.countDirs(im.Path, 1)
	if im.IsCondemned() {
		g.condemned[im] = true
	}
	g.share(im)
	if im.Target != "" {
		g.children[im.Target] = append(g.children[im.Target], im)
	}
	for _, p := range im.Needs {
		g.needers[p] = append(g.needers[p], im)
	}
}

// share makes im use strings that are in memory already: of 100,000 images each
// string less is megabytes less.
func (g *Graph) share(im *Image) {
	for _, known := range []Format{QCOW2, Raw} {
		if im.Header.BackingFormat == known {
			im.Header.BackingFormat = known
		}
		if im.Header.Format == known {
			im.Header.Format = known
		}
	}
	if parent := g.byPath[im.Target]; parent != nil {
		im.Target = parent.Path
	}
	if above := g.children[im.Path]; above != nil {
		delete(g.children, im.Path)
		g.children[im.Path] = above // under the same key, held once
		for _, child := range above {
			child.Target = im.Path
		}
	}
}

func (g *Graph) remove(im *Image) {
	delete(g.byID, im.ID)
	delete(g.byPath, im.Path)
	delete(g.condemned, im)
	drop(g.inDir, im.Path.Dir(), im)
	g.countDirs(im.Path, -1)
	if im.Target != "" {
		drop(g.children, im.Target, im)
	}
	for _, p := range im.Needs {
		drop(g.needers, p, im)
	}
}

// countDirs adds n images to every directory above p.
func (g *Graph) countDirs(p Path, n int) {
	for dir := p.Dir(); dir != ""; dir = dir.Dir() {
		in := g.subdirs[dir.Dir()]
		if in == nil {
			in = map[Path]int{}
			g.subdirs[dir.Dir()] = in
		}
		if in[dir] += n; in[dir] == 0 {
			delete(in, dir)
		}
		if len(in) == 0 {
			delete(g.subdirs, dir.Dir())
		}
	}
}

func drop(m map[Path][]*Image, key Path, im *Image) {
	rest := slices.DeleteFunc(m[key], func(o *Image) bool { return o == im })
	if len(rest) == 0 {
		delete(m, key)
		return
	}
	m[key] = rest
}

// Below are the images im stands on, its parent first, and why that line does
// not end in a full: empty when it does. The reason is a predicate without its
// subject, about the last image that was reached.
func (g *Graph) Below(im *Image) (line []*Image, broken string) {
	met := map[*Image]bool{im: true}
	for at := im; ; {
		parent := g.Parent(at)
		if parent == nil {
			return line, at.rootless()
		}
		// Inode numbers say nothing across file systems, and a loop through two
		// names of one file comes back to the same name in the end.
		if met[parent] {
			return line, "is part of a loop of backing names"
		}
		if len(line) == maxDepth {
			return line, "is more than 256 images above the bottom of its chain"
		}
		met[parent] = true
		line = append(line, parent)
		at = parent
	}
}

// rootless is why an image without a parent in the graph is no full.
func (im *Image) rootless() string {
	switch {
	case im.External:
		return "has its parent outside the tree (" + Printable(string(im.Header.Backing)) + ")"
	case im.Target != "":
		return "names a parent that is missing (" + im.Target.String() + ")"
	case im.Header.ParentUnknown && len(im.Header.Others) > 0:
		return "names a parent that chainfs does not follow (" + im.Header.Others[0].String() + ")"
	case im.Header.ParentUnknown:
		return "has a parent whose name is not in the file"
	}
	return ""
}

// Problem is why im cannot be read through its chain as it is, as a sentence;
// empty when it can. What it finds about an image further down is its problem too.
func (g *Graph) Problem(im *Image) string {
	line, broken := g.Below(im)
	last := im
	if len(line) > 0 {
		last = line[len(line)-1]
	}
	for at, i := im, 0; ; i++ {
		if at.Header.Trouble != "" {
			return at.Path.String() + " " + at.Header.Trouble
		}
		if why, is := g.blind[at.Path]; is {
			return at.Path.String() + " cannot be read (" + why + ")"
		}
		if i == len(line) {
			break
		}
		if parent := line[i]; at.Header.BackingFormat != parent.Format() {
			return at.Path.String() + " says that its parent is " + string(at.Header.BackingFormat) +
				", but " + parent.Path.String() + " is " + string(parent.Format())
		}
		at = line[i]
	}
	if broken != "" {
		return last.Path.String() + " " + broken
	}
	return ""
}

// place computes where im stands.
func (g *Graph) place(im *Image) Placement {
	line, _ := g.Below(im)
	if len(line) == 0 {
		return Placement{Chain: im.ID}
	}
	return Placement{Parent: line[0].ID, Chain: line[len(line)-1].ID, Position: int32(len(line))}
}

// settle brings the placement of the given images up to date and returns those
// that moved.
func (g *Graph) settle(ims []*Image) (moved []*Image) {
	for _, im := range ims {
		if now := g.place(im); now != im.Placement {
			im.Placement = now
			moved = append(moved, im)
		}
	}
	return moved
}

// Descendants are all images above the file at p, parents before children.
func (g *Graph) Descendants(p Path) []*Image {
	var all []*Image
	met := map[*Image]bool{}
	for queue := g.Children(p); len(queue) > 0; queue = queue[1:] {
		im := queue[0]
		if met[im] {
			continue
		}
		met[im] = true
		all = append(all, im)
		queue = append(queue, g.Children(im.Path)...)
	}
	return all
}

// missing are the images that name p, at which there is none.
func (g *Graph) missing(p Path) []*Image {
	if g.At(p) != nil {
		return nil
	}
	return g.Children(p)
}

// stranded are the images that name a condemned one by a name that it had. Without
// hard links a change of names can be cut off between the two, and then nothing but
// the hidden name tells what they stand on.
func (g *Graph) stranded(im *Image) []*Image {
	_, _, whole, _ := ParseCondemned(im.Path.Base())
	had := []Path{""}
	for _, name := range split(im.Path.Dir()) {
		had = eachWith(had, name)
	}
	var all []*Image
	for _, dir := range had {
		for _, p := range eachWith([]Path{dir}, im.Path.Base())[1:] {
			all = append(all, g.missing(p)...)
		}
		if dir != im.Path.Dir() {
			all = append(all, g.missing(dir.Join(im.Path.Base()))...)
		}
		if !whole {
			all = append(all, g.shortened(im, dir)...)
		}
	}
	return all
}

// eachWith are paths with name behind each, and, where it is hidden, with what it was
// called as well.
func eachWith(dirs []Path, name string) (all []Path) {
	for _, dir := range dirs {
		all = append(all, dir.Join(name))
	}
	if _, base, whole, ok := ParseCondemned(name); ok && whole && len(dirs) < 1<<maxMoves {
		for _, dir := range dirs {
			all = append(all, dir.Join(base))
		}
	}
	return all
}

// maxMoves bounds how many hidden directories, one in the other, are seen through.
const maxMoves = 6

// shortened is stranded for a name in dir of which the hidden one has only the end.
func (g *Graph) shortened(im *Image, dir Path) (all []*Image) {
	op, _, _, _ := ParseCondemned(im.Path.Base())
	for p := range g.children {
		if p.Dir() == dir && CondemnedName(op, p.Base()) == im.Path.Base() {
			all = append(all, g.missing(p)...)
		}
	}
	return all
}

// maxSet is the most images that a directory of one backup can hold, a disk
// each. A directory with more is a store of many backups.
const maxSet = 256

// IsBackupSet reports whether dir holds one backup: images of which none has
// its parent in dir. Those that are condemned are not of it any more.
func (g *Graph) IsBackupSet(dir Path) bool {
	ims := g.inDir[dir]
	if len(ims) > maxSet {
		return false
	}
	some := false
	for _, im := range ims {
		if im.IsCondemned() {
			continue
		}
		some = true
		if im.Target != "" && im.Target.Dir() == dir && !IsScratch(im.Target.Base()) {
			return false
		}
	}
	return some
}

// isSidecar reports whether a file that is no image belongs to the backup set
// it lies in: the XML files that describe the virtual machine.
func isSidecar(p Path) bool { return strings.HasSuffix(strings.ToLower(p.Base()), ".xml") }
