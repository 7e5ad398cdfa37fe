package chain

import (
	"fmt"
	"strconv"
	"time"
)

// ImageID names an image for good: it survives renames and merges.
// Zero is no image.
type ImageID uint64

func (id ImageID) String() string { return fmt.Sprintf("%08x", uint64(id)) }

// MarshalText makes ids readable, and exact, in JSON.
func (id ImageID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (id *ImageID) UnmarshalText(text []byte) error {
	n, err := strconv.ParseUint(string(text), 16, 64)
	*id = ImageID(n)
	return err
}

// Kind is an image's place in its chain.
type Kind uint8

// The kinds of image.
const (
	Full        Kind = iota + 1 // a qcow2 image without a backing name
	Incremental                 // a qcow2 image with a backing name
	RawBase                     // a raw file that an image names as its backing file
)

var kindNames = map[Kind]string{Full: "full", Incremental: "incremental", RawBase: "raw base"}

func (k Kind) String() string { return kindNames[k] }

// MarshalText writes the kind's name.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads the kind's name.
func (k *Kind) UnmarshalText(text []byte) error {
	if len(text) == 0 { // of a file that is no image
		*k = 0
		return nil
	}
	for kind, name := range kindNames {
		if name == string(text) {
			*k = kind
			return nil
		}
	}
	return fmt.Errorf("image kind %q is unknown", text)
}

// Format is an image's format as qemu names it.
type Format string

// The formats that chainfs handles.
const (
	QCOW2 Format = "qcow2"
	Raw   Format = "raw"
)

// Identity tells whether a file is still the one that was read. Times are in
// nanoseconds since 1970. The device is left out: NFS and loop devices get a
// new number at each mount.
type Identity struct {
	Inode uint64 `json:"inode"`
	Size  int64  `json:"size"`
	MTime int64  `json:"mtime"`
	CTime int64  `json:"ctime"`
}

// SameContent reports whether o is the same file with the same content. The
// change time is left out: a rename or a chmod moves it.
func (i Identity) SameContent(o Identity) bool {
	i.CTime = o.CTime
	return i == o
}

// Header is what a file says about itself, as an Inspector read it.
// The zero Header is a file that is no image.
type Header struct {
	// Format is QCOW2 for every file that starts with the qcow2 magic,
	// whether or not the rest of its header is sound.
	Format      Format `json:"format,omitempty"`
	VirtualSize int64  `json:"virtual_size,omitempty"` // bytes

	// Backing is the backing name as the header has it, where it is a plain
	// path that a rebase could rewrite. BackingFormat is empty when the header
	// names no format.
	Backing       Path   `json:"backing,omitempty"`
	BackingFormat Format `json:"backing_format,omitempty"`

	// ParentUnknown: the image has a backing name that is not in Backing, because
	// it is one of Others, or because it is not in the file, in which case qemu
	// cannot open the image either.
	ParentUnknown bool `json:"parent_unknown,omitempty"`

	// Others are further files the image needs, in names that chainfs does not
	// rewrite: an external data file, a "file:" or "json:" backing name. What
	// they name must not be deleted while the image is there.
	Others []Path `json:"others,omitempty"`

	// Trouble is why the image cannot take part in a rebase ("is encrypted"),
	// empty when it can. A sentence's predicate: the image's name goes before it.
	Trouble string `json:"trouble,omitempty"`

	// Pinned is why the image cannot be rewritten although it reads well and
	// others may stand on it ("has internal snapshots").
	Pinned string `json:"pinned,omitempty"`
}

// IsImage reports whether the file is an image by its own content.
func (h *Header) IsImage() bool { return h.Format != "" }

// Image is one image of the tree, by one of its names: a file with two hard
// links is two images, because its children name it by path.
//
// The first group is what was read from the tree. The second group, Placement,
// follows from the graph; the graph keeps it current.
type Image struct {
	ID        ImageID
	Path      Path
	Kind      Kind
	External  bool   // see Target
	Nested    bool   // it lies on another file system than the tree's root
	seen      uint32 // the round in which a survey last met it; guarded as Tree.round
	Identity  Identity
	Allocated int64 // bytes on disk, as st_blocks counts them
	Header    Header

	// Target is the file in the tree that Header.Backing resolves to, whether
	// or not it exists. External is set when the backing name leads out of the
	// tree; Target is then empty.
	Target Path

	// Needs are further paths in the tree that must stay for this image to be
	// readable and that chainfs cannot re-point: what Header.Others resolve to,
	// and symbolic links on the way to Target.
	Needs []Path

	FirstSeen time.Time
	Indexed   time.Time // when the header was last read

	Placement
}

// Placement is where an image stands in its chain.
type Placement struct {
	Parent   ImageID // zero for a full, and for an incremental whose parent is not in the tree
	Chain    ImageID // the image at the bottom of the chain
	Position int32   // distance from that image, which is 0
}

// IsCondemned reports whether its user has deleted the image: its name says so.
func (im *Image) IsCondemned() bool { return IsCondemned(im.Path.Base()) }

// Format is the format the image is read in.
func (im *Image) Format() Format {
	if im.Kind == RawBase {
		return Raw
	}
	return im.Header.Format
}
