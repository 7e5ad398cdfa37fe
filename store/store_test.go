package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/e2e/cutfs"
)

var quiet = Options{TreeID: "00112233445566778899aabbccddeeff", Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func openStore(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(dir, quiet)
	must(t, err)
	return s
}

// closeStore ends every test of a store with its checker.
func closeStore(t testing.TB, s *Store) {
	t.Helper()
	findings, err := s.Check()
	must(t, err)
	for _, f := range findings {
		t.Error("check:", f)
	}
	must(t, s.Close())
}

func memory(t testing.TB) *Store {
	t.Helper()
	s, err := OpenInMemory(quiet)
	must(t, err)
	t.Cleanup(func() { closeStore(t, s) })
	return s
}

func images(t testing.TB, s *Store) map[chain.ImageID]chain.Image {
	t.Helper()
	got := map[chain.ImageID]chain.Image{}
	must(t, s.Images(context.Background(), func(im chain.Image) error { got[im.ID] = im; return nil }))
	return got
}

func newImage(t testing.TB, s *Store, p chain.Path) chain.Image {
	t.Helper()
	id, err := s.NewImageID()
	must(t, err)
	now := time.Unix(1700000000, 123456789).UTC()
	return chain.Image{
		ID: id, Path: p, Kind: chain.Incremental,
		Identity:  chain.Identity{Inode: 1 << 40, Size: 123456789, MTime: now.UnixNano(), CTime: now.UnixNano()},
		Allocated: 123456512,
		Header:    chain.Header{Format: chain.QCOW2, VirtualSize: 50 << 30, Backing: "../2025.01.01.00.00.00/" + chain.Path(p.Base()), BackingFormat: chain.QCOW2},
		Target:    p.Dir().Dir().Join("2025.01.01.00.00.00/" + p.Base()),
		FirstSeen: now, Indexed: now,
		Placement: chain.Placement{Parent: id - 1, Chain: 1, Position: int32(id)},
	}
}

func newOp(t testing.TB, s *Store, steps int) chain.Operation {
	t.Helper()
	id, err := s.NewOpID()
	must(t, err)
	op := chain.Operation{ID: id, Act: chain.ActDelete, State: chain.Prepared, Started: time.Unix(1700000000, 0).UTC()}
	op.Plan = chain.Plan{Act: chain.ActDelete, Paths: []chain.Path{"vm/b\xff"}}
	for i := range steps {
		op.Plan.Steps = append(op.Plan.Steps, chain.Step{Verb: chain.StepUnlink, Path: chain.Path(fmt.Sprintf("vm/backup-%d/root.qcow2", i)), Image: chain.ImageID(i), Identity: chain.Identity{Inode: uint64(i)}})
	}
	return op
}

func end(op chain.Operation) chain.Operation {
	op.State, op.Ended = chain.Done, op.Started.Add(time.Second)
	return op
}

// fill sets every field that it finds to something that is not its zero value.
func fill(v reflect.Value, n *int64) {
	*n++
	switch v.Interface().(type) {
	case time.Time:
		v.Set(reflect.ValueOf(time.Unix(1700000000+*n, *n).UTC()))
		return
	case chain.Kind:
		v.Set(reflect.ValueOf(chain.RawBase))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() { // the others are not meant to be stored
				fill(v.Field(i), n)
			}
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			fill(v.Index(i), n)
		}
	case reflect.String:
		v.SetString(fmt.Sprintf("s%d\xff/\x01", *n))
		if v.Type() != reflect.TypeFor[chain.Path]() {
			v.SetString(fmt.Sprintf("s%d", *n))
		}
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Uint64:
		v.SetUint(uint64(*n) + 1<<63)
	case reflect.Int64:
		v.SetInt(*n + 1<<62)
	case reflect.Int32:
		v.SetInt(*n + 1<<30)
	default:
		panic("a field of a new kind: " + v.Type().String())
	}
}

// A field that is added to chain.Image or chain.Operation and forgotten here
// fails this test.
func TestEveryFieldIsStored(t *testing.T) {
	s, err := OpenInMemory(quiet)
	must(t, err)
	defer s.Close()
	var im chain.Image
	var n int64
	fill(reflect.ValueOf(&im).Elem(), &n)
	must(t, s.Update([]chain.Image{im}, nil))
	if got := images(t, s)[im.ID]; !reflect.DeepEqual(got, im) {
		t.Errorf("image\n got %+v\nwant %+v", got, im)
	}
	var op chain.Operation
	fill(reflect.ValueOf(&op).Elem(), &n)
	must(t, s.Record(op))
	if got, err := s.Operations(false); err != nil || len(got) != 1 || !reflect.DeepEqual(got[0], op) {
		t.Errorf("operation\n got %+v, %v\nwant %+v", got, err, op)
	}
}

