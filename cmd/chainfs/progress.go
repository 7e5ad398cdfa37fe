package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/chainfs/chainfs/chain"
	"github.com/chainfs/chainfs/cmd/chainfs/control"
)

type ctxt = context.Context

// How an operation's progress is put in words, in tables and beside bars.

// inOrder are all operations that have not ended, the oldest first.
func inOrder(ops control.Operations) []chain.Progress {
	all := slices.Concat(ops.Pending, ops.Running)
	slices.SortStableFunc(all, func(a, b chain.Progress) int { return cmp.Compare(a.Op, b.Op) })
	return all
}

// statusOf is what an operation is doing; one that was not left to the reclaimer
// has no word of its own for it.
func statusOf(p chain.Progress) chain.Status { return cmp.Or(p.Status, chain.Running) }

// toDo is how much is still to be copied.
func toDo(p chain.Progress) string {
	left := chain.Size(max(p.Total-p.Done, 0))
	if p.AtMost {
		return "≤ " + left
	}
	return left
}

func rateOf(p chain.Progress) string {
	if p.Rate <= 0 || statusOf(p) != chain.Running {
		return ""
	}
	return chain.Size(p.Rate) + "/s"
}

// leftOf is the time that is left at the rate so far, empty where it is not known.
func leftOf(p chain.Progress) string {
	if p.Rate <= 0 || statusOf(p) != chain.Running || p.Total <= p.Done {
		return ""
	}
	return span(time.Duration(float64(p.Total-p.Done) / float64(p.Rate) * float64(time.Second)))
}

func freesOf(p chain.Progress) string {
	if p.Frees <= 0 {
		return ""
	}
	return chain.Size(p.Frees)
}

// pace is how fast an operation runs, and how long it will.
func pace(p chain.Progress) string {
	left := leftOf(p)
	if left != "" {
		left += " left"
	}
	return joinNonEmpty("  ", rateOf(p), left)
}

// reasonOf is what an operation waits for, or why it failed, and when it begins or
// is tried again.
func reasonOf(p chain.Progress, now time.Time) string {
	tries, next := "", ""
	if p.Tries > 1 || p.Tries == 1 && p.Reason == "" {
		tries = "failed " + times(p.Tries)
	}
	if status := statusOf(p); !p.Next.IsZero() && (status == chain.Waiting || status == chain.Failing) {
		next = "at once"
		if in := p.Next.Sub(now); in > 0 {
			next = "in " + span(in)
		}
		if status == chain.Failing {
			next = "again " + next
		}
	}
	return joinNonEmpty("; ", chain.Printable(p.Reason), tries, next)
}

// joinNonEmpty joins those of parts that say something.
func joinNonEmpty(sep string, parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), sep)
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// span is a duration in the two largest of its units, or one.
func span(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d >= 10*day:
		return units(d, day, "d", day, "")
	case d >= day:
		return units(d, day, "d", time.Hour, "h")
	case d >= time.Hour:
		return units(d, time.Hour, "h", time.Minute, "m")
	}
	return units(d+time.Second-1, time.Minute, "m", time.Second, "s") // what is left is not 0s
}

func units(d, large time.Duration, largeName string, small time.Duration, smallName string) string {
	n, rest := d/large, d%large/small
	switch {
	case n == 0:
		return fmt.Sprintf("%d%s", rest, smallName)
	case rest == 0 || large == small:
		return fmt.Sprintf("%d%s", n, largeName)
	}
	return fmt.Sprintf("%d%s%d%s", n, largeName, rest, smallName)
}

// shown is a path as its user knows it: a condemned image under its old name.
func shown(p chain.Path) string { return called(p).String() }

func called(p chain.Path) chain.Path {
	if was := chain.Shown(p); was != p {
		return was + " (deleted)"
	}
	return p
}
