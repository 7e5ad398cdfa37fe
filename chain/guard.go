package chain

import (
	"fmt"
	"path"
	"strings"
)

// CheckWrite refuses to change the content of an image that others stand on:
// they would change with it.
func (g *Graph) CheckWrite(p Path) error {
	stand := append(g.Children(p), sorted(g.needers[p])...)
	if len(stand) == 0 {
		return nil
	}
	return Refuse(p, "%s cannot be written because %s on it; delete them first, or write to a new file", p, depend(stand))
}

// CheckReplace refuses to put another file in p's place unless p could be
// deleted without rebasing anything.
func (g *Graph) CheckReplace(p Path) error {
	if len(g.children[p]) > 0 {
		return Refuse(p, "%s cannot be replaced because %s on it; delete it first, or choose another name", p, depend(g.Children(p)))
	}
	plan := g.PlanDelete([]Path{p}, DeleteOptions{})
	return plan.Err()
}

// move is a change of names: from becomes to, and with exchange also to becomes from.
type move struct {
	from, to Path
	exchange bool
}

func (m move) of(p Path) Path {
	switch {
	case p.Within(m.from):
		return p.Moved(m.from, m.to)
	case m.exchange && p.Within(m.to):
		return p.Moved(m.to, m.from)
	}
	return p
}

func (m move) touches(p Path) bool { return p.Within(m.from) || m.exchange && p.Within(m.to) }

// checkMove refuses a change of names after which an image would not find its
// parent any more.
func (g *Graph) checkMove(m move) error {
	for p, why := range g.blind {
		if len(g.imagesAt(m)) > 0 && !p.Within(m.from) {
			return Refuse(m.from, "%s cannot be renamed because %s cannot be read (%s) and may depend on it; make it readable or remove it, then run chainfs scan", m.from, p, why)
		}
	}
	for _, im := range g.touched(m) {
		if why := m.breaks(im); why != "" {
			return Refuse(m.from, "%s cannot become %s because %s; a chain can only be moved as a whole, with names that stay right", m.from, m.to, why)
		}
	}
	return nil
}

// touched are the images whose own name, or a name they depend on, changes.
func (g *Graph) touched(m move) []*Image {
	if ims, one := g.touchedFile(m); one {
		return ims
	}
	var ims []*Image
	for _, im := range g.byID {
		if m.touches(im.Path) || im.Target != "" && m.touches(im.Target) || m.touchesAny(im.Needs) {
			ims = append(ims, im)
		}
	}
	return byPath(ims)
}

// imagesAt are the images whose own name changes.
func (g *Graph) imagesAt(m move) []*Image {
	ims := g.Within(m.from)
	if m.exchange {
		ims = append(ims, g.Within(m.to)...)
	}
	return ims
}

// touchedFile answers for the common case without a walk of all images: the
// move of one file, which is an image or a directory without any.
func (g *Graph) touchedFile(m move) ([]*Image, bool) {
	im := g.At(m.from)
	if im == nil || m.exchange {
		return nil, false
	}
	ims := append([]*Image{im}, g.children[m.from]...)
	return byPath(append(ims, g.needers[m.from]...)), true
}

func (m move) touchesAny(ps []Path) bool {
	for _, p := range ps {
		if m.touches(p) {
			return true
		}
	}
	return false
}

// breaks is why im would be worse off after the move, empty when it would not be.
func (m move) breaks(im *Image) string {
	after := m.of(im.Path)
	relative := !strings.HasPrefix(string(im.Header.Backing), "/")
	switch {
	case m.touchesAny(im.Needs) || len(im.Needs) > 0 && after.Dir() != im.Path.Dir():
		return fmt.Sprintf("%s depends on it through a name that chainfs does not rewrite", im.Path)
	case im.External && relative && after.Dir() != im.Path.Dir():
		return fmt.Sprintf("the parent of %s is outside the tree and named relative to its directory", im.Path)
	case im.Target == "":
		return ""
	}
	leads := im.Target
	if relative {
		joined, inside := NewPath(path.Join(string(after.Dir()), string(im.Header.Backing)))
		if !inside {
			return fmt.Sprintf("%s would lose its parent %s", im.Path, im.Target)
		}
		leads = joined
	}
	if leads != m.of(im.Target) {
		return fmt.Sprintf("%s would lose its parent %s", im.Path, im.Target)
	}
	return ""
}
