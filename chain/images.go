package chain

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ActCheck is the act of CheckImages in its Progress: Done and Total are images.
// No operation in the journal has it.
const ActCheck Act = "check"

// ImageFinding is a Finding about the inside of an image.
type ImageFinding struct {
	Finding
	Repaired bool `json:"repaired,omitempty"` // it was so, and is not any more
}

// ImagesChecked is what CheckImages saw and did.
type ImagesChecked struct {
	Images   int            `json:"images"` // looked into
	Freed    int64          `json:"freed"`  // bytes
	Findings []ImageFinding `json:"findings,omitempty"`
}

// CheckImages looks into the qcow2 images at or below a path for what costs data
// or space inside of them, and changes nothing. Raw bases have no inside.
func CheckImages(ctx context.Context, cfg Config, under Path, report func(Progress)) (ImagesChecked, error) {
	t, err := load(ctx, cfg)
	if err != nil {
		return ImagesChecked{}, err
	}
	if _, _, err := t.readTree(ctx); err != nil {
		return ImagesChecked{}, err
	}
	return t.checkImages(ctx, under, false, report)
}

// CheckImages is CheckImages for a tree that is open. With repair it removes
// leaks: from images that are not corrupt and that nobody uses. That needs no
// journal, because the image reads the same at every instant.
func (t *Tree) CheckImages(ctx context.Context, under Path, repair bool, report func(Progress)) (ImagesChecked, error) {
	if repair && t.cfg.ReadOnly {
		return ImagesChecked{}, errReadOnly
	}
	if _, err := t.survey(ctx); err != nil {
		return ImagesChecked{}, err
	}
	return t.checkImages(ctx, under, repair, report)
}

func (t *Tree) checkImages(ctx context.Context, under Path, repair bool, report func(Progress)) (done ImagesChecked, err error) {
	if t.cfg.ImageChecker == nil {
		return done, fmt.Errorf("look into images: %w", errors.ErrUnsupported)
	}
	if _, err := t.cfg.Files.Stat(under); err != nil {
		return done, fmt.Errorf("%s: %w", under, err)
	}
	images := t.qcow2Within(under)
	for i, im := range images {
		if err := ctx.Err(); err != nil {
			return done, err
		}
		if report != nil {
			report(Progress{Act: ActCheck, Path: im.Path, Done: int64(i), Total: int64(len(images))})
		}
		if err := t.checkImage(ctx, im, repair, &done); err != nil {
			return done, err
		}
	}
	return done, nil
}

// qcow2Within are copies of the qcow2 images at or below p, by path. A file with
// two names is there once.
func (t *Tree) qcow2Within(p Path) (images []Image) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	met := map[Identity]bool{}
	for _, im := range t.graph.Within(p) {
		if im.Kind != RawBase && !met[im.Identity] {
			met[im.Identity] = true
			images = append(images, *im)
		}
	}
	return images
}

// checkImage looks into one image and repairs it when that is asked for. The error
// is one that ends the whole check: that of the tree, or the caller's wish.
func (t *Tree) checkImage(ctx context.Context, im Image, repair bool, done *ImagesChecked) error {
	found, err := t.cfg.ImageChecker.CheckImage(ctx, im.Path)
	if err != nil {
		return t.notChecked(ctx, im, err, done)
	}
	done.Images++
	if found.isFine() {
		return nil
	}
	finding := ImageFinding{Finding: Finding{im.Path, found.String()}}
	if repair && found.canRepair() {
		freed, err := t.repairLeaks(ctx, im.Path, found.Identity)
		switch {
		case interrupted(err):
			return err
		case err != nil:
			finding.Reason = fmt.Sprintf("%s, and that was not repaired: %s", found.what(), err)
		default:
			done.Freed += freed
			finding.Repaired = true
			finding.Reason = fmt.Sprintf("had %s; repaired, %s are free again", found.what()[len("has "):], Size(freed))
			t.cfg.Log.Info("removed leaks", "image", im.Path, "freed", freed)
		}
	}
	done.Findings = append(done.Findings, finding)
	return nil
}

