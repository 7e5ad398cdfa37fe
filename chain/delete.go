package chain

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"
)

// DeleteOptions change what PlanDelete may do.
type DeleteOptions struct {
	Force bool // delete every descendant of the paths as well

	// Inode is the file that the caller means by its one path; 0 for whatever
	// is there. A directory may be renamed while the tree is surveyed.
	Inode uint64

	// Now has all of it done before Delete returns, however much that copies.
	Now bool

	// begun: children have been rebased for this deletion, which passed the rule
	// about backup sets. It is not asked again: a rebase moves parents between
	// directories, and may make a set of a directory that was none.
	begun bool

	// only: what is condemned and stands on a path stays, and must read as before.
	only bool
}

// PlanDelete decides what deleting paths takes. It is the table of
// docs/DESIGN.md, "What unlink does":
//
//	no image                      unlinked, unless it is a sidecar of a refused backup set
//	nothing stands on it          unlinked
//	an incremental with children  each child absorbs it; then it is unlinked
//	condemned images on it        go with it: their users have deleted them
//	a full with children          refused, and with it every file of its backup set
//	broken, with children         refused
//	something could not be read   refused: it might stand on it
//
// Whether an image is in use is not in the graph: the executor asks.
func (g *Graph) PlanDelete(paths []Path, opt DeleteOptions) Plan {
	d := g.deletion(paths, opt)
	p := Plan{Act: ActDelete, Paths: slices.Clone(paths)}
	p.Refusals = d.refusals()
	p.Chains = d.chains()
	if len(p.Refusals) > 0 {
		return p
	}
	p.Steps = append(d.rebases(), d.unlinks()...)
	p.Idle = d.idle()
	return p
}

// deletion is what PlanDelete works on.
type deletion struct {
	g      *Graph
	going  map[*Image]bool // the images to be deleted
	rides  map[*Image]bool // of these, the condemned ones that nobody asked for now
	plain  []Path          // the other files to be deleted
	only   bool            // see DeleteOptions
	beside map[*Image]bool // images of the same backup sets that are not to be deleted now
}

func (g *Graph) deletion(paths []Path, opt DeleteOptions) *deletion {
	d := &deletion{g: g, only: opt.only, going: map[*Image]bool{}, rides: map[*Image]bool{}, beside: map[*Image]bool{}}
	for _, p := range paths {
		im := g.At(p)
		if im == nil {
			d.plain = append(d.plain, p)
			continue
		}
		d.going[im] = true
		if opt.Force {
			for _, above := range g.Descendants(p) {
				d.going[above] = true
			}
		}
	}
	if !opt.only {
		d.rideAlong()
	}
	if opt.begun {
		return d
	}
	for _, p := range paths {
		if g.IsBackupSet(p.Dir()) && (g.At(p) != nil || isSidecar(p)) {
			for _, im := range g.inDir[p.Dir()] {
				if !d.going[im] && !im.IsCondemned() {
					d.beside[im] = true
				}
			}
		}
	}
	return d
}

// rideAlong adds the condemned images that stand on what goes, directly or on one
// another: their users deleted them, so what stands on them absorbs all at once.
func (d *deletion) rideAlong() {
	if len(d.g.condemned) == 0 {
		return
	}
	for queue := d.images(d.going); len(queue) > 0; queue = queue[1:] {
		for _, child := range d.g.Children(queue[0].Path) {
			if child.IsCondemned() && !d.going[child] {
				d.going[child], d.rides[child] = true, true
				queue = append(queue, child)
			}
		}
	}
}

// refusals are why the files cannot be deleted: one for each path, in the order
// of paths.
func (d *deletion) refusals() []Refusal {
	var all []Refusal
	refused := map[Path]string{} // backup set to the reason of the image in it
	for _, im := range d.images(d.going, d.beside) {
		reason := ""
		if !d.rides[im] { // what stands on one that rides stands on what was asked for
			reason = d.objection(im)
		}
		if reason == "" {
			continue
		}
		if d.g.IsBackupSet(im.Path.Dir()) {
			refused[im.Path.Dir()] = reason
		}
		if d.going[im] {
			all = append(all, Refusal{im.Path, reason})
		}
	}
	for _, im := range d.images(d.rides) {
		if reason := d.needed(im.Path); reason != "" {
			all = append(all, Refusal{im.Path, reason})
		}
	}
	has := map[Path]bool{}
	for _, r := range all {
		has[r.Path] = true
	}
	for _, im := range d.images(d.going) {
		if reason := refused[im.Path.Dir()]; reason != "" && !has[im.Path] && !d.rides[im] {
			all = append(all, Refusal{im.Path, beside(im.Path, reason)})
		}
	}
	for _, p := range d.plain {
		if reason := d.plainObjection(p, refused); reason != "" {
			all = append(all, Refusal{p, reason})
		}
	}
	return all
}

