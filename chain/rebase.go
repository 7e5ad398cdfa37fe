package chain

import "fmt"

// PlanRebase decides what putting target onto another image of its chain takes;
// an empty parent makes it a full. It has no step when target stands there already.
func (g *Graph) PlanRebase(target, parent Path) Plan {
	p := Plan{Act: ActRebase, Paths: []Path{target}}
	if reason := g.rebaseObjection(target, parent); reason != "" {
		p.Refusals = []Refusal{{target, reason}}
		return p
	}
	im := g.At(target)
	p.Chains = []ImageID{im.Chain}
	to := g.At(parent)
	if g.Parent(im) == to {
		return p
	}
	p.Steps = []Step{g.rebaseStep(im, to, g.difference(im, to))}
	return p
}

func (g *Graph) rebaseObjection(target, parent Path) string {
	im := g.At(target)
	switch {
	case im == nil:
		return fmt.Sprintf("%s is not an image that chainfs knows; run chainfs scan if it is new", target)
	case im.Kind == RawBase:
		return fmt.Sprintf("%s is a raw file and cannot have a parent", target)
	}
	if reason := g.cannotRebase(im); reason != "" {
		return fmt.Sprintf("%s cannot be rebased: %s", target, reason)
	}
	if parent == "" {
		return ""
	}
	to := g.At(parent)
	switch {
	case to == nil:
		return fmt.Sprintf("%s is not an image that chainfs knows; run chainfs scan if it is new", parent)
	case to.Chain != im.Chain:
		return fmt.Sprintf("%s is of another chain than %s; only an image of the same chain can become its parent", parent, target)
	case to == im:
		return fmt.Sprintf("%s cannot stand on itself", target)
	case g.Problem(to) != "":
		return fmt.Sprintf("%s cannot become a parent: %s", parent, g.Problem(to))
	}
	line, _ := g.Below(to)
	for _, below := range line {
		if below == im {
			return fmt.Sprintf("%s stands on %s and cannot become its parent", parent, target)
		}
	}
	return ""
}

// difference is the most that can have to be copied when im moves onto to: what
// is allocated in the layers that only one of the two lines has.
func (g *Graph) difference(im, to *Image) int64 {
	before, _ := g.Below(im)
	var after []*Image
	if to != nil {
		after, _ = g.Below(to)
		after = append(after, to)
	}
	once := map[*Image]bool{}
	for _, l := range before {
		once[l] = true
	}
	for _, l := range after {
		once[l] = !once[l]
	}
	var bytes int64
	for l, only := range once {
		if only {
			bytes += l.Allocated
		}
	}
	return bytes
}
