package chain

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
)

// apply makes graph and index equal to what a walk found. It fails with
// errOvertaken when the graph was changed since the walk began: a file that was
// renamed meanwhile may have been missed, and its parent would look childless.
func (t *Tree) apply(f *finding) (Report, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.edits != f.edits {
		return Report{}, errOvertaken
	}
	report := Report{Read: len(f.readings), Unreadable: unreadable(f.blind), Leftovers: f.leftovers}
	t.graph.blind = maps.Clone(f.blind)
	gone := t.vanished(f)
	if err := t.take(f.readings, gone, &report); err != nil {
		return report, err
	}
	for _, im := range gone {
		if t.graph.ByID(im.ID) == im {
			t.forget(im)
			report.Removed++
		}
	}
	t.dropMarks()
	if len(f.readings)+len(gone) > 0 {
		t.dropBases()
		t.settle(t.graph.All())
	}
	report.Images = t.graph.Len()
	return report, t.save()
}

func unreadable(blind map[Path]string) []Finding {
	var all []Finding
	for p, why := range blind {
		all = append(all, Finding{p, "cannot be read (" + why + ")"})
	}
	return sortFindings(all)
}

// vanished are the images that the walk did not meet. One in a directory that
// could not be read has not vanished.
func (t *Tree) vanished(f *finding) []*Image {
	var gone []*Image
	for _, im := range t.graph.byID {
		if im.seen != t.round && !unseeable(im.Path, f.blind) {
			gone = append(gone, im)
		}
	}
	return gone
}

func unseeable(p Path, blind map[Path]string) bool {
	if len(blind) == 0 {
		return false
	}
	for at := p; at != ""; at = at.Dir() {
		if blind[at] != "" {
			return true
		}
	}
	return blind[""] != ""
}

// take brings readings into the graph. The caller holds mu.
func (t *Tree) take(readings []reading, gone []*Image, report *Report) error {
	lost := make(map[uint64]*Image, len(gone))
	for _, im := range gone {
		lost[im.Identity.Inode] = im
	}
	// A raw base is only recognised by its children: images come first.
	for _, images := range []bool{true, false} {
		for _, r := range readings {
			if r.header.IsImage() != images {
				continue
			}
			if err := t.takeOne(r, lost, report); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *Tree) takeOne(r reading, lost map[uint64]*Image, report *Report) error {
	old := t.graph.At(r.entry.Path)
	if !r.header.IsImage() && len(t.graph.children[r.entry.Path]) == 0 {
		if old != nil {
			t.forget(old)
			report.Removed++
		}
		t.markPlain(r)
		return nil
	}
	im := r.image()
	switch was := lost[r.entry.Identity.Inode]; {
	case old != nil:
		im.ID, im.FirstSeen = old.ID, old.FirstSeen
		report.Changed++
	case was != nil && was.Identity.SameContent(r.entry.Identity):
		im.ID, im.FirstSeen = was.ID, was.FirstSeen
		report.Moved++
	default:
		id, err := t.cfg.Index.NewImageID()
		if err != nil {
			return fmt.Errorf("number a new image: %w", err)
		}
		im.ID, im.FirstSeen = id, r.at
		report.Added++
	}
	im.seen = t.round
	t.graph.put(im)
	t.unsaved.put[im.ID] = true
	delete(t.unsaved.remove, im.ID)
	return nil
}

func (r *reading) image() *Image {
	im := &Image{
		Path: r.entry.Path, Kind: Incremental, Identity: r.entry.Identity, Allocated: r.entry.Allocated,
		Header: r.header, Target: r.target, External: r.external, Needs: r.needs, Indexed: r.at,
	}
	switch {
	case !r.header.IsImage():
		im.Kind = RawBase
		im.Header.VirtualSize = r.entry.Identity.Size
	case r.header.Backing == "" && !r.header.ParentUnknown:
		im.Kind = Full
	}
	return im
}

func (t *Tree) markPlain(r reading) {
	if r.at.UnixNano()-r.entry.Identity.CTime > int64(racy) {
		t.plain[markOf(r.entry)] = t.round
	}
}

// dropMarks forgets the marks of files that are no longer there.
func (t *Tree) dropMarks() {
	for m, round := range t.plain {
		if round != t.round {
			delete(t.plain, m)
		}
	}
}

// dropBases forgets raw files that no image names any more. The caller holds mu.
func (t *Tree) dropBases() {
	for _, im := range t.graph.byID {
		if im.Kind == RawBase && len(t.graph.children[im.Path]) == 0 {
			t.forget(im)
		}
	}
}

// Changed reads one file again, after it was written or appeared under that
// name, and brings graph and index up to date.
func (t *Tree) Changed(p Path) error {
	if t.isKnown(p) {
		return nil
	}
	f := &finding{blind: map[Path]string{}}
	r, err := t.readRegular(p)
	if err == nil {
		f.readings = append(f.readings, r)
		err = t.readBase(f, r.target, map[Path]bool{p: true})
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		t.edited()
		if im := t.graph.At(p); im != nil {
			t.forget(im)
		}
		delete(t.graph.blind, p)
		return t.save()
	case err != nil:
		t.graph.blind[p] = reasonOf(err)
		return fmt.Errorf("read %s: %w", p, err)
	case t.uninteresting(f):
		return nil
	}
	t.edited()
	delete(t.graph.blind, p)
	return t.update(f)
}

// isKnown reports whether the graph has the image at p as it is in the tree.
func (t *Tree) isKnown(p Path) bool {
	e, err := t.cfg.Files.Stat(p)
	if err != nil {
		return false
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	im := t.graph.At(p)
	return im != nil && im.trusted(e) && t.graph.blind[p] == ""
}

// readRegular is read for a path that may lead to anything; what is no regular
// file is no image, as if it did not exist.
func (t *Tree) readRegular(p Path) (reading, error) {
	e, err := t.cfg.Files.Stat(p)
	if err == nil && e.Type != Regular {
		err = fs.ErrNotExist
	}
	if err != nil {
		return reading{}, err
	}
	return t.read(p)
}

// edited makes a survey that is under way start over. The caller holds mu.
func (t *Tree) edited() { t.edits++ }

// uninteresting reports whether only a file was read that is no image, and was none.
func (t *Tree) uninteresting(f *finding) bool {
	r := f.readings[0]
	return !r.header.IsImage() && t.graph.At(r.entry.Path) == nil && len(t.graph.children[r.entry.Path]) == 0 &&
		t.graph.blind[r.entry.Path] == ""
}

// update brings the readings of single files into graph and index. The caller holds mu.
func (t *Tree) update(f *finding) error {
	var report Report
	for p, why := range f.blind {
		t.graph.blind[p] = why
	}
	if err := t.take(f.readings, nil, &report); err != nil {
		return err
	}
	t.dropBases()
	for _, r := range f.readings {
		t.settle(append(t.graph.Descendants(r.entry.Path), t.at(r.entry.Path)...))
	}
	return t.save()
}

func (t *Tree) at(p Path) []*Image {
	if im := t.graph.At(p); im != nil {
		return []*Image{im}
	}
	return nil
}
