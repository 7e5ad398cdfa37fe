package qemu

import (
	"errors"
	"fmt"
	"io"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/qemu/qcow2"
)

// Inspector reads what a file says about itself. It is chain's Inspector.
type Inspector struct{}

var _ chain.Inspector = Inspector{}

// Inspect reads the header of a file of size bytes. An error means that the
// file could not be read.
func (Inspector) Inspect(f io.ReaderAt, size int64) (chain.Header, error) {
	h, err := qcow2.ReadHeader(f, size)
	switch {
	case errors.Is(err, qcow2.ErrNotQcow2):
		return chain.Header{}, nil
	case h == nil:
		return chain.Header{}, err
	}
	return headerOf(h, err), nil
}

// headerOf says in chain's words what h says. bad is what is wrong with h.
func headerOf(h *qcow2.Header, bad error) chain.Header {
	n := nameOf(h.BackingName)
	out := chain.Header{
		Format:  chain.QCOW2,
		Backing: n.plain,
		Others:  n.others,
	}
	// Where the header is invalid the size may be one that is not an int64.
	if size := int64(h.VirtualSize); size > 0 {
		out.VirtualSize = size
	}
	if h.BackingName != "" {
		out.BackingFormat = chain.Format(h.BackingFormat)
	}
	if h.DataFile != "" {
		data := nameOf(h.DataFile)
		out.Others = append(out.Others, data.others...)
		if data.plain != "" {
			out.Others = append(out.Others, data.plain)
		}
	}
	out.ParentUnknown = h.BackingLost || h.BackingName != "" && n.plain == ""
	out.Trouble = troubleOf(h, n, bad)
	if h.Snapshots > 0 {
		// What a snapshot does not have itself it reads from the backing file.
		// A rebase copies for the active state only, so it would change that.
		out.Pinned = "has internal snapshots"
	}
	return out
}

// troubleOf is why the image cannot take part in a rebase: the first reason of
// all, those that weigh most first. The dirty bit is none: it speaks of
// refcounts only, and qemu repairs them when it opens the image for writing.
func troubleOf(h *qcow2.Header, n name, bad error) string {
	switch {
	case bad != nil:
		return invalid(bad)
	case h.Has(qcow2.Corrupt):
		return "is marked corrupt"
	case h.CryptMethod != 0:
		return "is encrypted"
	case h.Has(qcow2.ExternalData), h.DataFile != "":
		return "has an external data file"
	case n.trouble != "":
		return n.trouble
	case h.BackingName == "":
		return ""
	case h.BackingFormat == "":
		return "names its parent without a format"
	case !handled(chain.Format(h.BackingFormat)):
		return fmt.Sprintf("names its parent with the format %q", h.BackingFormat)
	}
	return ""
}

func handled(f chain.Format) bool { return f == chain.QCOW2 || f == chain.Raw }

func invalid(bad error) string {
	reason := bad.Error()
	if format := (*qcow2.FormatError)(nil); errors.As(bad, &format) {
		reason = format.Reason
	}
	switch {
	case errors.Is(bad, qcow2.ErrTruncated):
		return "is incomplete: " + reason
	case errors.Is(bad, qcow2.ErrUnsupported):
		return "is of a kind that is not supported: " + reason
	}
	return "has a header that is not valid: " + reason
}