func beside(p Path, reason string) string {
	return fmt.Sprintf("%s belongs to the backup set %s, of which no file can be deleted: %s", p, p.Dir(), reason)
}

func (d *deletion) plainObjection(p Path, refused map[Path]string) string {
	if reason := d.needed(p); reason != "" {
		return reason
	}
	for _, child := range d.g.Children(p) {
		if !d.going[child] { // it is an image then, but could not be read as one
			return fmt.Sprintf("%s cannot be deleted because %s names it as its parent; delete that image first", p, child.Path)
		}
	}
	if reason := refused[p.Dir()]; reason != "" && isSidecar(p) {
		return beside(p, reason)
	}
	return ""
}

// objection is why im cannot be deleted, empty when it can.
func (d *deletion) objection(im *Image) string {
	if reason := d.needed(im.Path); reason != "" {
		return reason
	}
	if reason := d.g.blindness(im.Path); reason != "" {
		return reason
	}
	left := d.dependents(im)
	if len(left) == 0 {
		return ""
	}
	switch {
	case im.Kind != Incremental:
		return fmt.Sprintf("%s is %s on which %s; delete those first, newest first, or delete it together with them (chainfs rm --force)",
			im.called(), article(im.Kind), depend(left))
	case d.g.Problem(im) != "":
		return fmt.Sprintf("%s cannot be merged into its children because %s, and %s on it; repair that, or delete the children first",
			im.called(), d.g.Problem(im), depend(left))
	}
	for _, child := range left {
		if reason := d.g.cannotRebase(child); reason != "" {
			return fmt.Sprintf("%s cannot be deleted because its child %s cannot absorb it: %s; delete the child first",
				im.called(), child.called(), reason)
		}
	}
	return ""
}

// needed is why the file at p must stay although no backing name that chainfs
// could rewrite leads to it.
func (d *deletion) needed(p Path) string {
	for _, im := range sorted(d.g.needers[p]) {
		if !d.going[im] {
			return fmt.Sprintf("%s is needed by %s through a name that chainfs does not rewrite (a symbolic link, an external data file, or a protocol or json: backing name); delete that image first",
				p, im.Path)
		}
	}
	if im := d.g.At(p); im != nil && im.IsCondemned() {
		for _, child := range d.g.stranded(im) {
			if !d.going[child] {
				return fmt.Sprintf("%s may be the parent of %s, which names it by the name that it had; bring it back (chainfs undelete), or delete that image first",
					im.called(), child.called())
			}
		}
	}
	return ""
}

// blindness refuses every deletion of an image, and of a file that could be the
// raw base of one, while a file or directory cannot be read: that may name it.
// Deleting what could not be read itself is not
// refused for its own sake.
func (g *Graph) blindness(p Path) string {
	first, why := g.unread(p)
	if why == "" {
		return ""
	}
	return fmt.Sprintf("%s cannot be deleted because %s cannot be read (%s) and may depend on it; make it readable or remove it, then run chainfs scan",
		p, first, why)
}

// unread is what could not be read beside p itself, and why.
func (g *Graph) unread(p Path) (first Path, why string) {
	for at, reason := range g.blind {
		if at != p && (why == "" || at < first) {
			first, why = at, reason
		}
	}
	return first, why
}

// cannotRebase is why the image itself cannot be put on another parent.
func (g *Graph) cannotRebase(im *Image) string {
	if im.Header.Pinned != "" {
		return im.Path.String() + " " + im.Header.Pinned
	}
	return g.Problem(im)
}

// dependents are the nearest images above im that stay, for their users.
func (d *deletion) dependents(im *Image) []*Image {
	var left []*Image
	met := map[*Image]bool{}
	var climb func(*Image)
	climb = func(at *Image) {
		for _, child := range d.g.Children(at.Path) {
			switch {
			case met[child]:
			case d.going[child], !d.only && child.IsCondemned():
				met[child] = true
				climb(child)
			default:
				met[child] = true
				left = append(left, child)
			}
		}
	}
	climb(im)
	return left
}