func TestLabelIsStored(t *testing.T) {
	s := memory(t)
	im := newImage(t, s, "vm/2025\xff/root.v1.qcow2")
	must(t, s.Update([]chain.Image{im}, nil))
	value, err := s.get(imageKey(im.ID))
	must(t, err)
	for _, want := range []string{`"label":{"vm":"vm","backup":{"bytes":`, `"disk":"root"`, `"path":{"bytes":`} {
		if !strings.Contains(string(value), want) {
			t.Errorf("record %s lacks %s", value, want)
		}
	}
}

func TestUpdateSurvivesReopening(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	a, b, c := newImage(t, s, "a"), newImage(t, s, "b"), newImage(t, s, "c")
	must(t, s.Update([]chain.Image{a, b}, nil))
	b.Path = "b2"
	must(t, s.Update([]chain.Image{b, c}, []chain.ImageID{a.ID, b.ID}))
	closeStore(t, s)
	s = openStore(t, dir)
	want := map[chain.ImageID]chain.Image{b.ID: b, c.ID: c}
	if got := images(t, s); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm()&0o077 != 0 && filepath.Base(dir) == "store" {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	closeStore(t, s)
}

func TestDirectoryIsPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	closeStore(t, openStore(t, dir))
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("got mode %v, %v, want 0700", st.Mode(), err)
	}
}

func TestWriteLargerThanATransaction(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	var ims []chain.Image
	for i := range 20000 {
		ims = append(ims, newImage(t, s, chain.Path(fmt.Sprintf("vm/%d/root.qcow2", i))))
	}
	must(t, s.Update(ims[:15000], nil))
	var remove []chain.ImageID
	for _, im := range ims[:15000] {
		remove = append(remove, im.ID)
	}
	op := newOp(t, s, 20000)
	must(t, s.Record(op))
	must(t, s.Finish(end(op), ims[15000:], remove))
	closeStore(t, s)
	s = openStore(t, dir)
	if got := images(t, s); len(got) != 5000 {
		t.Errorf("got %d images, want 5000", len(got))
	}
	if got, err := s.Operations(false); err != nil || len(got) != 1 || !reflect.DeepEqual(got[0], end(op)) {
		t.Errorf("the operation did not come back: %v", err)
	}
	closeStore(t, s)
	vlogs, err := filepath.Glob(dir + "/*.vlog")
	must(t, err)
	for _, f := range vlogs {
		if size := fileSize(t, f); size > 20 { // its header
			t.Errorf("%s has %d bytes: values went to the value log, which nobody collects", f, size)
		}
	}
}

func TestIDsAreNeverReused(t *testing.T) {
	dir := t.TempDir()
	lastImage, lastOp := chain.ImageID(0), chain.OpID(0)
	for round := range 4 {
		s := openStore(t, dir)
		for range 1500 {
			id, err := s.NewImageID()
			must(t, err)
			if id <= lastImage {
				t.Fatalf("image id %s after %s", id, lastImage)
			}
			if round < 2 && id != lastImage+1 {
				t.Fatalf("image id %s after %s: ids were lost without a crash", id, lastImage)
			}
			lastImage = id
		}
		for range 20 {
			id, err := s.NewOpID()
			must(t, err)
			if id <= lastOp {
				t.Fatalf("operation id %s after %s", id, lastOp)
			}
			lastOp = id
		}
		if round == 1 {
			must(t, s.db.Close()) // as in a crash: leases are not returned
			continue
		}
		closeStore(t, s)
	}
}

func TestJournal(t *testing.T) {
	s := memory(t)
	a, b, c := newOp(t, s, 1), newOp(t, s, 2), newOp(t, s, 0)
	must(t, s.Record(b))
	must(t, s.Record(a))
	b.State = chain.Committed
	must(t, s.Record(b))
	must(t, s.Finish(end(a), nil, nil))
	must(t, s.Finish(end(c), nil, nil)) // never recorded before
	b.Plan.Steps = b.Plan.Steps[:1]
	must(t, s.Record(b))
	for running, want := range map[bool][]chain.Operation{true: {b}, false: {end(a), b, end(c)}} {
		if got, err := s.Operations(running); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("running %v: got %v, %v\nwant %v", running, got, err, want)
		}
	}
}