// notChecked notes an image that could not be looked into. What is gone by now is
// no image of the tree any more, and why an image is not supported the check of
// the tree says.
func (t *Tree) notChecked(ctx context.Context, im Image, why error, done *ImagesChecked) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := t.cfg.Files.Present(); err != nil {
		return err
	}
	if !isGone(why) && im.Header.Trouble == "" {
		done.Findings = append(done.Findings, ImageFinding{Finding: Finding{im.Path, "was not checked: " + why.Error()}})
	}
	return nil
}

// repairLeaks removes an image's leaks while no operation works on its chain and
// nobody uses it, and has the index learn what the file is then.
func (t *Tree) repairLeaks(ctx context.Context, p Path, identity Identity) (freed int64, err error) {
	names, chains, err := t.claimFile(ctx, p, identity.Inode)
	if err != nil {
		return 0, err
	}
	defer t.claims.release(chains)
	for _, name := range names {
		if err := t.errIdle(name); err != nil {
			return 0, err
		}
	}
	freed, err = t.cfg.ImageChecker.RepairLeaks(ctx, p, identity)
	for _, name := range names {
		err = errors.Join(err, t.Changed(name)) // after an error too: something may be written
	}
	if err != nil {
		return 0, err
	}
	// The repair is not taken at its word.
	left, err := t.cfg.ImageChecker.CheckImage(ctx, p)
	if err == nil && !left.isFine() {
		err = fmt.Errorf("afterwards it %s", left.what())
	}
	return freed, err
}

// claimFile claims the chains of all names of a file.
func (t *Tree) claimFile(ctx context.Context, p Path, inode uint64) ([]Path, []ImageID, error) {
	for range maxReplans {
		_, claimed := t.namesAndChains(inode)
		if err := t.claims.acquire(ctx, claimant{}, claimed); err != nil {
			return nil, nil, err
		}
		names, chains := t.namesAndChains(inode)
		if slices.Contains(names, p) && subset(chains, claimed) {
			return names, claimed, nil
		}
		t.claims.release(claimed)
		if !slices.Contains(names, p) {
			break
		}
	}
	return nil, nil, fmt.Errorf("%s: %w", p, ErrChanged)
}

func (t *Tree) namesAndChains(inode uint64) (names []Path, chains []ImageID) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	names = t.graph.namesOf(inode)
	for _, name := range names {
		if c := t.graph.At(name).Chain; !slices.Contains(chains, c) {
			chains = append(chains, c)
		}
	}
	return names, chains
}

func (r *ImageReport) isFine() bool { return r.Corruptions == 0 && r.LeakedClusters == 0 }

// canRepair reports whether RepairLeaks would do something about it.
func (r *ImageReport) canRepair() bool {
	return !r.isFine() && r.Corruptions == r.StaleFlags && r.Unrepairable == ""
}

// what is wrong, a predicate that begins with "has".
func (r *ImageReport) what() string {
	var all []string
	if r.LeakedClusters > 0 {
		all = append(all, fmt.Sprintf("%s (%s)", plural(r.LeakedClusters, "leaked cluster"), Size(r.LeakedBytes)))
	}
	if r.StaleFlags > 0 {
		all = append(all, plural(int64(r.StaleFlags), "missing flag")+" of clusters that are not shared")
	}
	if n := r.Corruptions - r.StaleFlags; n > 0 {
		all = append(all, plural(int64(n), "corruption"))
	}
	return "has " + strings.Join(all, " and ")
}

// String is what is wrong and what to do about it.
func (r *ImageReport) String() string {
	switch {
	case r.canRepair():
		return r.what() + "; run chainfs check --images --repair-leaks"
	case r.Corruptions == r.StaleFlags:
		return r.what() + ", which stay because it " + r.Unrepairable
	case r.Dirty:
		return "was not closed, and its refcounts are stale: " + r.Example + r.more() + "; run qemu-img check -r all on a copy of it"
	}
	return "is corrupt: " + r.Example + r.more() + "; restore it from another copy, or run qemu-img check -r all on a copy of it"
}

func (r *ImageReport) more() string {
	if r.Corruptions < 2 {
		return ""
	}
	return fmt.Sprintf(" (and %d more)", r.Corruptions-1)
}

func plural(n int64, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