// rebases are the steps that put each child that stays on its nearest ancestor
// that stays.
func (d *deletion) rebases() []Step {
	var steps []Step
	for _, gone := range d.images(d.going) {
		for _, child := range d.g.Children(gone.Path) {
			if d.going[child] {
				continue
			}
			var parent *Image
			var bytes int64
			line, _ := d.g.Below(child)
			for _, below := range line {
				if !d.going[below] {
					parent = below
					break
				}
				bytes += below.Allocated
			}
			steps = append(steps, d.g.rebaseStep(child, parent, bytes))
		}
	}
	slices.SortFunc(steps, func(a, b Step) int { return strings.Compare(string(a.Path), string(b.Path)) })
	return steps
}

func (g *Graph) rebaseStep(child, parent *Image, bytes int64) Step {
	s := Step{
		Verb: StepRebase, Image: child.ID, Path: child.Path, Identity: child.Identity,
		Bytes: min(bytes, child.Header.VirtualSize),
	}
	if parent != nil {
		s.NewParent = parent.Path
		s.NewName = RelativeName(child.Path, parent.Path)
		s.NewFormat = parent.Format()
	}
	return s
}

// unlinks are the deletions: images newest first, so that at every moment what
// is left is a chain, and then the other files.
func (d *deletion) unlinks() []Step {
	var steps []Step
	for _, im := range d.images(d.going) {
		steps = append(steps, Step{Verb: StepUnlink, Image: im.ID, Path: im.Path, Identity: im.Identity, Bytes: im.Allocated})
	}
	position := func(s Step) int32 { return d.g.ByID(s.Image).Position }
	slices.SortStableFunc(steps, func(a, b Step) int { return cmp.Compare(position(b), position(a)) })
	for _, p := range d.plain {
		steps = append(steps, Step{Verb: StepUnlink, Path: p})
	}
	return steps
}

// chains are the chains of all images that the decision looked at.
func (d *deletion) chains() []ImageID {
	var ids []ImageID
	for _, im := range d.images(d.going, d.beside) {
		ids = append(ids, im.Chain)
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// idle are the other disks of the sets, and their children: the decision covers
// the whole set, so a disk in use must be met before the first one is deleted.
func (d *deletion) idle() []Path {
	var paths []Path
	for _, im := range d.images(d.beside) {
		paths = append(paths, im.Path)
		for _, child := range d.g.Children(im.Path) {
			paths = append(paths, child.Path)
		}
	}
	slices.Sort(paths)
	return slices.Compact(paths)
}

func (d *deletion) images(sets ...map[*Image]bool) []*Image {
	var all []*Image
	for _, set := range sets {
		for im := range set {
			all = append(all, im)
		}
	}
	return byPath(all)
}

// RelativeName is the backing name that leads from child to parent. qemu takes
// what stands before a colon for a protocol, unless a slash comes first.
func RelativeName(child, parent Path) Path {
	from, to := split(child.Dir()), split(parent)
	n := 0
	for n < len(from) && n < len(to)-1 && from[n] == to[n] {
		n++
	}
	name := strings.Repeat("../", len(from)-n) + path.Join(to[n:]...)
	if colon := strings.IndexByte(name, ':'); colon >= 0 && !strings.Contains(name[:colon], "/") {
		name = "./" + name
	}
	return Path(name)
}

func split(p Path) []string {
	if p == "" {
		return nil
	}
	return strings.Split(string(p), "/")
}

func article(k Kind) string {
	if k == Full {
		return "a full backup"
	}
	return "a raw base image"
}

// depend says that images depend on something: "VM/b depends", "VM/b, VM/c and 4 more depend".
func depend(ims []*Image) string {
	if len(ims) == 1 {
		return ims[0].called() + " depends"
	}
	const shown = 3
	var names []string
	for _, im := range ims[:min(shown, len(ims))] {
		names = append(names, im.called())
	}
	if more := len(ims) - shown; more > 0 {
		return fmt.Sprintf("%s and %d more depend", strings.Join(names, ", "), more)
	}
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " and " + names[last] + " depend"
}

// called is what users call the image.
func (im *Image) called() string {
	if im.IsCondemned() {
		return Shown(im.Path).String() + " (deleted)"
	}
	return im.Path.String()
}
