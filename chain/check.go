package chain

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// Finding is one thing that is not as it should be.
type Finding struct {
	Path   Path   `json:"path"`
	Reason string `json:"reason"` // one sentence
}

func (f Finding) String() string { return fmt.Sprintf("%s: %s", f.Path, f.Reason) }

// Check looks for what should not be, and changes nothing:
//
//   - an image whose header is not valid, or whose parent is missing, outside
//     the tree or in a loop
//   - an image that the index does not have as the tree has it, or has in
//     another place of its chain
//   - scratch files, and operations in the journal, that no running operation owns
//   - what could not be read
func Check(ctx context.Context, cfg Config) ([]Finding, error) {
	t, err := load(ctx, cfg)
	if err != nil {
		return nil, err
	}
	stored := map[Path]Image{}
	for _, im := range t.graph.byID {
		stored[im.Path] = *im
	}
	fresh, report, err := t.readTree(ctx)
	if err != nil {
		return nil, err
	}
	findings := compareIndex(stored, fresh)
	for _, im := range fresh.All() {
		if problem := fresh.Problem(im); problem != "" {
			findings = append(findings, Finding{im.Path, problem})
		}
	}
	findings = append(findings, unreadable(report.blind)...)
	for _, p := range report.leftovers {
		findings = append(findings, Finding{p, "is a scratch file that no running operation owns"})
	}
	ops, err := cfg.Journal.Operations(true)
	if err != nil {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	for _, op := range ops {
		findings = append(findings, Finding{Shown(op.Plan.Paths[0]), fmt.Sprintf("operation %s was interrupted and waits for the next mount", op.ID)})
	}
	for _, c := range fresh.halfway() {
		findings = append(findings, Finding{c.to, fmt.Sprintf("is there by its hidden name %s, too: a deletion was cut off, which the next mount takes back", c.from)})
	}
	return sortFindings(findings), nil
}

// Check is Check for a tree that is open: what running operations own is not found.
func (t *Tree) Check(ctx context.Context) ([]Finding, error) {
	cfg := t.cfg
	findings, err := Check(ctx, cfg)
	if err != nil {
		return nil, err
	}
	busy := map[Path]bool{}
	for _, run := range t.Running() {
		for _, p := range run.Paths {
			busy[p] = true
		}
		busy[run.Path] = true
	}
	for _, p := range t.Pending() { // operations that the reclaimer goes on with
		for _, path := range p.Paths {
			busy[path] = busy[path] || p.State == Committed
		}
	}
	return slices.DeleteFunc(findings, func(f Finding) bool {
		return busy[f.Path] || len(busy) > 0 && IsHidden(f.Path.Base())
	}), nil
}

// readTree reads every header of the tree into a graph of its own, whatever
// the index says.
func (t *Tree) readTree(ctx context.Context) (*Graph, *finding, error) {
	t.graph, t.plain = NewGraph(), map[Mark]uint32{}
	f, err := t.walk(ctx)
	if err != nil {
		return nil, nil, err
	}
	if err := t.readAll(ctx, f); err != nil {
		return nil, nil, err
	}
	for _, images := range []bool{true, false} {
		for _, r := range f.readings {
			if r.header.IsImage() == images && (images || len(t.graph.children[r.entry.Path]) > 0) {
				im := r.image()
				im.ID = ImageID(t.graph.Len() + 1)
				t.graph.put(im)
			}
		}
	}
	t.graph.settle(t.graph.All())
	t.graph.blind = f.blind
	return t.graph, f, nil
}

func compareIndex(stored map[Path]Image, fresh *Graph) []Finding {
	var findings []Finding
	ids := map[ImageID]Path{}
	for p, im := range stored {
		ids[im.ID] = p
		if fresh.At(p) == nil {
			findings = append(findings, Finding{p, "is in the index but not in the tree; run chainfs scan"})
		}
	}
	pathOf := func(id ImageID) Path {
		if im := fresh.ByID(id); im != nil {
			return im.Path
		}
		return ""
	}
	for _, im := range fresh.All() {
		was, is := stored[im.Path]
		switch {
		case !is:
			findings = append(findings, Finding{im.Path, "is in the tree but not in the index; run chainfs scan"})
		case was.Identity != im.Identity || was.Kind != im.Kind || was.Target != im.Target || was.Header.Backing != im.Header.Backing:
			findings = append(findings, Finding{im.Path, "is not what the index says; run chainfs scan"})
		case was.Position != im.Position || ids[was.Parent] != pathOf(im.Parent) || ids[was.Chain] != pathOf(im.Chain):
			findings = append(findings, Finding{im.Path, "is in another place of its chain than the index says"})
		}
	}
	return findings
}

func sortFindings(fs []Finding) []Finding {
	slices.SortFunc(fs, func(a, b Finding) int {
		if c := strings.Compare(string(a.Path), string(b.Path)); c != 0 {
			return c
		}
		return strings.Compare(a.Reason, b.Reason)
	})
	return fs
}
