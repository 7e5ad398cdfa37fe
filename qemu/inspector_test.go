package qemu

import (
	"bytes"
	"encoding/binary"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/chainfs/chainfs/chain"
)

func paths(names ...string) (all []chain.Path) {
	for _, n := range names {
		all = append(all, chain.Path(n))
	}
	return all
}

func TestNameOf(t *testing.T) {
	for _, c := range []struct {
		name   string
		plain  string
		others []chain.Path
	}{
		{"", "", nil},
		{"a", "a", nil},
		{"../x/a.qcow2", "../x/a.qcow2", nil},
		{"/nas/a", "/nas/a", nil},
		{"./a:b", "./a:b", nil},
		{"d/a:b", "d/a:b", nil},
		{"a:b", "", paths("a:b", "b")},
		{"12:30.qcow2", "", paths("12:30.qcow2", "30.qcow2")},
		{"file:a", "", paths("file:a", "a")},
		{"file:///nas/a", "", paths("file:///nas/a", "///nas/a")},
		{"nbd://host/x", "", paths("nbd://host/x", "//host/x")},
		{"blkdebug:conf:d/a", "", paths("blkdebug:conf:d/a", "conf:d/a", "d/a")},
		{"a\x00b", "", paths("a")},
		{`json:{"file.filename":"d/a"}`, "", paths("d/a")},
		{`json:{'file':{'driver':'file','filename':'d/a'}}`, "", paths("file", "d/a")},
		{`json:{"driver":"qcow2","backing":"b","file":{"filename":"c\u0041\\\""}}`, "", paths("qcow2", "b", `cA\"`)},
		{`json:{"backing":{"file.filename":"json:{\"filename\":\"deep\"}"}}`, "", paths(`json:{"filename":"deep"}`, "deep")},
		{`json:{"filename":"file:a"}`, "", paths("file:a", "a")},
		{`json:{"filename":"a","filename":"b"}`, "", paths("a", "b")},
		{`json:{"filename":"cut`, "", paths("cut")},
		{`json:"\`, "", paths(`\`)},
	} {
		n := nameOf(c.name)
		if string(n.plain) != c.plain || !reflect.DeepEqual(n.others, c.others) {
			t.Errorf("%q: got plain %q, others %q", c.name, n.plain, n.others)
		}
		if (n.trouble != "") != (c.others != nil) {
			t.Errorf("%q: got trouble %q", c.name, n.trouble)
		}
	}
}

// Nesting must not make work or memory explode.
func TestNameOfHostileJSON(t *testing.T) {
	for _, s := range []string{
		"json:" + strings.Repeat(`"`, 4000),
		"json:" + strings.Repeat(`'json:"`, 500),
		"json:" + strings.Repeat(`{"a:":`, 600),
		strings.Repeat(":", 4000),
		strings.Repeat("json:", 800),
		`json:"` + strings.Repeat(`\`, 4000),
	} {
		var n int
		for _, p := range nameOf(s).others {
			n += len(p)
		}
		if n > 1<<20 {
			t.Errorf("%.20q... gives %d bytes of names", s, n)
		}
	}
}

func TestInspect(t *testing.T) {
	needQemu(t)
	tr := newTree(t)
	luks := []string{"--object", "secret,id=s,data=abc", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"}
	tr.create("plain", "")
	tr.create("child", "plain")
	tr.create("luks", "", luks...)
	tr.create("luks-child", "plain", luks...)
	tr.create("data", "", "-o", "data_file=x.raw")
	tr.create("snap", "plain")
	tr.qemu("qemu-img", "snapshot", "-c", "one", "snap")
	tr.create("colon", "12:30")
	tr.create("vmdk", "")
	tr.qemu("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "vmdk", "-b", "v.vmdk", "vmdk")
	for _, c := range []struct {
		path    chain.Path
		backing chain.Path
		others  []chain.Path
		trouble string
	}{
		{"plain", "", nil, ""},
		{"child", "plain", nil, ""},
		{"luks", "", nil, "is encrypted"},
		{"luks-child", "plain", nil, "is encrypted"},
		{"data", "", paths("x.raw"), "has an external data file"},
		{"snap", "plain", nil, "has internal snapshots"},
		{"colon", "", paths("12:30", "30"), "names its parent through a protocol"},
		{"vmdk", "v.vmdk", nil, `names its parent with the format "vmdk"`},
	} {
		h := tr.header(c.path)
		if h.Format != chain.QCOW2 || h.VirtualSize != 64<<20 || h.Backing != c.backing ||
			!reflect.DeepEqual(h.Others, c.others) || h.Trouble+h.Pinned != c.trouble {
			t.Errorf("%s: got %+v", c.path, h)
		}
	}
}

// INVARIANT of the deletion: a spoilt header still tells its parent.
func TestInspectOfSpoiltHeader(t *testing.T) {
	b := make([]byte, 1024)
	copy(b, "QFI\xfb")
	binary.BigEndian.PutUint32(b[4:], 3)
	binary.BigEndian.PutUint64(b[8:], 600)
	binary.BigEndian.PutUint32(b[16:], 4)
	copy(b[600:], "full")
	h, err := Inspector{}.Inspect(bytes.NewReader(b), int64(len(b)))
	if err != nil || h.Backing != "full" || !strings.HasPrefix(h.Trouble, "has a header that is not valid: ") {
		t.Errorf("got %+v, %v", h, err)
	}
}

func TestInspectOfOtherFiles(t *testing.T) {
	for _, s := range []string{"", "QFI", "<xml/>", strings.Repeat("\x00", 5000)} {
		h, err := Inspector{}.Inspect(strings.NewReader(s), int64(len(s)))
		if err != nil || h.IsImage() {
			t.Errorf("%.10q: got %+v, %v", s, h, err)
		}
	}
	broken := errors.New("broken disk")
	if _, err := (Inspector{}).Inspect(brokenReader{broken}, 100); !errors.Is(err, broken) {
		t.Errorf("got error %v", err)
	}
}

type brokenReader struct{ err error }

func (r brokenReader) ReadAt([]byte, int64) (int, error) { return 0, r.err }
