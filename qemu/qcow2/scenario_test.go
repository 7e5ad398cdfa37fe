package qcow2

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

// scenario is a job that is small enough to be done thousands of times: a full,
// one or two images on it that go away, and the child.
type scenario struct {
	name               string
	size               string
	full, away, child  string // options of qemu-img create
	awaySize           string // when it is another than size
	fullIO, awayIO     []string
	childIO            []string
	second             bool // the child lies on a second image that goes away
	toFull             bool // the full goes away as well
	raw                bool // the full is a raw file
	longName           bool // the full's is
	bitmap, smallTable bool
}

const someSize = "1100k"

// What is written unless a scenario says otherwise: each image has something of its
// own and shares something with each other. Some ranges end inside clusters of any
// size.
var (
	someFull  = []string{"write -s p0 0 700k", "write -s p1 900k 100k"}
	someAway  = []string{"write -s p2 100k 200k", "write -z 400k 100k", "write -s p3 600100 50001", "write -z 650k 3k"}
	someChild = []string{"write -s p1 150k 50k", "write -s p0 601000 100", "write -z 420k 30k"}
)

var scenarios = []scenario{
	{name: "512", child: "cluster_size=512", away: "cluster_size=512"},
	{name: "512 over 64k", child: "cluster_size=512,lazy_refcounts=on"},
	{name: "4k", child: "cluster_size=4k", away: "cluster_size=4k"},
	{name: "64k over 4k", child: "cluster_size=64k", away: "cluster_size=4k"},
	{
		name: "2M", size: "12M", child: "cluster_size=2M", away: "cluster_size=2M",
		fullIO: []string{"write -s p0 0 5M"}, awayIO: []string{"write -s p1 1M 2M", "write -z 6M 2M"}, childIO: []string{"write -s p2 11M 1k"},
	},
	{name: "extended 16k", child: "cluster_size=16k,extended_l2=on", away: "cluster_size=512"},
	{name: "extended 128k", child: "cluster_size=128k,extended_l2=on", away: "cluster_size=64k,extended_l2=on"},
	{name: "v2", child: "compat=0.10,cluster_size=4k", away: "compat=0.10,cluster_size=4k"},
	{name: "v2, shorter parent", child: "compat=0.10,cluster_size=64k", away: "cluster_size=2k", awaySize: "500224"},
	{name: "counts of 1 bit", child: "cluster_size=1k,refcount_bits=1", away: "cluster_size=4k"},
	{name: "counts of 16 bits, shorter parent", child: "cluster_size=4k,refcount_bits=16", away: "cluster_size=4k", awaySize: "650752"},
	{name: "counts of 64 bits, becomes a full", child: "cluster_size=4k,refcount_bits=64", away: "cluster_size=4k", toFull: true},
	{
		name: "the refcount table grows", size: "4M", child: "cluster_size=512,refcount_bits=64", away: "cluster_size=64k", smallTable: true,
		awayIO: []string{"write -s p2 1000k 2500k", "write -z 100k 10k"},
	},
	{
		name: "compressed, as it is", child: "cluster_size=4k", away: "cluster_size=4k",
		awayIO: []string{"write -c -s p2 100k 200k", "write -c -s p3 480k 40k", "write -z 400k 40k"},
	},
	{
		name: "compressed, zstd into zlib", child: "cluster_size=16k", away: "cluster_size=16k,compression_type=zstd",
		awayIO: []string{"write -c -s p2 96k 208k", "write -c -s p3 480k 64k"},
	},
	{name: "on a raw file", child: "cluster_size=4k", away: "cluster_size=4k", raw: true},
	{name: "a long name", child: "cluster_size=32k", away: "cluster_size=4k", longName: true},
	{name: "two go away, with a bitmap", child: "cluster_size=4k", away: "cluster_size=1k", second: true, bitmap: true},
}

// setting is a scenario's images, in memory.
type setting struct {
	*imageDir
	name          string
	child         *content
	away, below   []testLayer
	oldName       string // of the parent that goes away
	newName       string // of the one that stays
	newFormat     string
	guest         []byte // what a guest reads of the child, by qemu-img
	oldLeaks      int64  // that QEMU left
	oldTable      uint64 // offset of the refcount table
	growsTheTable bool
}

func (s scenario) make(t *testing.T) *setting {
	t.Helper()
	d := newImageDir(t)
	full, format := s.makeFull(d)
	gone := s.makeAway(d, full)
	size, parent := or(s.size, someSize), gone[0]
	d.createOn(parent, "child", s.child, size)
	if s.bitmap {
		d.run("qemu-img", "bitmap", "--add", "-f", "qcow2", "child", "b")
	}
	d.io("child", orIO(s.childIO, someChild)...)
	set := &setting{
		imageDir: d, name: s.name, oldName: parent, newName: full, newFormat: format,
		child: contentOf(d.read("child")), guest: d.raw("child"), growsTheTable: s.smallTable,
		below: []testLayer{{contentOf(d.read(full)), s.raw}},
	}
	for _, name := range gone {
		set.away = append(set.away, testLayer{src: contentOf(d.read(name))})
	}
	if s.toFull {
		set.away, set.below = append(set.away, set.below...), nil
		set.newName, set.newFormat = "", ""
	}
	set.lookAtChild()
	return set
}

