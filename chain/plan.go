package chain

import (
	"fmt"
	"slices"
	"strings"
)

// Act is what a plan does as a whole.
type Act string

// The acts.
const (
	ActDelete   Act = "delete"
	ActRebase   Act = "rebase"
	ActCondemn  Act = "condemn"  // a deletion of which the copying is left for later
	ActReclaim  Act = "reclaim"  // that copying, and the end of what was condemned
	ActUndelete Act = "undelete" // what was condemned gets its name back
)

// Verb is what one step does.
type Verb string

// The verbs of steps.
const (
	StepRebase Verb = "rebase" // the image absorbs what it needs and is re-pointed
	StepUnlink Verb = "unlink" // the image is deleted
	StepRename Verb = "rename" // the image gets another name, and its children follow
)

// Step is one idempotent step of a plan.
type Step struct {
	Verb     Verb     `json:"verb"`
	Image    ImageID  `json:"image,omitzero"` // zero for a file that is no image
	Path     Path     `json:"path"`
	Identity Identity `json:"identity"`        // the file as it was when the plan was made
	Bytes    int64    `json:"bytes"`           // rebase: this much is copied; unlink and rename: the file has this much
	Moves    int64    `json:"moves,omitempty"` // rebase: of Bytes, what this host has to move

	// To is the new name of a rename.
	To Path `json:"to,omitempty"`

	// For a rebase: what it stands on after it.
	NewParent Path   `json:"new_parent,omitempty"`
	NewName   Path   `json:"new_name,omitempty"`
	NewFormat Format `json:"new_format,omitempty"`

	// For a rebase that was measured, how it is done. Without a way Bytes is an
	// upper bound.
	AtMost bool   `json:"at_most,omitempty"` // Bytes is an upper bound all the same
	Way    Way    `json:"way,omitempty"`
	Why    string `json:"why,omitempty"`

	// Merges is the image that takes this one's place when the way is MergeDown.
	// The step is then carried out when that image is unlinked.
	Merges Path `json:"merges,omitempty"`
}

// Refusal is why a path cannot be deleted.
type Refusal struct {
	Path   Path   `json:"path"`
	Reason string `json:"reason"` // one sentence: what stands in the way and what to do
}

// Plan is an immutable list of steps. The zero Plan does nothing.
type Plan struct {
	Act      Act       `json:"act"`
	Paths    []Path    `json:"paths"` // what was asked for
	Steps    []Step    `json:"steps,omitempty"`
	Refusals []Refusal `json:"refusals,omitempty"` // when there are any there are no steps
	Chains   []ImageID `json:"chains,omitempty"`   // chains it touches
	// Idle are images that nobody may be using while the plan runs, besides
	// those its steps name: the other disks of the backup sets it deletes.
	Idle []Path `json:"idle,omitempty"`
}

// Copies is the number of bytes the plan copies, at most where it was not measured.
func (p *Plan) Copies() int64 { return p.sum(StepRebase) }

// Frees is the number of bytes the plan's deletions give back.
func (p *Plan) Frees() int64 { return p.sum(StepUnlink) }

// Exact reports whether Copies is what will be copied and not an upper bound.
func (p *Plan) Exact() bool {
	for _, s := range p.Steps {
		if s.Verb == StepRebase && (s.AtMost || s.Way == "") {
			return false
		}
	}
	return true
}

// Moves is the number of bytes that this host has to move for the plan.
func (p *Plan) Moves() int64 {
	var n int64
	for _, s := range p.Steps {
		switch {
		case s.Verb != StepRebase:
		case s.Way == "": // not measured
			n += s.Bytes
		default:
			n += s.Moves
		}
	}
	return n
}

func (p *Plan) sum(v Verb) int64 {
	var n int64
	for _, s := range p.Steps {
		if s.Verb == v {
			n += s.Bytes
		}
	}
	return n
}

// Rebases reports whether the plan changes any image that stays.
func (p *Plan) Rebases() bool {
	for _, s := range p.Steps {
		if s.Verb == StepRebase {
			return true
		}
	}
	return false
}

