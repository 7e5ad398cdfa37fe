package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"

	"github.com/chainfs/chainfs/chain"
)

// maxLayers is the depth of the deepest chain that is worked on.
const maxLayers = 256

// checkLayers proves that qemu-img will read exactly the layers of the job, in
// the formats of the job, below the child and below its new name, and keeps
// every qemu from writing to them meanwhile.
func (w *rebase) checkLayers(context.Context) error {
	j := &w.job
	if len(j.Layers) > maxLayers || len(j.NewLayers) > maxLayers {
		return chain.Refuse(j.Child, "%s has more than %d images below it", j.Child, maxLayers)
	}
	if err := w.checkLine(w.header, j.Layers); err != nil {
		return err
	}
	if (j.NewName == "") != (len(j.NewLayers) == 0) || len(j.NewLayers) > 0 && j.NewLayers[0].Path != j.NewParent {
		return fmt.Errorf("the job's new layers are not those of its new parent %s", j.NewParent)
	}
	return w.checkLine(chain.Header{Backing: j.NewName, BackingFormat: j.NewFormat}, j.NewLayers)
}

// checkLine follows the names from the child's header down. qemu-img opens
// whatever the headers name, so it is the headers that are checked.
func (w *rebase) checkLine(header chain.Header, line []chain.Layer) error {
	above := w.job.Child
	for _, layer := range line {
		if header.Backing == "" {
			return fmt.Errorf("%s names no parent, the plan has %s: %w", above, layer.Path, chain.ErrChanged)
		}
		if err := w.checkName(above, header.Backing, layer.Path); err != nil {
			return err
		}
		if header.BackingFormat != layer.Format {
			return fmt.Errorf("%s names its parent's format %q, the plan has %q: %w", above, header.BackingFormat, layer.Format, chain.ErrChanged)
		}
		next, err := w.openLayer(layer)
		if err != nil {
			return err
		}
		above, header = layer.Path, next
	}
	if header.Backing != "" {
		return fmt.Errorf("%s names a parent that the plan does not have: %w", above, chain.ErrChanged)
	}
	return nil
}

// openLayer locks a layer and reads its header. A raw file has none, whatever
// its first bytes look like.
func (w *rebase) openLayer(layer chain.Layer) (h chain.Header, err error) {
	if h, is := w.read[layer.Path]; is {
		return h, nil // it is below both the old and the new parent
	}
	defer func() {
		if err == nil {
			w.read[layer.Path] = h
		}
	}()
	f, err := w.files.Open(layer.Path)
	if err != nil {
		return h, fmt.Errorf("open %s: %w", layer.Path, err)
	}
	w.layers[layer.Path] = f
	if err := w.lockLayer(layer.Path, f); err != nil {
		return h, err
	}
	if layer.Format == chain.Raw {
		return h, nil
	}
	st, err := stat(f)
	if err != nil {
		return h, err
	}
	h, err = Inspector{}.Inspect(f, st.Size)
	switch {
	case err != nil:
		return h, fmt.Errorf("read the header of %s: %w", layer.Path, err)
	case !h.IsImage():
		return h, chain.Refuse(layer.Path, "%s is not a qcow2 image", layer.Path)
	case h.Trouble != "":
		return h, refuseTrouble(layer.Path, h)
	case h.Backing != layer.Backing:
		return h, fmt.Errorf("%s names %s, the plan has %s: %w", layer.Path, h.Backing, layer.Backing, chain.ErrChanged)
	}
	return h, nil
}

// lockLayer keeps every qemu from writing to a layer. Readers may stay.
func (w *rebase) lockLayer(p chain.Path, f *os.File) error {
	if w.look {
		return nil
	}
	locked := LockImage(f)
	if locked != nil && !errors.Is(locked, ErrLocked) {
		return fmt.Errorf("lock %s: %w", p, locked)
	}
	use, err := useOf(f)
	if err != nil {
		return fmt.Errorf("look for users of %s: %w", p, err)
	}
	if locked != nil || use.Writer {
		return refuseInUse(p, use)
	}
	return nil
}

// checkName: name, in a file in the directory of from, leads to want. An absolute
// name, or a symbolic link, which may be absolute, makes qemu-img start from the
// root of its mount namespace.
func (w *rebase) checkName(from, name, want chain.Path) error {
	r, err := w.files.Resolve(from.Dir(), string(name))
	if err != nil {
		return fmt.Errorf("resolve %s in %s: %w", name, from, err)
	}
	if r.External || r.Path != want {
		return fmt.Errorf("%s names %s, which is not %s: %w", from, name, want, chain.ErrChanged)
	}
	if path.IsAbs(string(name)) || len(r.Links) > 0 {
		w.mounts.absolute = true
	}
	return nil
}
