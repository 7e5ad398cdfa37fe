package qemu

import (
	"bytes"
	"io"
	"regexp"
	"strconv"
	"strings"
	"sync"
)

// maxOutput is how much of qemu-img's output is kept for an error message.
const maxOutput = 2 << 10

// tail keeps the end of what is written to it.
type tail struct {
	mu sync.Mutex
	b  []byte // guarded by mu
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	t.b = t.b[max(0, len(t.b)-maxOutput):]
	return len(p), nil
}

// String is the output as one line.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(strings.FieldsFunc(string(t.b), func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}

// percent turns the "    (12.34/100%)\r" of qemu-img -p into progress, and passes
// on everything else.
type percent struct {
	total  int64
	report func(done, total int64)
	rest   io.Writer
	line   []byte // what came since the last end of a line
}

var percentLine = regexp.MustCompile(`^\s*\(([0-9.]+)/100%\)\s*$`)

func (p *percent) Write(b []byte) (int, error) {
	p.line = append(p.line, b...)
	for {
		i := bytes.IndexAny(p.line, "\r\n")
		if i < 0 {
			break
		}
		p.take(p.line[:i+1])
		p.line = p.line[i+1:]
	}
	if len(p.line) > maxOutput {
		p.take(p.line)
		p.line = nil
	}
	return len(b), nil
}

func (p *percent) take(line []byte) {
	m := percentLine.FindSubmatch(line)
	if m == nil {
		_, _ = p.rest.Write(line) // a tail never fails
		return
	}
	if done, err := strconv.ParseFloat(string(m[1]), 64); err == nil {
		p.report(int64(float64(p.total)*min(done, 100)/100), p.total)
	}
}