// onlyMerges reports whether no rebase is left to be done before the commit.
func (p *Plan) onlyMerges() bool {
	for _, s := range p.Steps {
		if s.Verb == StepRebase && s.Way != MergeDown {
			return false
		}
	}
	return true
}

// dropMerges takes back that images are merged downwards: they are unlinked.
func (p *Plan) dropMerges() {
	p.Steps = slices.DeleteFunc(p.Steps, func(s Step) bool { return s.Way == MergeDown })
}

// keepMerges takes back all but the merges of the images at paths.
func (p *Plan) keepMerges(paths []Path) {
	p.Steps = slices.DeleteFunc(slices.Clone(p.Steps), func(s Step) bool {
		merged := s.Path
		if s.Verb == StepRebase {
			merged = s.Merges
		}
		return !slices.Contains(paths, merged)
	})
}

// mergeOf is the step that replaces a child by the image at path, nil when that
// is simply unlinked.
func (p *Plan) mergeOf(path Path) *Step {
	for i, s := range p.Steps {
		if s.Way == MergeDown && s.Merges == path {
			return &p.Steps[i]
		}
	}
	return nil
}

// unlinks are the steps that delete.
func (p *Plan) unlinks() []Step { return p.with(StepUnlink) }

// renames are the steps that give another name.
func (p *Plan) renames() []Step { return p.with(StepRename) }

func (p *Plan) with(v Verb) []Step {
	var steps []Step
	for _, s := range p.Steps {
		if s.Verb == v {
			steps = append(steps, s)
		}
	}
	return steps
}

// deletes reports whether the plan deletes the file at path.
func (p *Plan) deletes(path Path) bool {
	for _, s := range p.Steps {
		if s.Verb == StepUnlink && s.Path == path {
			return true
		}
	}
	return false
}

func (p *Plan) hasImages() bool {
	for _, s := range p.Steps {
		if s.Image != 0 {
			return true
		}
	}
	return false
}

// Err is the plan's refusals as one error, nil when there are none.
func (p *Plan) Err() error {
	if len(p.Refusals) == 0 {
		return nil
	}
	return &RefusedError{Refusals: p.Refusals}
}

// String prints the plan, one step a line.
func (p *Plan) String() string {
	var b strings.Builder
	for _, r := range p.Refusals {
		fmt.Fprintf(&b, "refuse %s: %s\n", r.Path, r.Reason)
	}
	for i, s := range p.Steps {
		fmt.Fprintf(&b, "%d. %s\n", i+1, s)
	}
	return b.String()
}

func (s Step) String() string {
	switch {
	case s.Verb == StepRename:
		return fmt.Sprintf("rename %s to %s", s.Path, s.To)
	case s.Verb == StepUnlink:
		return fmt.Sprintf("unlink %s (frees %s)", s.Path, Size(s.Bytes))
	case s.Way == MergeDown:
		return fmt.Sprintf("merge %s down into %s, which takes its place (copies %s; %s)", s.Path, s.Merges, Size(s.Bytes), s.Why)
	case s.NewParent == "":
		return fmt.Sprintf("rebase %s onto nothing: it becomes a full (%s)", s.Path, s.effort())
	}
	return fmt.Sprintf("rebase %s onto %s (%s)", s.Path, s.NewParent, s.effort())
}

// effort says how a rebase is done.
func (s Step) effort() string {
	copies := "copies "
	if s.AtMost || s.Way == "" {
		copies += "at most "
	}
	copies += Size(s.Bytes)
	switch {
	case s.Way == "":
		return copies
	case s.Why == "":
		return copies + ", " + string(s.Way)
	}
	return fmt.Sprintf("%s, %s: %s", copies, s.Way, s.Why)
}

// Size prints a number of bytes in binary units: "1.5 GiB".
func Size(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, u := float64(n)/1024, 0
	for f >= 1023.95 && u < len(units)-1 {
		f, u = f/1024, u+1
	}
	return fmt.Sprintf("%.1f %ciB", f, units[u])
}
