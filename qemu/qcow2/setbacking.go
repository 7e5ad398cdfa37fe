package qcow2

import (
	"errors"
	"fmt"
	"io"
)

// The groups of errors of a header's change, beside those of ReadHeader.
var (
	// ErrNoRoom: the first cluster has no room for the change. Nothing was
	// changed; what is wanted can be had in a copy of the image.
	ErrNoRoom = errors.New("no room in the first cluster")

	// ErrSync: what was written may be on disk or not, and a later sync that
	// succeeds says nothing about it.
	ErrSync = errors.New("sync: nothing is known about what is on disk")
)

// SetBacking makes the image name another parent, or none if name is empty.
// What the image contains is not looked at: the caller has seen to it that it
// reads the same through both.
//
// At any instant, through a power cut and a failure of any write too, the file
// names either the parent it had or the new one, with the format that belongs
// to it, and nothing else in the header reads differently: the name goes to
// unused space of the first cluster (specification, "Header extensions") and is
// made durable before sector 0, which says where it is, is written in one piece.
// Autoclear feature bits that are not known are cleared, as a writer must.
//
// After nil the new parent is durable, and only then may the old one go. A
// header that names the new parent already is written once more as it is, so
// after any error the same call may be made again.
//
// Errors: a group of ReadHeader, ErrNoRoom, or a name or format that no header
// can hold: nothing was written. ErrSync, or the error of a write: the file
// names one of the two, and both must stay.
func SetBacking(f File, name, format string) error {
	return changeHeader(f, HeaderChange{Backing: &Backing{name, format}})
}

// CanSetBacking is nil when SetBacking would do it and nothing would be lost, and
// ErrNoRoom or ErrFallback when the change can be had in a copy only.
//
// More images can be given a name than can absorb (InPlace). Where the same parent
// is named in another way, nothing but the name matters: refcounts may be stale,
// because no cluster is taken and the dirty bit stays; and a snapshot reads from
// the backing file whatever that is called. A feature that is not known is another
// matter: a writer must clear its bit, and with it what the feature was for.
func CanSetBacking(f Source, name, format string) error {
	c := HeaderChange{Backing: &Backing{Name: name, Format: format}}
	h, cluster0, err := readCluster0(f, c)
	if err != nil {
		return err
	}
	if h.Autoclear&^knownAutoclear != 0 {
		return errAutoclear
	}
	_, err = planHeader(cluster0, h, c)
	return err
}

// changeHeader changes a header crash-safely: names the new parent's name in
// slack, syncs, writes sector 0, syncs.
func changeHeader(f File, c HeaderChange) error {
	evictHeader(f)
	h, cluster0, err := readCluster0(f, c)
	if err != nil {
		return err
	}
	if err := c.check(); err != nil {
		return err
	}
	if c.saidBy(h) {
		return rewriteSector(f, cluster0)
	}
	r, err := planHeader(cluster0, h, c)
	if err != nil {
		return err
	}
	if len(r.slack) > 0 {
		if err := writeAt(f, r.slack, r.slackOff); err != nil {
			return fmt.Errorf("write the backing name: %w", err)
		}
		if err := syncFile(f); err != nil {
			return err
		}
	}
	// COMMIT POINT: until this write the header says the old, after it the new.
	if err := writeAt(f, r.sector, 0); err != nil {
		return fmt.Errorf("write the header: %w", err)
	}
	return syncFile(f)
}

// rewriteSector writes what is there: after a sync that failed, the header that
// was read may be one that the kernel remembers and the disk never got.
func rewriteSector(f File, cluster0 []byte) error {
	if err := writeAt(f, cluster0[:sectorSize], 0); err != nil {
		return fmt.Errorf("write the header: %w", err)
	}
	return syncFile(f)
}

// canChange is nil when changeHeader would lay c out, and writes nothing.
func canChange(f Source, c HeaderChange) error {
	h, cluster0, err := readCluster0(f, c)
	if err != nil {
		return err
	}
	_, err = planHeader(cluster0, h, c)
	return err
}

// evictHeader has the header read from the disk. After a sync that failed the
// page cache holds, as if it were durable, what never got there: a second try
// would find the new name, find nothing to do, and have the parent deleted.
func evictHeader(f File) {
	evict(f, 0, 1<<maxClusterBits) // whole pages, whatever their size
}

// readCluster0 reads the header and the cluster it lies in.
func readCluster0(f Source, c HeaderChange) (*Header, []byte, error) {
	size, err := f.Size()
	if err != nil {
		return nil, nil, err
	}
	h, err := ReadHeader(f, size)
	if err != nil {
		return nil, nil, err
	}
	// planHeader does not know the file's size.
	if t := c.RefcountTable; t != nil {
		at := region{"the new refcount table", t.Offset, uint64(t.Clusters) << h.ClusterBits}
		if err := h.checkRegion(at, uint64(size)); err != nil {
			return nil, nil, err
		}
	}
	cluster0 := make([]byte, h.ClusterSize())
	if _, err := io.ReadFull(io.NewSectionReader(f, 0, size), cluster0); err != nil {
		return nil, nil, fmt.Errorf("read the first cluster: %w", err)
	}
	return h, cluster0, nil
}

func syncFile(f File) error {
	if err := f.Sync(); err != nil {
		return fmt.Errorf("%w: %w", ErrSync, err)
	}
	return nil
}
