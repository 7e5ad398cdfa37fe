package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/cmd/chainfs/control"
)

// watchEvery is how often operations are looked at.
const watchEvery = 500 * time.Millisecond

// recentOps is among how many past operations the end of one is looked for.
const recentOps = 200

// watch follows what is pending. On a terminal it draws bars over each other;
// elsewhere it says a line for each change.
type watch struct {
	w     io.Writer
	svc   control.Service
	json  bool
	every time.Duration

	width int // of the terminal; 0 for none
	drawn int // lines that are on the terminal
	said  map[chain.OpID]string
}

func newWatch(w io.Writer, svc control.Service, asJSON bool) *watch {
	return &watch{w: w, svc: svc, json: asJSON, every: watchEvery, width: terminalWidth(w), said: map[chain.OpID]string{}}
}

// follow returns when nothing is pending. What passes from waiting to running may
// be in neither list for a moment, so the end has to be seen twice.
func (v *watch) follow(ctx ctxt) error {
	tick := time.NewTicker(v.every)
	defer tick.Stop()
	for quiet := 0; ; {
		ops, err := v.svc.Operations(ctx, control.OperationsRequest{Last: recentOps})
		if err != nil {
			return err
		}
		if err := v.show(ops); err != nil {
			return err
		}
		if quiet++; len(ops.Pending)+len(ops.Running) > 0 {
			quiet = 0
		}
		if quiet == 2 || quiet == 1 && len(v.said) == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (v *watch) show(ops control.Operations) error {
	if v.width > 0 && !v.json {
		return v.draw(ops)
	}
	return v.say(ops)
}

// draw puts one line for each operation over what was drawn before. What does not
// fit on a screen is counted.
func (v *watch) draw(ops control.Operations) error {
	var b strings.Builder
	if v.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\x1b[J", v.drawn)
	}
	for _, op := range v.ended(ops) {
		b.WriteString(cut(endOf(op), v.width-1) + "\n") // it stays, and what follows is drawn below it
	}
	all := inOrder(ops)
	v.drawn = 0
	line := func(s string) {
		b.WriteString(cut(s, v.width-1) + "\n")
		v.drawn++
	}
	for i, p := range all {
		v.said[p.Op] = ""
		if i == maxBars {
			line(fmt.Sprintf("and %d more", len(all)-i))
			break
		}
		line(barLine(p, time.Now()))
	}
	_, err := io.WriteString(v.w, b.String())
	return err
}

// maxBars is how many operations are drawn: few terminals have fewer lines.
const maxBars = 20

// barLine is an operation in a line.
func barLine(p chain.Progress, now time.Time) string {
	how := pace(p)
	if statusOf(p) != chain.Running {
		how = sentence(p, now)
	}
	return joinNonEmpty("  ", fmt.Sprintf("%6s %-7s %s %3d%%", p.Op, p.Act, meter(p, 20), percentOf(p)),
		fmt.Sprintf("%s, %s to do", chain.Size(p.Done), toDo(p)), how, someOf(p.Paths))
}

// sentence is the status of an operation that does not run, with its reason.
func sentence(p chain.Progress, now time.Time) string {
	if reason := reasonOf(p, now); reason != "" {
		return fmt.Sprintf("%s: %s", statusOf(p), reason)
	}
	return string(statusOf(p))
}

// meter draws how far an operation is.
func meter(p chain.Progress, width int) string {
	full := int(percentOf(p)) * width / 100
	return "[" + strings.Repeat("#", full) + strings.Repeat(".", width-full) + "]"
}

// percentOf is percent, and 0 for what has not begun.
func percentOf(p chain.Progress) int64 {
	if statusOf(p) != chain.Running && p.Done == 0 {
		return 0
	}
	return percent(p)
}

// say says what has changed since it was last said.
func (v *watch) say(ops control.Operations) error {
	for _, p := range inOrder(ops) {
		if err := v.sayOne(p); err != nil {
			return err
		}
	}
	for _, op := range v.ended(ops) {
		if err := v.line(op, endOf(op)); err != nil {
			return err
		}
	}
	return nil
}

// ended are the operations that were followed and have ended since the last look.
func (v *watch) ended(ops control.Operations) []chain.Operation {
	var all []chain.Operation
	for _, op := range ops.Past {
		if said, was := v.said[op.ID]; was && said != hasEnded && !op.State.Running() {
			v.said[op.ID] = hasEnded
			all = append(all, op)
		}
	}
	return all
}

// hasEnded stands for what was said of an operation when it had ended.
const hasEnded = "ended"

// sayOne says an operation unless nothing that matters has changed: its status,
// its reason, or the tens of percent that it has done.
func (v *watch) sayOne(p chain.Progress) error {
	key := fmt.Sprint(statusOf(p), p.Reason, p.Tries, percentOf(p)/10)
	if said, was := v.said[p.Op]; was && said == key {
		return nil
	}
	v.said[p.Op] = key
	text := fmt.Sprintf("%s %s %s: ", p.Op, p.Act, someOf(p.Paths))
	if statusOf(p) != chain.Running {
		return v.line(p, text+sentence(p, time.Now()))
	}
	return v.line(p, text+joinNonEmpty("  ", fmt.Sprintf("%d%%, %s to do", percentOf(p), toDo(p)), pace(p)))
}

func endOf(op chain.Operation) string {
	text := fmt.Sprintf("%s %s %s: %s", op.ID, op.Act, someOf(op.Plan.Paths), op.State)
	if op.Error != "" {
		text += ": " + chain.Printable(op.Error)
	}
	return text
}

// line prints a change, as JSON where that was asked for.
func (v *watch) line(what any, text string) error {
	if !v.json {
		_, err := fmt.Fprintln(v.w, text)
		return err
	}
	enc := json.NewEncoder(v.w)
	enc.SetEscapeHTML(false)
	return enc.Encode(what)
}
