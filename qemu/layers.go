package qemu

import (
	"context"
	"errors"
	"fmt"
	"path"

	"github.com/chainfs/chainfs/chain"
)

// maxLayers is the depth of the deepest chain that is worked on.
const maxLayers = 256

// checkLayers proves that qemu-img will read exactly the layers of the job, in
// the formats of the job, and keeps every qemu from writing to them meanwhile.
// qemu-img opens whatever the headers name, so it is the headers that are
// checked, one after the other, from the child down.
func (w *rebase) checkLayers(context.Context) error {
	if len(w.job.Layers) > maxLayers {
		return chain.Refuse(w.job.Child, "%s has more than %d images below it", w.job.Child, maxLayers)
	}
	above, header := w.job.Child, w.header
	for _, layer := range w.job.Layers {
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
	return w.checkTarget()
}

// openLayer locks a layer and reads its header. A raw file has none, whatever
// its first bytes look like.
func (w *rebase) openLayer(layer chain.Layer) (h chain.Header, err error) {
	f, err := w.files.Open(layer.Path)
	if err != nil {
		return h, fmt.Errorf("open %s: %w", layer.Path, err)
	}
	w.layers = append(w.layers, f)
	locked := LockImage(f)
	if locked != nil && !errors.Is(locked, ErrLocked) {
		return h, fmt.Errorf("lock %s: %w", layer.Path, locked)
	}
	use, err := useOf(f)
	if err != nil {
		return h, fmt.Errorf("look for users of %s: %w", layer.Path, err)
	}
	if locked != nil || use.Writer { // readers may stay
		return h, refuseInUse(layer.Path, use)
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

// checkTarget: the new backing name leads to the new parent, which is one of the
// layers and so was checked and locked.
func (w *rebase) checkTarget() error {
	j := &w.job
	if j.NewName == "" {
		if j.NewParent != "" {
			return fmt.Errorf("no name for the new parent %s", j.NewParent)
		}
		return nil
	}
	for _, layer := range j.Layers {
		if layer.Path != j.NewParent {
			continue
		}
		if layer.Format != j.NewFormat {
			return fmt.Errorf("the new parent %s is %s, the plan has %s", j.NewParent, layer.Format, j.NewFormat)
		}
		return w.checkName(j.Child, j.NewName, j.NewParent)
	}
	return fmt.Errorf("the new parent %s is not below the child", j.NewParent)
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
