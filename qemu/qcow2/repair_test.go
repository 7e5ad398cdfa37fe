package qcow2

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// leaks are made in an image by hand; none of them is corruption.
var leaks = []struct {
	name string
	make func(s *specimen)
}{
	{"none", func(s *specimen) {}},
	{"at the end", func(s *specimen) {
		off := s.grow(40)
		for i := range int64(40) {
			s.leak(off+i*s.cluster(), 1)
		}
	}},
	{"at the end, not counted", func(s *specimen) { s.grow(3) }},
	{"counted behind the end", func(s *specimen) { s.leak(int64(len(s.b))+2*s.cluster(), 1) }},
	{"data lost", func(s *specimen) { clear(s.b[s.l2(own):][:s.entrySize()]) }},
	{"a table lost", func(s *specimen) { s.put(s.l1(0), 0) }},
	{"counts too high", func(s *specimen) {
		s.leak(0, 1)
		s.leak(int64(s.h.L1Offset), 1)
		s.leak(s.host(0), 1)
		s.put(s.l2(0), s.u64(s.l2(0))&^flagCopied)
		s.leak(s.host(own), 1)
		s.put(s.l2(own), s.u64(s.l2(own))&^flagCopied)
		s.leak(s.host(own+s.cluster()), 1)
		s.put(s.l2(own+s.cluster()), s.u64(s.l2(own+s.cluster()))&^flagCopied)
	}},
	{"a table's count too high", func(s *specimen) {
		s.leak(int64(s.u64(s.l1(0))&offsetMask), 1)
		s.put(s.l1(0), s.u64(s.l1(0))&^flagCopied)
	}},
	{"flags that are missing", func(s *specimen) {
		s.put(s.l1(0), s.u64(s.l1(0))&^flagCopied)
		s.put(s.l2(own), s.u64(s.l2(own))&^flagCopied)
	}},
	{"a snapshot lost", func(s *specimen) { s.put32(60, 0) }},
}

// leak raises a refcount, where it has room.
func (s *specimen) leak(off int64, n uint64) {
	block, _ := s.block(off / s.cluster())
	if most := uint64(1)<<min(1<<s.h.RefcountOrder, 32) - 1; block == 0 || s.count(off)+n > most {
		return
	}
	s.setCount(off, s.count(off)+n)
}

func leaky(t *testing.T, template string, make func(*specimen)) string {
	s := openSpecimen(t, copyOf(t, template))
	make(s)
	s.save()
	return s.file
}

func repair(t *testing.T, file string) (int64, error) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return RepairLeaks(t.Context(), OSFile{f})
}

// After a repair qemu-img finds nothing, and reads the same, snapshots included.
func TestRepairLeaks(t *testing.T) {
	for _, template := range templates {
		t.Run(template.name, func(t *testing.T) {
			t.Parallel()
			image := damagedTemplate(t, template.options, template.snapshot)
			for _, c := range leaks {
				t.Run(c.name, func(t *testing.T) { repairOne(t, leaky(t, image, c.make), c.name) })
			}
		})
	}
}

func repairOne(t *testing.T, file, name string) {
	before, found, want := contents(t, file), qemuCheck(t, file), int64(0)
	if got, err := check(t, file); err != nil || got.CorruptionCount > got.StaleFlags || got.Unrepairable != "" {
		t.Fatalf("the image is no good: %+v, %v, %+v", got, err, found)
	}
	if strings.HasPrefix(name, "at the end") {
		want = 1
	}
	freed, err := repair(t, file)
	if err != nil || freed < want {
		t.Fatalf("got %d bytes, %v", freed, err)
	}
	if after := qemuCheck(t, file); !after.sound() {
		t.Errorf("qemu-img finds %+v, found %+v", after, found)
	}
	if !bytes.Equal(contents(t, file), before) {
		t.Error("it reads differently")
	}
	image, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if freed, err := repair(t, file); freed != 0 || err != nil {
		t.Errorf("a second time: got %d bytes, %v", freed, err)
	}
	if again, err := os.ReadFile(file); err != nil || !bytes.Equal(image, again) {
		t.Errorf("a second repair changes the image (%v)", err)
	}
}

// contents are what a guest reads now, and what it read at the snapshot.
func contents(t *testing.T, file string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "raw")
	runIn(t, filepath.Dir(file), "qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", "x", out)
	all, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if openSpecimen(t, file).h.Snapshots > 0 {
		runIn(t, filepath.Dir(file), "qemu-img", "convert", "-f", "qcow2", "-l", "one", "-O", "qcow2", "x", out)
		one, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, one...)
	}
	return all
}

// Bitmaps that are stale belong to nobody, others are kept.
func TestRepairLeaksBitmaps(t *testing.T) {
	file := makeImage(t, []string{"x", "64M"}, written...)
	runIn(t, filepath.Dir(file), "qemu-img", "bitmap", "--add", "--enable", "x", "b0")
	ioIn(t, filepath.Dir(file), "write -P 5 2M 10k")
	if freed, err := repair(t, file); freed != 0 || err != nil {
		t.Errorf("a sound image: got %d, %v", freed, err)
	}
	if info := runIn(t, filepath.Dir(file), "qemu-img", "info", "x"); !strings.Contains(info, "b0") {
		t.Errorf("the bitmap is gone: %s", info)
	}
	s := openSpecimen(t, file)
	s.put(88, 0)
	s.save()
	repairOne(t, file, "at the end")
}