// makeFull makes what stays.
func (s scenario) makeFull(d *imageDir) (name, format string) {
	name, format = "full", "qcow2"
	if s.longName {
		name += strings.Repeat("-long", 40)
	}
	d.createOn("", name, s.full, or(s.size, someSize))
	d.io(name, orIO(s.fullIO, someFull)...)
	if s.raw {
		d.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", name, "full.raw")
		name, format = "full.raw", "raw"
	}
	return name, format
}

// makeAway makes what goes away, the child's parent first.
func (s scenario) makeAway(d *imageDir, full string) []string {
	size := or(s.size, someSize)
	d.createOn(full, "away", s.away, or(s.awaySize, size))
	d.io("away", fitting(orIO(s.awayIO, someAway), s.awaySize != "")...)
	if !s.second {
		return []string{"away"}
	}
	d.createOn("away", "away2", s.away, size)
	d.io("away2", "write -s p0 250k 60k", "write -z 0 5k")
	return []string{"away2", "away"}
}

func (d *imageDir) createOn(parent, name, options, size string) {
	d.t.Helper()
	args := []string{"qemu-img", "create", "-q", "-f", "qcow2"}
	if parent != "" {
		format := "qcow2"
		if strings.HasSuffix(parent, ".raw") {
			format = "raw"
		}
		args = append(args, "-b", parent, "-F", format)
	}
	if options != "" {
		args = append(args, "-o", options)
	}
	d.run(append(args, name, size)...)
}

func or(s, other string) string {
	if s != "" {
		return s
	}
	return other
}

func orIO(s, other []string) []string {
	if s != nil {
		return s
	}
	return other
}

// fitting leaves out what lies behind a short image's end.
func fitting(commands []string, short bool) []string {
	var all []string
	for _, c := range commands {
		if !short || !strings.Contains(c, " 6") {
			all = append(all, c)
		}
	}
	return all
}

func (s *setting) lookAtChild() {
	s.t.Helper()
	h, err := ReadHeader(s.child, s.child.size)
	if err != nil {
		s.t.Fatal(err)
	}
	s.oldTable = h.RefcountTableOffset
	if s.oldLeaks, err = checked(s.child); err != nil {
		s.t.Fatal(err)
	}
	if err := sees(s.guest, concat(testLayer{src: s.child}, s.away, s.below)...); err != nil {
		s.t.Fatal(err)
	}
	if bytes.Equal(s.guest, make([]byte, len(s.guest))) {
		s.t.Fatal("a disk of zeros proves nothing")
	}
}

func (s *setting) job(child File) testJob {
	return testJob{child: child, away: s.away, below: s.below, name: s.newName, format: s.newFormat, verify: true}
}

// absorbed runs the job on a disk with that content, and fails the test if it does
// not come to its end.
func (s *setting) absorbed() *crashDisk {
	s.t.Helper()
	d := newCrashDisk(s.child)
	if err := engineAbsorb(s.job(d)); err != nil {
		s.t.Fatal(err)
	}
	if err := s.finished(d); err != nil {
		s.t.Fatal(err)
	}
	h, err := ReadHeader(d, d.now.size)
	if err != nil {
		s.t.Fatal(err)
	}
	if grew := h.RefcountTableOffset != s.oldTable; grew != s.growsTheTable {
		s.t.Fatalf("the refcount table is new: %v, and it should be: %v", grew, s.growsTheTable)
	}
	return d
}

// sound is nil when the image reads as it must through whichever parent it names,
// and is not corrupt. It tells whether that is the new one.
func (s *setting) sound(child *content) (renamed bool, err error) {
	h, err := ReadHeader(child, child.size)
	if err != nil {
		return false, err
	}
	layers := concat(testLayer{src: child}, s.away, s.below)
	switch h.BackingName {
	case s.newName:
		renamed, layers = true, concat(testLayer{src: child}, s.below)
	case s.oldName:
	default:
		return false, fmt.Errorf("it names %q", h.BackingName)
	}
	if err := sees(s.guest, layers...); err != nil {
		return renamed, fmt.Errorf("through %q it %w", h.BackingName, err)
	}
	_, err = checked(child)
	return renamed, err
}

// finished is nil when an absorb that reported success did it all, durably.
func (s *setting) finished(d *crashDisk) error {
	for _, e := range d.unsynced() {
		return fmt.Errorf("done, and a %s of %d bytes at %d is not synced", e.kind, len(e.data), e.off)
	}
	renamed, err := s.sound(d.durable)
	if err == nil && !renamed {
		err = fmt.Errorf("done, and it still names %q", s.oldName)
	}
	return err
}

// finishedClean is finished, and nothing is leaked that was not.
func (s *setting) finishedClean(d *crashDisk) error {
	if err := s.finished(d); err != nil {
		return err
	}
	leaks, err := checked(d.durable)
	if err == nil && leaks > s.oldLeaks {
		err = fmt.Errorf("%d clusters are leaked, %d were before", leaks, s.oldLeaks)
	}
	return err
}
