package chain

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"time"
)

// apply makes graph and index equal to what a walk found. What the mount itself
// did to images meanwhile is newer: such images count as seen, and a reading
// that is older than what the graph has is dropped.
func (t *Tree) apply(f *finding) (Report, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	report := Report{Read: len(f.readings), Leftovers: f.leftovers, hidden: f.hidden}
	t.graph.blind = maps.Clone(f.blind)
	gone := t.vanished()
	report.Unreadable = unreadable(t.graph.blind)
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
	if report.Added+report.Changed+report.Moved+report.Removed > 0 {
		t.dropBases()
		t.settle(t.graph.All())
	}
	report.Images = t.graph.Len()
	if t.reclaim != nil && len(t.graph.condemned) > 0 {
		t.reclaim.wake()
	}
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
func (t *Tree) vanished() []*Image {
	var gone []*Image
	for _, im := range t.graph.byID {
		switch {
		case im.seen == t.round || unseeable(im.Path, t.graph.blind):
		case im.Nested && t.unmounted(im.Path):
		default:
			gone = append(gone, im)
		}
	}
	return gone
}

// unmounted reports whether the file system that held p is gone from under it:
// what is there now is the root's own. The directory is blind then. Removing
// the directory says that the file system is not coming back.
func (t *Tree) unmounted(p Path) bool {
	for dir := p.Dir(); dir != ""; dir = dir.Dir() {
		e, err := t.cfg.Files.Stat(dir)
		if isGone(err) {
			continue
		}
		if err == nil && e.Device != t.rootDevice {
			return false
		}
		t.graph.blind[dir] = "the file system that was mounted there or below is gone"
		return true
	}
	return false
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
			if r.header.IsImage() != images || t.outdated(r) {
				continue
			}
			if err := t.takeOne(r, lost, report); err != nil {
				return err
			}
		}
	}
	return nil
}

// outdated reports whether the graph knows better than r: the file was read
// again, moved or deleted through the mount after r was taken.
func (t *Tree) outdated(r reading) bool {
	old := t.graph.At(r.entry.Path)
	if old != nil && old.Indexed.After(r.at) {
		return true
	}
	e, err := t.cfg.Files.Stat(r.entry.Path)
	return errors.Is(err, fs.ErrNotExist) || err == nil && e.Identity.Inode != r.entry.Identity.Inode
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
	if old != nil && old.says(im) {
		t.refresh(old, im.Indexed)
		return nil
	}
	switch was := lost[r.entry.Identity.Inode]; {
	case old != nil:
		im.ID, im.FirstSeen = old.ID, old.FirstSeen
		report.Changed++
	case was != nil && was.Identity.SameContent(r.entry.Identity):
		im.ID, im.FirstSeen = was.ID, was.FirstSeen
		delete(lost, r.entry.Identity.Inode) // a second name of the file is a new image
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
	t.touch(t.graph.place(im).Chain)
	return nil
}

// says reports whether nothing but the time of reading differs between two
// readings of one file.
func (im *Image) says(o *Image) bool {
	h, g := &im.Header, &o.Header
	return im.Kind == o.Kind && im.Identity == o.Identity && im.Allocated == o.Allocated &&
		im.Target == o.Target && im.External == o.External && im.Nested == o.Nested && slices.Equal(im.Needs, o.Needs) &&
		h.Format == g.Format && h.VirtualSize == g.VirtualSize && h.Backing == g.Backing && h.BackingFormat == g.BackingFormat &&
		h.ParentUnknown == g.ParentUnknown && slices.Equal(h.Others, g.Others) && h.Trouble == g.Trouble && h.Pinned == g.Pinned
}

// refresh notes that an image was read again. The index is told when that makes
// the image trusted, so that the next start need not read it.
func (t *Tree) refresh(im *Image, at time.Time) {
	e := Entry{Path: im.Path, Identity: im.Identity}
	was := im.trusted(e)
	im.Indexed, im.seen = at, t.round
	if !was && im.trusted(e) {
		t.unsaved.put[im.ID] = true
	}
}

func (r *reading) image() *Image {
	im := &Image{
		Path: r.entry.Path, Kind: Incremental, Identity: r.entry.Identity, Allocated: r.entry.Allocated,
		Nested: r.nested,
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

// dropBases forgets raw files and scratch files that no image names any more: they
// are images only for the sake of those. The caller holds mu.
func (t *Tree) dropBases() {
	for _, im := range t.graph.byID {
		if (im.Kind == RawBase || IsScratch(im.Path.Base())) && len(t.graph.children[im.Path]) == 0 {
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
	f := &finding{blind: map[Path]string{}, toRead: map[Path]bool{p: true}}
	r, err := t.readRegular(p)
	if err == nil {
		f.readings = append(f.readings, r)
		t.readBase(f, r.target)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := t.readRegular(p); err == nil {
			return nil // it came back meanwhile, and the next look finds it
		}
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
