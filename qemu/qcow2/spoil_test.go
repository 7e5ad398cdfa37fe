package qcow2

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// A patch is records of 11 bytes, each a change of one file: what to do and where
// (which file in the low bits), the place in units of 8 bytes, and a value.
const (
	patchRecord = 11
	maxPatches  = 24
	maxSpoilt   = 256 << 10
)

// spoil applies a patch to the files of a set. This finds more than bytes that a
// fuzzer changes by itself: nearly all that it makes of an image is none.
func (s imageSet) spoil(patch []byte) (files [3][]byte) {
	for i := range files {
		files[i] = bytes.Clone(s.files[i])
	}
	for n := 0; n < maxPatches && len(patch) >= patchRecord; n, patch = n+1, patch[patchRecord:] {
		spoilOne(&files[patch[0]%3], patch[0]/3%4, int(binary.BigEndian.Uint16(patch[1:]))*8, patch[3:patchRecord])
	}
	return files
}

func spoilOne(f *[]byte, act byte, at int, value []byte) {
	b := *f
	switch {
	case act == 3: // another length
		if at < len(b) {
			*f = b[:at]
		} else if at <= maxSpoilt {
			*f = append(b, make([]byte, at-len(b))...)
		}
	case at+8 > len(b):
	case act == 0:
		copy(b[at:], value)
	case act == 1: // one byte
		b[at+int(value[0]%8)] = value[1]
	case act == 2: // the value of another place
		if from := int(binary.BigEndian.Uint16(value)) * 8; from+8 <= len(b) {
			copy(b[at:at+8], b[from:from+8])
		}
	}
}

// fuzzers and the files of their corpus: a name, and what the target is called with.
var fuzzCorpus = map[string]func(tb testing.TB) map[string]string{
	"FuzzOpen":   openSeeds,
	"FuzzMap":    setSeeds,
	"FuzzRead":   setSeeds,
	"FuzzAbsorb": setSeeds,
}

func openSeeds(testing.TB) map[string]string {
	all := map[string]string{}
	for _, h := range hostileImages {
		all[h.name] = fmt.Sprintf("[]byte(%q)\nint64(%d)\n", h.bytes(), h.size)
	}
	return all
}

// setSeeds are all sets as they are, and some with a change.
func setSeeds(tb testing.TB) map[string]string {
	all := map[string]string{}
	for i, s := range allSets(tb) {
		all[s.name] = setSeed(i, nil, 0)
		if i < len(madeSets) {
			all[s.name+"-verified"] = setSeed(i, nil, flagVerify)
			all[s.name+"-full"] = setSeed(i, nil, flagFull|flagVerify)
			all[s.name+"-cut"] = setSeed(i, []byte{1 + 9, 1, 32, 0, 0, 0, 0, 0, 0, 0, 0}, 0)
			all[s.name+"-alias"] = setSeed(i, []byte{6, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0}, 0)
		}
	}
	return all
}

func setSeed(set int, patch []byte, flags byte) string {
	return fmt.Sprintf("byte(%q)\n[]byte(%q)\nbyte(%q)\nint64(%d)\nint64(%d)\n", rune(set), patch, rune(flags), 1000, 40000)
}

// Without its corpus a fuzzer would start from nothing, and past bugs be forgotten.
func TestCorpusHoldsEverySet(t *testing.T) {
	for fuzzer, seeds := range fuzzCorpus {
		dir := filepath.Join("testdata/fuzz", fuzzer)
		all := seeds(t)
		if len(all) < len(hostileImages) {
			t.Errorf("%s has %d seeds", fuzzer, len(all))
		}
		for name, want := range all {
			name, want = filepath.Join(dir, name), "go test fuzz v1\n"+want
			if *update {
				if err := os.MkdirAll(dir, 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(name, []byte(want), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			got, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != want {
				t.Errorf("%s differs; run with -update", name)
			}
		}
	}
}