func TestHistoryIsPruned(t *testing.T) {
	s := memory(t)
	running := newOp(t, s, 1)
	must(t, s.Record(running))
	for range maxHistory + 50 {
		must(t, s.Finish(end(newOp(t, s, 1)), nil, nil))
	}
	ops, err := s.Operations(false)
	must(t, err)
	if len(ops) != maxHistory || ops[0].ID != running.ID || ops[1].ID != 52+running.ID {
		t.Errorf("got %d operations, %s and %s first", len(ops), ops[0].ID, ops[1].ID)
	}
	must(t, s.Finish(end(running), nil, nil))
	must(t, s.Record(newOp(t, s, 1)))
	ops, err = s.Operations(false)
	must(t, err)
	if len(ops) != maxHistory || ops[0].ID == running.ID {
		t.Errorf("got %d operations, %s first", len(ops), ops[0].ID)
	}
}

func TestPlain(t *testing.T) {
	s := memory(t)
	for _, n := range []int{0, 1, 4096, 4097, 200_000, 5000, 0} {
		want := map[chain.Mark]struct{}{}
		for i := range n {
			want[chain.Mark{byte(i), byte(i >> 8), byte(i >> 16), 7}] = struct{}{}
		}
		must(t, s.SetPlain(want))
		if got, err := s.Plain(); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%d marks: got %d, %v", n, len(got), err)
		}
	}
}

func TestMountpoint(t *testing.T) {
	s := memory(t)
	for _, want := range []string{"", "/mnt/a", "/mnt/b"} {
		if want != "" {
			must(t, s.SetMountpoint(want))
		}
		if got, err := s.Mountpoint(); err != nil || got != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
}

func TestStoreOfAnotherIsRefused(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	if _, err := Open(dir, quiet); !errors.Is(err, ErrInUse) {
		t.Errorf("second open: got %v, want ErrInUse", err)
	}
	closeStore(t, s)

	other := quiet
	other.TreeID = strings.Repeat("f", 32)
	if _, err := Open(dir, other); err == nil || !strings.Contains(err.Error(), quiet.TreeID) || !strings.Contains(err.Error(), other.TreeID) {
		t.Errorf("another tree: got %v, want an error with both ids", err)
	}
	any := quiet
	any.TreeID = ""
	s, err := Open(dir, any)
	must(t, err)
	if id, err := s.TreeID(); err != nil || id != quiet.TreeID {
		t.Errorf("got tree %q, %v", id, err)
	}
	must(t, s.commit([]change{{schemaKey, []byte("2")}}))
	must(t, s.Close())
	var damage *DamagedError
	if _, err := Open(dir, quiet); err == nil || errors.As(err, &damage) || !strings.Contains(err.Error(), "newer") {
		t.Errorf("newer schema: got %v", err)
	}
	if _, err := Open(t.TempDir(), any); err == nil {
		t.Error("a store without a tree was created")
	}
}

func TestCheckFinds(t *testing.T) {
	s, err := OpenInMemory(quiet)
	must(t, err)
	defer s.Close()
	a, b := newImage(t, s, "same"), newImage(t, s, "same")
	far := newImage(t, s, "far")
	far.ID = 1 << 40
	must(t, s.Update([]chain.Image{a, b, far}, nil))
	op := newOp(t, s, 3)
	must(t, s.Record(op))
	must(t, s.Record(chain.Operation{ID: 1 << 40}))
	rec, _, err := s.head(op.ID)
	must(t, err)
	must(t, s.commit([]change{
		{imageKey(77), []byte("{")},
		{imageKey(78), []byte(`{"id":"0000004f","kind":"full"}`)},
		{opKey(99), []byte("{}")},
		{pieceKey(planKey(98, planSum{}), 0), []byte("x")},
		{key: pieceKey(planKey(op.ID, rec.Sum), 0)},
		{pieceKey(plainPrefix, 0), []byte("odd")},
		{"z", []byte("?")},
	}))
	got, err := s.Check()
	must(t, err)
	all := strings.Join(got, "\n")
	for _, want := range []string{
		"images 00000001 and 00000002 have the same path same", "image 10000000000 has an id that was never",
		"image 0000004d: ", "image 0000004f is stored as 0000004e", "operation 0 is stored as 99",
		"operation 1099511627776 has an id that was never", "the plan of operation 1 is not there in full",
		"is a piece of a plan that no operation names", "3 bytes of marks", `key "z" is unknown`,
	} {
		if !strings.Contains(all, want) {
			t.Errorf("check did not find %q", want)
		}
	}
	if len(got) != 10 {
		t.Errorf("got %d findings, want 10:\n%s", len(got), all)
	}
}

func TestFullDisk(t *testing.T) {
	disk := cutfs.New(t, 160)
	dir := filepath.Join(disk.Dir, "store")
	s := openStore(t, dir)
	im := newImage(t, s, "a")
	must(t, s.Update([]chain.Image{im}, nil))

	filler, err := os.Create(filepath.Join(disk.Dir, "filler"))
	must(t, err)
	must(t, unix.Fallocate(int(filler.Fd()), 0, 0, 80<<20))
	must(t, filler.Close())
	for name, err := range map[string]error{
		"Update":        s.Update([]chain.Image{im}, nil),
		"Record":        s.Record(chain.Operation{ID: 1}),
		"SetMountpoint": s.SetMountpoint("/x"),
	} {
		if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "64.0 MiB are needed") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if got := images(t, s); len(got) != 1 {
		t.Errorf("got %d images, want 1", len(got))
	}
	must(t, s.Close())
	if _, err := Open(dir, quiet); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("Open: got %v, want ENOSPC", err)
	}
	must(t, os.Remove(filepath.Join(disk.Dir, "filler")))
	s = openStore(t, dir)
	closeStore(t, s)
}

