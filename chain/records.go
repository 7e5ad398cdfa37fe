package chain

import (
	"fmt"
	"sync"
	"time"
)

// records are what the journal knows of condemned files and their names do not say.
// A lost store loses them, and with them nothing that a chain hangs on.
type records struct {
	mu    sync.Mutex
	known map[record]recorded // guarded by mu
	// givenUp are files that --keep does not hold back any more; guarded by mu
	givenUp map[record]bool
}

// record names a condemned file for good, whatever becomes of its directory.
type record struct {
	hidden string
	inode  uint64
}

// recorded is what is known of a condemned file.
type recorded struct {
	at    time.Time // when it was deleted
	until time.Time // before which nothing is to be absorbed, as was said then
	name  string    // all of the name that it had, empty where that is not known
}

// recall reads the journal.
func (r *records) recall(j Journal) error {
	ops, err := j.Operations(false)
	if err != nil {
		return fmt.Errorf("read the journal: %w", err)
	}
	for _, op := range ops {
		if op.Act == ActCondemn && op.State != Undone {
			r.note(op)
		}
	}
	return nil
}

// note remembers what an operation condemned.
func (r *records) note(op Operation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known == nil {
		r.known = map[record]recorded{}
	}
	for _, s := range op.Plan.renames() {
		name := s.Path.Base()
		if !IsCondemned(name) { // else it was moved under its hidden name, and is known by it
			r.known[record{s.To.Base(), s.Identity.Inode}] = recorded{op.Started, op.KeptUntil, name}
		}
	}
}

// of is what is known of a condemned image: without the journal what the file itself
// tells. Its change time moved when it got its name.
func (r *records) of(im *Image) recorded {
	r.mu.Lock()
	defer r.mu.Unlock()
	if rec, is := r.known[record{im.Path.Base(), im.Identity.Inode}]; is {
		return rec
	}
	_, base, whole, _ := ParseCondemned(im.Path.Base())
	if !whole {
		base = ""
	}
	return recorded{at: time.Unix(0, im.Identity.CTime), name: base}
}

// giveUp has --keep not hold a condemned image back any more. It is forgotten at
// the next mount, by which the image is absorbed as a rule.
func (r *records) giveUp(im *Image) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.givenUp == nil {
		r.givenUp = map[record]bool{}
	}
	r.givenUp[record{im.Path.Base(), im.Identity.Inode}] = true
}

func (r *records) isGivenUp(im *Image) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.givenUp[record{im.Path.Base(), im.Identity.Inode}]
}

// prune forgets what is known of files that are gone.
func (r *records) prune(condemned map[*Image]bool) {
	const some = 1000 // so that it is not done each time
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.known) < 2*len(condemned)+some {
		return
	}
	kept := make(map[record]recorded, len(condemned))
	for im := range condemned {
		key := record{im.Path.Base(), im.Identity.Inode}
		if rec, is := r.known[key]; is {
			kept[key] = rec
		}
	}
	r.known = kept
}
