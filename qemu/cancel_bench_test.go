package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/chainfs/chainfs/chain"
	"golang.org/x/sys/unix"
)

// BenchmarkCancel tells how long a job of 1 GiB takes from the cancelling to its
// return: so long does a user wait whose deletion comes while the reclaimer works.
// It is cancelled at tries moments, evenly spread over how long the job takes. The
// file system is that of the directory for temporary files.
func BenchmarkCancel(b *testing.B) {
	needQemu(b)
	for _, c := range []struct {
		name string
		opts Options
		job  func(tr *tree) chain.RebaseJob
	}{
		{"in place", Options{}, bigJob},
		{"in place, unverified", Options{Verify: VerifyNever}, bigJob},
		{"by a copy", Options{ByCopy: true}, bigJob},
		{"downwards", Options{}, bigMerge},
	} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				benchmarkCancel(b, c.opts, c.job)
			}
		})
	}
}

func benchmarkCancel(b *testing.B, opts Options, job func(tr *tree) chain.RebaseJob) {
	const tries = 6
	_, all := timeCancel(b, opts, job, time.Hour)
	var late []time.Duration
	worst := time.Duration(0)
	for i := range tries {
		after := all * time.Duration(2*i+1) / (2 * tries)
		took, _ := timeCancel(b, opts, job, after)
		if late = append(late, took); took > worst {
			worst = took
		}
	}
	b.Log(late)
	slices.Sort(late)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(all.Seconds(), "s/job")
	b.ReportMetric(late[len(late)/2].Seconds()*1e3, "median-ms")
	b.ReportMetric(worst.Seconds()*1e3, "worst-ms")
}

// timeCancel runs a new job, which is cancelled after a time, and tells how long
// it took from then on, and in all.
func timeCancel(b *testing.B, opts Options, job func(tr *tree) chain.RebaseJob, after time.Duration) (late, all time.Duration) {
	dir, err := os.MkdirTemp("", "cancel")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	tr := &tree{t: b, dir: dir}
	j := job(tr)
	tr.settle()
	r := NewRebaser(tr, opts)
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	begin := time.Now()
	var cancelled time.Time
	timer := time.AfterFunc(after, func() { cancelled = time.Now(); cancel() })
	defer timer.Stop()
	if j.Merge != nil {
		err = r.MergeDown(ctx, *j.Merge, nil)
	} else {
		err = r.Rebase(ctx, j, nil)
	}
	end := time.Now()
	if ctx.Err() == nil {
		if err != nil {
			b.Fatal(err)
		}
		return 0, end.Sub(begin)
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		b.Fatal(err)
	}
	return end.Sub(cancelled), end.Sub(begin)
}

// settle has what was prepared on the disk, and out of the page cache.
func (tr *tree) settle() {
	for _, p := range []chain.Path{"0/full", "1/a", "2/b"} {
		f, err := os.OpenFile(tr.host(p), os.O_RDWR, 0)
		if err != nil {
			tr.t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			tr.t.Fatal(err)
		}
		_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
		f.Close()
	}
}

// big makes full <- a <- b with so many MiB in a and b, in different places.
func (tr *tree) big(a, b int) {
	tr.chain()
	// b first: where its parent is longer already, qemu-img makes what is new zeros.
	for _, p := range []chain.Path{"2/b", "1/a"} {
		tr.qemu("qemu-img", "resize", "-q", "-f", "qcow2", string(p), "4G")
	}
	tr.writeMany("1/a", 64, a)
	tr.writeMany("2/b", 2112, b)
}

// writeMany writes so many MiB at an offset, in MiB.
func (tr *tree) writeMany(p chain.Path, at, mib int) {
	args := []string{"-t", "writeback", "-f", "qcow2"}
	for n := 0; n < mib; n += 64 {
		args = append(args, "-c", fmt.Sprintf("write -P %d %dM %dM", 1+n/64%250, at+n, min(64, mib-n)))
	}
	tr.qemu("qemu-io", append(args, string(p))...)
}

func bigJob(tr *tree) chain.RebaseJob {
	tr.big(1024, 16)
	job := tr.job()
	job.Bytes = 1024 << 20
	return job
}

func bigMerge(tr *tree) chain.RebaseJob {
	tr.big(64, 1024)
	job := tr.job()
	a := tr.stat("1/a").Identity
	job.Merge = &chain.MergeJob{
		Op: 7, Child: "2/b", Before: job.Identity, Parent: "1/a", Identity: a,
		NewName: "../0/full", Format: chain.QCOW2, Scratch: job.Scratch,
		Unneeded: func(context.Context, chain.Path) error { return nil },
	}
	return job
}
