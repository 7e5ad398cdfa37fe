package source

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
)

// treeFile holds the tree's id.
const treeFile = chain.Path(chain.ControlName + "/tree.json")

const treeVersion = 1

// maxTreeFile bounds what is read of treeFile, in bytes.
const maxTreeFile = 64 << 10

// treeRecord is the content of treeFile.
type treeRecord struct {
	Version int       `json:"version"`
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
}

// loadID reads the tree's id, and creates it where it may.
func (t *Tree) loadID() error {
	id, err := t.readID()
	if errors.Is(err, os.ErrNotExist) {
		if t.readOnly {
			t.id, t.derived = deriveID(t.dir), true
			return nil
		}
		id, err = t.createID()
	}
	t.id = id
	return err
}

// deriveID is the id of a tree that must not be written to and has none.
func deriveID(dir string) string {
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	sum := sha256.Sum256([]byte("chainfs tree at " + dir))
	return hex.EncodeToString(sum[:16])
}

// readID never takes a damaged file for a missing one: a tree that got a new
// id would lose its store and with it the record of what was being deleted.
func (t *Tree) readID() (string, error) {
	f, err := t.Open(treeFile)
	if err != nil {
		return "", err
	}
	defer f.Close() // opened for reading: nothing can be lost
	data, err := io.ReadAll(io.LimitReader(f, maxTreeFile+1))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", treeFile, err)
	}
	rec, err := parseTree(data)
	if err != nil {
		return "", fmt.Errorf("%s is damaged (%w): restore it, or remove it to give the tree a new id", treeFile, err)
	}
	if rec.Version > treeVersion {
		return "", fmt.Errorf("%s has version %d; this chainfs knows version %d", treeFile, rec.Version, treeVersion)
	}
	return rec.ID, nil
}

func parseTree(data []byte) (treeRecord, error) {
	var rec treeRecord
	if len(data) > maxTreeFile {
		return rec, errors.New("it is too long")
	}
	if err := json.Unmarshal(data, &rec); err != nil {
		return rec, err
	}
	if rec.Version < 1 {
		return rec, errors.New("it has no version")
	}
	if raw, err := hex.DecodeString(rec.ID); rec.Version == treeVersion && (err != nil || len(raw) != 16) {
		return rec, fmt.Errorf("its id %q is not 32 hexadecimal digits", rec.ID)
	}
	return rec, nil
}

// createID gives the tree an id. When two hosts do so at once the one whose
// link comes first wins, and both end with its id.
func (t *Tree) createID() (string, error) {
	dir, err := t.controlDir()
	if err != nil {
		return "", err
	}
	defer unix.Close(dir)
	tmp, err := t.writeTree(dir)
	if err != nil {
		return "", err
	}
	// A copy that stays behind is a few bytes that nothing reads.
	defer unix.Unlinkat(dir, tmp, 0)
	// COMMIT POINT: from here on the tree has its id.
	if err := publish(dir, tmp, treeFile.Base()); err != nil && err != unix.EEXIST {
		return "", fmt.Errorf("create %s: %w", treeFile, err)
	}
	if err := t.SyncDir(treeFile.Dir()); err != nil {
		return "", err
	}
	if err := t.SyncDir(""); err != nil {
		return "", err
	}
	return t.readID()
}

// controlDir makes chainfs's directory where it is missing and opens it. Other
// users may read the id, so that they can mount the tree read-only.
func (t *Tree) controlDir() (int, error) {
	err := retry(func() error { return unix.Mkdirat(t.root, chain.ControlName, 0o755) })
	if err != nil && err != unix.EEXIST {
		return -1, pathError("mkdir", chain.ControlName, err)
	}
	fd, err := t.OpenPath(chain.ControlName, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return -1, pathError("open directory", chain.ControlName, err)
	}
	return fd, nil
}

// writeTree writes a new id to a file of another name, durably.
func (t *Tree) writeTree(dir int) (name string, err error) {
	var raw [24]byte
	rand.Read(raw[:]) // does not fail
	rec := treeRecord{treeVersion, hex.EncodeToString(raw[:16]), time.Now().UTC().Truncate(time.Second)}
	data, err := json.Marshal(rec)
	if err != nil {
		return "", err
	}
	name = "tree.json." + hex.EncodeToString(raw[16:])
	fd, err := OpenBeneath(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return "", pathError("create", treeFile, err)
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = f.Write(append(data, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		unix.Unlinkat(dir, name, 0) // what is reported is why it was written in vain
		return "", pathError("write", treeFile, err)
	}
	return name, nil
}

// publish gives the file tmp the name name unless that is taken: by a link, and
// by a rename where the file system has no links.
func publish(dir int, tmp, name string) error {
	err := linkat(dir, tmp, dir, name)
	if errors.Is(err, chain.ErrNoLinks) {
		return retry(func() error {
			return unix.Renameat2(dir, tmp, dir, name, unix.RENAME_NOREPLACE)
		})
	}
	return err
}
