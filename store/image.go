package store

import (
	"time"

	"github.com/chainfs/chainfs/chain"
)

// imageRecord is a chain.Image as it is stored.
type imageRecord struct {
	ID        chain.ImageID  `json:"id"`
	Path      chain.Path     `json:"path"`
	Kind      chain.Kind     `json:"kind"`
	Identity  chain.Identity `json:"identity"`
	Allocated int64          `json:"allocated"`
	Header    chain.Header   `json:"header,omitzero"`
	Target    chain.Path     `json:"target,omitempty"`
	External  bool           `json:"external,omitempty"`
	Nested    bool           `json:"nested,omitempty"`
	Needs     []chain.Path   `json:"needs,omitempty"`
	FirstSeen time.Time      `json:"first_seen"`
	Indexed   time.Time      `json:"indexed"`

	Parent   chain.ImageID `json:"parent,omitzero"`
	Chain    chain.ImageID `json:"chain,omitzero"`
	Position int32         `json:"position,omitempty"`
}

// labelled is what is written: the record and the label of its path. The label
// follows from the path and is never read back; it is there for those who look
// into the store with other tools.
type labelled struct {
	imageRecord
	Label label `json:"label"`
}

// label is a chain.Label. Its strings are parts of a path, and stored as such
// because they need not be UTF-8.
type label struct {
	VM     chain.Path `json:"vm,omitempty"`
	Backup chain.Path `json:"backup,omitempty"`
	Disk   chain.Path `json:"disk,omitempty"`
}

func labelledRecord(im chain.Image) labelled {
	l := chain.LabelOf(im.Path)
	return labelled{recordOf(im), label{chain.Path(l.VM), chain.Path(l.Backup), chain.Path(l.Disk)}}
}

func recordOf(im chain.Image) imageRecord {
	return imageRecord{
		ID:        im.ID,
		Path:      im.Path,
		Kind:      im.Kind,
		Identity:  im.Identity,
		Allocated: im.Allocated,
		Header:    im.Header,
		Target:    im.Target,
		External:  im.External,
		Nested:    im.Nested,
		Needs:     im.Needs,
		FirstSeen: im.FirstSeen,
		Indexed:   im.Indexed,
		Parent:    im.Parent,
		Chain:     im.Chain,
		Position:  im.Position,
	}
}

func (r *imageRecord) image() chain.Image {
	return chain.Image{
		ID:        r.ID,
		Path:      r.Path,
		Kind:      r.Kind,
		Identity:  r.Identity,
		Allocated: r.Allocated,
		Header:    r.Header,
		Target:    r.Target,
		External:  r.External,
		Nested:    r.Nested,
		Needs:     r.Needs,
		FirstSeen: r.FirstSeen,
		Indexed:   r.Indexed,
		Placement: chain.Placement{Parent: r.Parent, Chain: r.Chain, Position: r.Position},
	}
}