// It ends with its context until it begins to write.
func TestRepairLeaksCancelled(t *testing.T) {
	file := leaky(t, damagedTemplate(t, "cluster_size=4k", true), leaks[1].make)
	before := openSpecimen(t, file).b
	for _, when := range []string{"read", "write"} {
		ctx, cancel := context.WithCancel(t.Context())
		d := &disk{data: bytes.Clone(before), fail: func(call string) error {
			if call == when {
				cancel()
			}
			return nil
		}}
		freed, err := RepairLeaks(ctx, d)
		if when == "read" && (!errors.Is(err, context.Canceled) || freed != 0 || !bytes.Equal(d.data, before)) {
			t.Errorf("while it reads: got %d, %v, %v", freed, err, d.log)
		}
		if when == "write" && (err != nil || freed == 0) {
			t.Errorf("while it writes: got %d, %v", freed, err)
		}
		cancel()
	}
}

func TestRepairLeaksRefused(t *testing.T) {
	template := damagedTemplate(t, "cluster_size=64k", true)
	for name, c := range map[string]struct {
		damage func(s *specimen)
		want   error
	}{
		"a count too low":           {func(s *specimen) { s.setCount(s.host(own), 0) }, ErrCorrupt},
		"a flag too many":           {func(s *specimen) { s.xor(s.l2(0), flagCopied) }, ErrCorrupt},
		"marked corrupt":            {func(s *specimen) { s.xor(72, Corrupt) }, ErrCorrupt},
		"dirty":                     {func(s *specimen) { s.xor(72, Dirty) }, ErrUnsupported},
		"an autoclear feature":      {func(s *specimen) { s.xor(88, 1<<9) }, ErrUnsupported},
		"a compatible feature":      {func(s *specimen) { s.xor(80, 1<<9) }, ErrUnsupported},
		"an extension":              {func(s *specimen) { s.put32(112, 0x12345678) }, ErrUnsupported},
		"a longer header":           {longerHeader, ErrUnsupported},
		"a bitmap that is not sane": {func(s *specimen) { s.put32(112, ExtBitmaps); s.put(88, 1) }, ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			file := leaky(t, template, func(s *specimen) {
				s.leak(s.grow(1), 1)
				c.damage(s)
			})
			before, _ := os.ReadFile(file)
			freed, err := repair(t, file)
			if !errors.Is(err, c.want) || freed != 0 {
				t.Errorf("got %d, %v, want %v", freed, err, c.want)
			}
			if after, err := os.ReadFile(file); err != nil || !bytes.Equal(before, after) {
				t.Errorf("it was changed (%v)", err)
			}
			if got, err := check(t, file); err == nil && got.CorruptionCount == 0 && got.Unrepairable == "" {
				t.Error("check says that it can be repaired")
			}
		})
	}
}

// longerHeader makes room for eight bytes that nobody knows.
func longerHeader(s *specimen) {
	copy(s.b[120:], bytes.Clone(s.b[112:1024]))
	s.put32(100, 120)
	s.put(112, 1)
}

// A power cut at any write leaves an image that reads the same and can be
// repaired. What the disk keeps of what was not synced is drawn by lot.
func TestRepairLeaksPowerCut(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for _, template := range templates {
		image := damagedTemplate(t, template.options, template.snapshot)
		for _, c := range leaks {
			t.Run(template.name+"/"+c.name, func(t *testing.T) {
				file := leaky(t, image, c.make)
				want, before := contents(t, file), openSpecimen(t, file).b
				d, calls := counted(before, 0)
				if _, err := RepairLeaks(t.Context(), d); err != nil {
					t.Fatal(err)
				}
				for n := range len(d.log) + 1 {
					for i := range 3 {
						repairCut(t, file, cut(before, d.log, n, 0.5, rng), want, (3*n+i)%19 == 0)
					}
				}
				for n := 1; n <= *calls; n++ {
					d, _ := counted(before, n)
					if freed, err := RepairLeaks(t.Context(), d); !errors.Is(err, errCut) || freed != 0 {
						t.Errorf("call %d failed: got %d, %v", n, freed, err)
					}
					repairCut(t, file, d.data, want, false)
				}
			})
		}
	}
}

// repairCut repairs what a power cut left.
func repairCut(t *testing.T, file string, left, want []byte, ask bool) {
	t.Helper()
	found, err := Check(t.Context(), &disk{data: bytes.Clone(left)})
	if err != nil || found.CorruptionCount > found.StaleFlags {
		t.Fatalf("a power cut corrupts: %+v, %v", found, err)
	}
	if ask {
		if err := os.WriteFile(file, left, 0o644); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(contents(t, file), want) {
			t.Fatal("it reads differently after a power cut")
		}
	}
	again := &disk{data: bytes.Clone(left)}
	if _, err := RepairLeaks(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	if found, err := Check(t.Context(), again); err != nil || found.CorruptionCount > 0 || found.LeakedClusters > 0 {
		t.Fatalf("after a second repair: %+v, %v", found, err)
	}
	if ask {
		if err := os.WriteFile(file, again.data, 0o644); err != nil {
			t.Fatal(err)
		}
		if found := qemuCheck(t, file); !found.sound() || !bytes.Equal(contents(t, file), want) {
			t.Fatalf("after a second repair: %+v", found)
		}
	}
}

// counted fails the write, sync or truncation number failAt, from 1 on.
func counted(b []byte, failAt int) (d *disk, calls *int) {
	calls = new(int)
	return &disk{data: bytes.Clone(b), fail: func(call string) error {
		if call == "read" {
			return nil
		}
		if *calls++; *calls == failAt {
			return errCut
		}
		return nil
	}}, calls
}
