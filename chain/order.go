package chain

import (
	"cmp"
	"container/heap"
	"slices"
	"strings"
)

// NewestFirst sorts the names in a directory so that children come before the
// images they stand on, and newer backups before older ones: what deletes in
// this order (rm -r, find -delete) deletes from the tail of every chain and
// merges nothing. Names without images come last.
func (g *Graph) NewestFirst(dir Path, names []string) {
	ranks := g.ranks(dir)
	slices.SortStableFunc(names, func(a, b string) int {
		ra, aHas := ranks[a]
		rb, bHas := ranks[b]
		switch {
		case aHas && bHas:
			return cmp.Compare(ra, rb)
		case aHas:
			return -1
		case bHas:
			return 1
		}
		return strings.Compare(b, a)
	})
}

// shelf is one name in a directory and what the images at or below it say.
type shelf struct {
	name   string
	newest int64           // the latest mtime of its images, ns since 1970
	before map[*shelf]bool // names that hold parents of its images: they come after it
	after  int             // how many names hold children of its images
	images []*Image
}

// ranks gives each name in dir that holds images its place.
func (g *Graph) ranks(dir Path) map[string]int {
	shelves := g.shelves(dir)
	all := make(shelfHeap, 0, len(shelves))
	for _, s := range shelves {
		all = append(all, s)
	}
	slices.SortFunc(all, (*shelf).newer)
	var ready shelfHeap // on whose images nothing else stands
	for _, s := range all {
		if s.after == 0 {
			ready = append(ready, s)
		}
	}
	heap.Init(&ready)
	ranks := make(map[string]int, len(all))
	for len(ranks) < len(all) {
		if len(ready) == 0 {
			// Directories that hold each other's parents have no such order:
			// the newest of them goes first.
			i := slices.IndexFunc(all, func(s *shelf) bool { return s.after > 0 })
			all[i].after = 0
			ready = append(ready, all[i])
		}
		next := heap.Pop(&ready).(*shelf)
		ranks[next.name] = len(ranks)
		for s := range next.before {
			if s.after--; s.after == 0 {
				heap.Push(&ready, s)
			}
		}
	}
	return ranks
}

func (g *Graph) shelves(dir Path) map[string]*shelf {
	shelves := map[string]*shelf{}
	for _, im := range g.below(dir, nil) {
		name := under(dir, im.Path)
		s := shelves[name]
		if s == nil {
			s = &shelf{name: name, before: map[*shelf]bool{}}
			shelves[name] = s
		}
		s.newest = max(s.newest, im.Identity.MTime)
		s.images = append(s.images, im)
	}
	for _, s := range shelves {
		for _, im := range s.images {
			if im.Target == "" || im.Target == dir || !im.Target.Within(dir) {
				continue
			}
			below := shelves[under(dir, im.Target)]
			if below != nil && below != s && !s.before[below] {
				s.before[below] = true
				below.after++
			}
		}
	}
	return shelves
}

func (s *shelf) newer(o *shelf) int {
	return cmp.Or(cmp.Compare(o.newest, s.newest), strings.Compare(o.name, s.name))
}

// shelfHeap is a container/heap, the newest first.
type shelfHeap []*shelf

func (h shelfHeap) Len() int           { return len(h) }
func (h shelfHeap) Less(i, j int) bool { return h[i].newer(h[j]) < 0 }
func (h shelfHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *shelfHeap) Push(x any)        { *h = append(*h, x.(*shelf)) }

func (h *shelfHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

// under is the name in dir that leads to p, which lies below dir.
func under(dir, p Path) string {
	rest := string(p)
	if dir != "" {
		rest = rest[len(dir)+1:]
	}
	name, _, _ := strings.Cut(rest, "/")
	return name
}
