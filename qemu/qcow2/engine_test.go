package qcow2

import (
	"context"
	"errors"
	"io"
)

// What the random, power cut and fault tests call of the engine is in this file.

// engineOpen is a chain as a guest reads it, the top layer first.
func engineOpen(layers ...testLayer) (io.ReaderAt, error) {
	images, err := engineImages(layers)
	if err != nil {
		return nil, err
	}
	return NewChain(images...), nil
}

func engineImages(layers []testLayer) ([]*Image, error) {
	var all []*Image
	for _, l := range layers {
		open := Open
		if l.raw {
			open = OpenRaw
		}
		im, err := open(l.src)
		if err != nil {
			return nil, err
		}
		all = append(all, im)
	}
	return all, nil
}

func engineAbsorb(j testJob) error {
	away, err := engineImages(j.away)
	if err != nil {
		return err
	}
	below, err := engineImages(j.below)
	if err != nil {
		return err
	}
	_, err = Absorb(context.Background(), Job{
		Child: j.child, Away: away, Below: below,
		Name: j.name, Format: j.format,
		Moving: Moving{Verify: j.verify, batch: j.batch},
	})
	return err
}

// smallBatch is a bound of some clusters, so that small images take many batches.
func smallBatch(f Source) int64 {
	size, err := f.Size()
	if err != nil {
		return 0
	}
	h, err := ReadHeader(f, size)
	if err != nil {
		return 0
	}
	return 3 * h.ClusterSize()
}

// engineCheck gives sentences about corruption, and the number of leaked clusters.
func engineCheck(src Source) (corruptions []string, leaks int64, err error) {
	f, err := Check(context.Background(), src)
	if err != nil {
		return nil, 0, err
	}
	return f.Corruptions, f.LeakedClusters, nil
}

func engineReclaim(f File, oldEnd int64) error { return Reclaim(context.Background(), f, oldEnd) }

// fellBack: nothing was changed, and only a copy can be.
func fellBack(err error) bool { return errors.Is(err, ErrFallback) || errors.Is(err, ErrNoRoom) }

func lostSync(err error) bool { return errors.Is(err, ErrSync) }
