package chain

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"
)

// Decision is what an unlink of a file would do, in one word.
type Decision string

// The decisions.
const (
	Pass    Decision = "pass"   // no image: the file is unlinked
	Unlink  Decision = "unlink" // nothing stands on the image: it is unlinked
	Absorb  Decision = "absorb" // its children absorb it; then it is unlinked
	Refused Decision = "refuse"
)

// Info is all that can be said about one file of the tree.
type Info struct {
	Path        Path      `json:"path"`
	ID          ImageID   `json:"id"`
	Kind        Kind      `json:"kind"`
	Format      Format    `json:"format"`
	Parent      Path      `json:"parent"`
	Children    []Path    `json:"children"`
	Position    int32     `json:"position"`
	Chain       ImageID   `json:"chain"`
	VirtualSize int64     `json:"virtual_size"` // bytes
	Allocated   int64     `json:"allocated"`    // bytes
	Frees       int64     `json:"frees"`        // bytes that deleting it gives back
	Copies      int64     `json:"copies"`       // bytes that deleting it copies at most
	Decision    Decision  `json:"decision"`
	Reason      string    `json:"reason"`
	Problem     string    `json:"problem,omitempty"` // why it cannot be read through its chain
	VM          string    `json:"vm,omitempty"`
	Backup      string    `json:"backup,omitempty"`
	Disk        string    `json:"disk,omitempty"`
	Written     time.Time `json:"written,omitzero"` // its mtime
}

// Describe says all about the file at p. A file that is no image has no id.
func (g *Graph) Describe(p Path) Info {
	plan := g.PlanDelete([]Path{p}, DeleteOptions{})
	info := Info{Path: p, Children: []Path{}, Frees: plan.Frees(), Copies: plan.Copies()}
	info.Decision, info.Reason = g.decision(p, &plan)
	im := g.At(p)
	if im == nil {
		return info
	}
	label := LabelOf(Shown(p))
	info.ID, info.Kind, info.Format = im.ID, im.Kind, im.Format()
	info.Parent, info.Position, info.Chain = im.Target, im.Position, im.Chain
	info.VirtualSize, info.Allocated = im.Header.VirtualSize, im.Allocated
	info.VM, info.Backup, info.Disk = label.VM, label.Backup, label.Disk
	info.Problem = g.Problem(im)
	info.Written = time.Unix(0, im.Identity.MTime)
	if im.External {
		info.Parent = im.Header.Backing
	}
	for _, c := range g.Children(p) {
		info.Children = append(info.Children, c.Path)
	}
	return info
}

func (g *Graph) decision(p Path, plan *Plan) (Decision, string) {
	switch {
	case len(plan.Refusals) > 0:
		return Refused, plan.Refusals[0].Reason
	case IsCondemned(p.Base()) && g.At(p) != nil:
		return Absorb, fmt.Sprintf("%s is deleted; what stands on it absorbs what it needs, at most %s, and then its space is free (chainfs ops)",
			Shown(p), Size(plan.Copies()))
	case g.At(p) == nil:
		return Pass, fmt.Sprintf("%s is no image and no image needs it: it can be deleted", p)
	case plan.Rebases():
		return Absorb, fmt.Sprintf("%s can be deleted: %s on it and will absorb what it needs from it first, at most %s",
			p, depend(g.Children(p)), Size(plan.Copies()))
	}
	return Unlink, fmt.Sprintf("%s can be deleted: nothing depends on it", p)
}

// Listing describes the images at or below p, chain by chain and each chain
// from its full upwards. For an image it is its whole chain.
func (g *Graph) Listing(p Path) []Info {
	shown := map[*Image]bool{}
	var roots []*Image
	for _, im := range g.Within(p) {
		root := im
		if line, _ := g.Below(im); len(line) > 0 {
			root = line[len(line)-1]
		}
		if !shown[root] {
			shown[root] = true
			roots = append(roots, root)
		}
	}
	clear(shown)
	slices.SortFunc(roots, func(a, b *Image) int { return cmp.Compare(a.Path, b.Path) })
	infos := []Info{}
	var climb func(*Image)
	climb = func(im *Image) {
		if shown[im] {
			return
		}
		shown[im] = true
		infos = append(infos, g.Describe(im.Path))
		for _, c := range g.Children(im.Path) {
			climb(c)
		}
	}
	for _, root := range roots {
		climb(root)
	}
	return infos
}

// Describe surveys the tree and describes one file of it. A path that leads
// nowhere is fs.ErrNotExist.
func (t *Tree) Describe(ctx context.Context, p Path) (Info, error) {
	if _, err := t.cfg.Files.Stat(p); err != nil {
		return Info{}, fmt.Errorf("%s: %w", p, err)
	}
	if _, err := t.survey(ctx); err != nil {
		return Info{}, err
	}
	t.mu.RLock()
	info := t.graph.Describe(p)
	t.mu.RUnlock()
	return t.withUse(info), nil
}

// withUse turns a decision into a refusal while the image is being used.
func (t *Tree) withUse(info Info) Info {
	if info.ID == 0 || info.Decision == Refused {
		return info
	}
	for _, p := range append([]Path{info.Path}, info.Children...) {
		if err := t.errIdle(p); err != nil {
			info.Decision, info.Reason, info.Frees, info.Copies = Refused, err.Error(), 0, 0
			return info
		}
	}
	return info
}

// List surveys the tree and lists the images at or below p.
func (t *Tree) List(ctx context.Context, p Path) ([]Info, error) {
	if p != "" {
		if _, err := t.cfg.Files.Stat(p); err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
	}
	if _, err := t.survey(ctx); err != nil {
		return nil, err
	}
	t.mu.RLock()
	infos := t.graph.Listing(p)
	t.mu.RUnlock()
	for i := range infos {
		infos[i] = t.withUse(infos[i])
	}
	return infos, nil
}

// Files expands directories to the files in them that a deletion of the
// directory would have to delete.
func (t *Tree) Files(ctx context.Context, paths []Path) ([]Path, error) {
	var files []Path
	dirs := map[Path]bool{}
	for _, p := range paths {
		e, err := t.stat(p)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
		if e.Type != Directory {
			files = append(files, p)
			continue
		}
		dirs[p] = true
	}
	if len(dirs) == 0 {
		return files, nil
	}
	err := t.cfg.Files.Walk(ctx, Walker{
		Unreadable: func(Path, error) {},
		Visit: func(e Entry) error {
			if e.Type != Directory && withinAny(e.Path, dirs) {
				files = append(files, e.Path)
			}
			return nil
		},
	})
	slices.Sort(files)
	return slices.Compact(files), err
}

func (t *Tree) stat(p Path) (Entry, error) {
	if p == "" {
		return Entry{Type: Directory}, nil
	}
	return t.cfg.Files.Stat(p)
}

func withinAny(p Path, dirs map[Path]bool) bool {
	for dir := range dirs {
		if p.Within(dir) {
			return true
		}
	}
	return false
}
