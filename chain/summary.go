package chain

// Summary is a tree in a few numbers.
type Summary struct {
	Images    int   `json:"images"` // condemned ones not counted
	Chains    int   `json:"chains"`
	Allocated int64 `json:"allocated"` // bytes; condemned ones not counted

	Condemned int   `json:"condemned"` // images
	Returning int64 `json:"returning"` // bytes that condemned images hold
	Kept      int64 `json:"kept"`      // of these, bytes that --keep holds back
}

// Summary is the tree as the last survey found it.
func (t *Tree) Summary() Summary {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var s Summary
	chains := map[ImageID]bool{}
	for _, im := range t.graph.byID {
		if t.graph.condemned[im] {
			continue
		}
		s.Images++
		s.Allocated += im.Allocated
		chains[im.Chain] = true
	}
	s.Chains = len(chains)
	for im := range t.graph.condemned {
		if _, both := t.graph.oldName(im); both {
			continue
		}
		s.Condemned++
		s.Returning += im.Allocated
		if t.isKept(im) {
			s.Kept += im.Allocated
		}
	}
	return s
}
