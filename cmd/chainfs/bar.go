package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/chainfs/chainfs/chain"
)

// bar shows progress on a terminal, in one line that goes when it is over.
type bar struct {
	w     io.Writer
	width int // 0: no terminal, nothing is shown

	mu   sync.Mutex
	last time.Time // guarded by mu; when it was drawn
}

func newBar(w io.Writer) *bar { return &bar{w: w, width: terminalWidth(w)} }

// report draws the bar, a few times a second at most.
func (b *bar) report(p chain.Progress) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.width == 0 || time.Since(b.last) < 100*time.Millisecond {
		return
	}
	b.last = time.Now()
	line := fmt.Sprintf("%3d%%  %s of at most %s  %s", percent(p), chain.Size(p.Done), chain.Size(p.Total), p.Path)
	if p.Act == chain.ActCheck {
		line = fmt.Sprintf("%d of %s  %s", p.Done, count(int(p.Total), "image"), p.Path)
	}
	if statusOf(p) != chain.Running {
		line = fmt.Sprintf("%s  %s", sentence(p, time.Now()), someOf(p.Paths))
	}
	fmt.Fprint(b.w, "\r\x1b[K", cut(line, b.width-1))
}

func (b *bar) clear() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.last.IsZero() {
		fmt.Fprint(b.w, "\r\x1b[K")
	}
}

// percent is how far an operation is; the last step needs no copying, so what
// has nothing to copy is always about to end.
func percent(p chain.Progress) int64 {
	if p.Total <= 0 {
		return 100
	}
	return min(100*p.Done/p.Total, 100)
}
