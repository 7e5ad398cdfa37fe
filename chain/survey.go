package chain

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Report is what a survey found.
type Report struct {
	Images     int       `json:"images"`
	Read       int       `json:"read"` // headers read: of files that are new or changed
	Added      int       `json:"added"`
	Changed    int       `json:"changed"`
	Moved      int       `json:"moved"`
	Removed    int       `json:"removed"`
	Unreadable []Finding `json:"unreadable,omitempty"`
	Leftovers  []Path    `json:"leftovers,omitempty"` // scratch files
	hidden     []Path    // directories with a condemned one's name
}

// Plus is what two surveys, one after the other, found together.
func (r Report) Plus(later Report) Report {
	later.Read += r.Read
	later.Added += r.Added
	later.Changed += r.Changed
	later.Moved += r.Moved
	later.Removed += r.Removed
	return later
}

// A file's times may not move when it is written twice within one tick of its
// file system's clock. A header that was read this soon after its file changed
// is therefore read again by the next survey. Two seconds cover the coarsest
// clock we meet (one second) and some skew between host and NAS.
const racy = 2 * time.Second

// Scan walks the tree, reads the headers of new and changed files and makes
// graph and index equal to what it found.
func (t *Tree) Scan(ctx context.Context) (Report, error) {
	report, err := t.survey(ctx)
	if err != nil {
		return report, err
	}
	if err := t.cfg.Index.SetPlain(t.marks()); err != nil {
		return report, fmt.Errorf("update the index: %w", err)
	}
	return report, nil
}

func (t *Tree) marks() map[Mark]struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	marks := make(map[Mark]struct{}, len(t.plain))
	for m := range t.plain {
		marks[m] = struct{}{}
	}
	return marks
}

// survey is Scan without saving the marks of plain files: they only save work
// at the next start.
func (t *Tree) survey(ctx context.Context) (Report, error) {
	if err := t.surveys.lock(ctx); err != nil {
		return Report{}, err
	}
	defer t.surveys.unlock()
	return t.surveyOnce(ctx)
}

// maxWalks bounds how often the tree is walked again because a file was gone
// when it was to be read: an image that nobody knew may have been renamed between
// walk and reading, and would be missed. As with the rounds of a walk, it would
// have to be renamed each time, just then.
const maxWalks = 4

// finding is what one walk found.
type finding struct {
	lost      bool // a file that was met could not be found again
	toRead    map[Path]bool
	readings  []reading
	blind     map[Path]string
	leftovers []Path
	hidden    []Path // directories with a condemned one's name
}

// reading is one file that was read.
type reading struct {
	entry    Entry
	header   Header
	target   Path
	external bool
	nested   bool
	needs    []Path
	at       time.Time
}

func (t *Tree) surveyOnce(ctx context.Context) (Report, error) {
	started := time.Now()
	f, err := t.walk(ctx)
	for try := 1; err == nil; try++ {
		t.addMisled(f)
		if err = t.readAll(ctx, f); err != nil || !f.lost || try == maxWalks {
			break
		}
		f, err = t.walk(ctx)
	}
	if err != nil {
		return Report{}, err
	}
	if err := t.cfg.Files.Present(); err != nil {
		return Report{}, err
	}
	report, err := t.apply(f)
	if err == nil {
		t.lastWalk.set(time.Since(started))
	}
	return report, err
}

// walk meets every file of the tree and notes those that must be read.
func (t *Tree) walk(ctx context.Context) (*finding, error) {
	f := &finding{blind: map[Path]string{}, toRead: map[Path]bool{}}
	t.mu.Lock()
	t.round++
	t.mu.Unlock()
	defer func() {
		slices.Sort(f.leftovers)
		f.leftovers = slices.Compact(f.leftovers) // a walk may visit a file more than once
	}()
	err := t.cfg.Files.Walk(ctx, Walker{
		Visit:      func(e Entry) error { t.meet(f, e); return nil },
		Unreadable: func(p Path, err error) { f.blind[p] = err.Error() },
	})
	if err != nil {
		return nil, fmt.Errorf("walk the tree: %w", err)
	}
	return f, nil
}

func (t *Tree) meet(f *finding, e Entry) {
	switch {
	case e.Type == Directory && IsCondemned(e.Path.Base()):
		f.hidden = append(f.hidden, e.Path)
	case e.Type != Regular:
	case IsScratch(e.Path.Base()):
		f.leftovers = append(f.leftovers, e.Path)
		// One that an image stands on is a parent like any other, or the images
		// below it would look childless.
		if t.isImage(e.Path) && !t.known(e) {
			f.toRead[e.Path] = true
		}
	case !t.known(e):
		f.toRead[e.Path] = true
	}
}

func (t *Tree) isImage(p Path) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.graph.At(p) != nil
}

// addMisled adds the images whose names may lead elsewhere than they did: those
// whose parent was not met under the very path that the name led to. It may be
// gone, or have become a symbolic link, or be reached through one.
func (t *Tree) addMisled(f *finding) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for target, above := range t.graph.children {
		if parent := t.graph.At(target); parent != nil && parent.seen == t.round {
			continue
		}
		for _, im := range above {
			if im.seen == t.round {
				f.toRead[im.Path] = true
			}
		}
	}
}

// known reports whether what is known about the file at e is still true.
func (t *Tree) known(e Entry) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if im := t.graph.At(e.Path); im != nil {
		im.seen = t.round
		return im.trusted(e) && t.graph.blind[e.Path] == ""
	}
	m := markOf(e)
	if _, is := t.plain[m]; !is {
		return false
	}
	t.plain[m] = t.round
	return true
}