// Whatever byte is damaged: the store either says so or has all that it had.
func TestDamage(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	var ims []chain.Image
	for i := range 3000 {
		ims = append(ims, newImage(t, s, chain.Path(fmt.Sprintf("vm/%d/root.qcow2", i))))
	}
	must(t, s.Update(ims, nil))
	must(t, s.Record(newOp(t, s, 10)))
	closeStore(t, s)
	files, err := filepath.Glob(dir + "/*")
	must(t, err)
	if !slices.ContainsFunc(files, func(f string) bool { return strings.HasSuffix(f, ".sst") }) {
		t.Fatalf("no table among %v", files)
	}
	for _, f := range files {
		if name := filepath.Base(f); name == "LOCK" || strings.HasSuffix(name, ".vlog") || strings.HasSuffix(name, ".mem") || name == "DISCARD" {
			continue
		}
		size := fileSize(t, f)
		for i := range int64(12) {
			t.Run(fmt.Sprintf("%s/%d", filepath.Base(f), i), func(t *testing.T) { damageOne(t, dir, filepath.Base(f), i*(size-1)/11) })
		}
	}
	t.Run("missing table", func(t *testing.T) {
		copied := t.TempDir()
		must(t, os.CopyFS(copied+"/s", os.DirFS(dir)))
		tables, err := filepath.Glob(copied + "/s/*.sst")
		must(t, err)
		must(t, os.Remove(tables[0]))
		_, err = Open(copied+"/s", quiet)
		var damage *DamagedError
		if !errors.As(err, &damage) || !strings.Contains(err.Error(), "chainfs scan") {
			t.Errorf("got %v, want a DamagedError", err)
		}
	})
}

func fileSize(t *testing.T, path string) int64 {
	st, err := os.Stat(path)
	must(t, err)
	return st.Size()
}

func damageOne(t *testing.T, dir, name string, at int64) {
	copied := t.TempDir() + "/s"
	must(t, os.CopyFS(copied, os.DirFS(dir)))
	file := filepath.Join(copied, name)
	data, err := os.ReadFile(file)
	must(t, err)
	data[at] ^= 0xff
	must(t, os.WriteFile(file, data, 0o600))
	s, err := Open(copied, quiet)
	if err != nil {
		t.Log(err)
		var damage *DamagedError
		if !errors.As(err, &damage) {
			t.Errorf("got %v, want a DamagedError", err)
		}
		return
	}
	defer s.Close()
	n := 0
	err = s.Images(context.Background(), func(chain.Image) error { n++; return nil })
	ops, opErr := s.Operations(true)
	if err == nil && opErr == nil && (n != 3000 || len(ops) != 1) {
		t.Errorf("byte %d: %d images and %d operations are left, and nothing was said", at, n, len(ops))
	}
}