func (im *Image) trusted(e Entry) bool {
	return im.Identity == e.Identity && im.Indexed.UnixNano()-im.Identity.CTime > int64(racy) &&
		len(im.Needs) == 0 && !im.External // what such names lead to may change without them
}

func markOf(e Entry) (m Mark) {
	b := make([]byte, 0, 256)
	for _, n := range []int64{int64(e.Identity.Inode), e.Identity.Size, e.Identity.MTime, e.Identity.CTime} {
		b = binary.LittleEndian.AppendUint64(b, uint64(n))
	}
	sum := sha256.Sum256(append(b, e.Path...))
	copy(m[:], sum[:])
	return m
}

func (t *Tree) readAll(ctx context.Context, f *finding) error {
	for p := range f.toRead {
		if err := ctx.Err(); err != nil {
			return err
		}
		t.readInto(f, p)
	}
	for _, r := range f.readings {
		t.readBase(f, r.target)
	}
	return nil
}

// readInto reads one file. One that cannot be read is noted: it could be a child
// of anything.
func (t *Tree) readInto(f *finding, p Path) {
	r, err := t.read(p)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		f.lost = true
	case err != nil:
		f.blind[p] = reasonOf(err)
	default:
		f.readings = append(f.readings, r)
	}
}

// reasonOf is err without the file's name, which the sentence around it has.
func reasonOf(err error) string {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return err.Error()
}

// readBase reads the file that a newly read image names as its parent, if
// nobody has: a raw file is only known as an image by those that name it.
func (t *Tree) readBase(f *finding, p Path) {
	if p == "" || f.toRead[p] {
		return
	}
	f.toRead[p] = true
	t.mu.RLock()
	known := t.graph.At(p) != nil
	t.mu.RUnlock()
	if known {
		return
	}
	e, err := t.cfg.Files.Stat(p)
	switch {
	case errors.Is(err, fs.ErrNotExist) || err == nil && e.Type != Regular:
	case err != nil:
		f.blind[p] = reasonOf(err)
	default:
		t.readInto(f, p)
	}
}

// read reads what a file says about itself and follows the names in it.
func (t *Tree) read(p Path) (reading, error) {
	file, err := t.cfg.Files.Open(p)
	if err != nil {
		return reading{}, err
	}
	defer file.Close() // only read from
	at := time.Now()
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return reading{}, err
	}
	r := reading{entry: entryOf(p, &st), at: at, nested: st.Dev != t.rootDevice}
	if r.header, err = t.cfg.Inspector.Inspect(file, st.Size); err != nil {
		return r, err
	}
	return r, t.follow(&r)
}

func entryOf(p Path, st *unix.Stat_t) Entry {
	return Entry{
		Path: p, Type: Regular, Allocated: st.Blocks * 512, Device: st.Dev,
		Identity: Identity{Inode: st.Ino, Size: st.Size, MTime: st.Mtim.Nano(), CTime: st.Ctim.Nano()},
	}
}

// follow resolves the names in a header to files of the tree.
func (t *Tree) follow(r *reading) error {
	if r.header.Backing != "" {
		to, err := t.resolve(r.entry.Path, r.header.Backing)
		if err != nil {
			return err
		}
		r.target, r.external, r.needs = to.Path, to.External, to.Links
		if to.External {
			r.target = ""
			r.needs = append(r.needs, t.lookalikes(r.header.Backing)...)
		}
	}
	for _, name := range r.header.Others {
		to, err := t.resolve(r.entry.Path, name)
		if err != nil {
			return err
		}
		r.needs = append(r.needs, to.Links...)
		if to.External {
			r.needs = append(r.needs, t.lookalikes(name)...)
		} else {
			r.needs = append(r.needs, to.Path)
		}
	}
	return nil
}

// lookalikes are the files of the tree that an absolute name which leads out of
// it may mean all the same: another host may have the NAS mounted elsewhere, and
// have written the name as it sees it. A file whose directory and name are the
// name's last two elements is taken for needed, though not for the parent.
func (t *Tree) lookalikes(name Path) []Path {
	if !strings.HasPrefix(string(name), "/") {
		return nil
	}
	parts := strings.Split(path.Clean(string(name)), "/")[1:]
	for i := range max(0, len(parts)-1) {
		p := Path(strings.Join(parts[i:], "/"))
		if e, err := t.cfg.Files.Stat(p); err == nil && e.Type == Regular {
			return []Path{p}
		}
	}
	return nil
}

// resolve leads a name that can lead nowhere out of the tree: qemu could not
// open it either, so no file of the tree is needed for its sake. To qemu a name
// ends at its first NUL.
func (t *Tree) resolve(from Path, name Path) (Resolution, error) {
	cut, _, _ := strings.Cut(string(name), "\x00")
	if cut == "" {
		return Resolution{External: true}, nil
	}
	to, err := t.cfg.Files.Resolve(from.Dir(), cut)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENAMETOOLONG) || errors.Is(err, unix.EINVAL) {
		return Resolution{External: true}, nil
	}
	return to, err
}

func (w *walkTime) set(took time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended, w.took = time.Now(), took
}

// recent reports whether the tree was walked so lately that a walk for each
// deletion of a file that is no image would cost more than a tenth of the time.
func (w *walkTime) recent() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Since(w.ended) < max(time.Second, 10*w.took)
}

// affordable is how often the tree can be walked for what nobody waits for, at a
// tenth of the time.
func (w *walkTime) affordable() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return 10 * w.took
}
