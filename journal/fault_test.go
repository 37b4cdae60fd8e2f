package journal

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/blockrepl/blockrepl/journal/record"
)

// Each changing call of a workload to the file system fails, once or from then on.
// Whatever happens then: nothing that Wait confirmed is lost, no success follows
// the failure, and the journal can be closed.
func TestErrorAtEveryCall(t *testing.T) {
	for _, sticky := range []bool{false, true} {
		hits, results := 0, map[string]int{}
		for n := 0; ; n++ {
			f := &faults{at: int64(n), sticky: sticky}
			result := f.run(t)
			if !f.hit.Load() {
				break
			}
			hits++
			results[result]++
		}
		t.Logf("sticky %t: %d calls failed: %v", sticky, hits, results)
		if hits < 50 || results["failed"] == 0 || results["not opened"] == 0 {
			t.Errorf("sticky %t: %d calls failed: %v; want at least 50 of all kinds", sticky, hits, results)
		}
	}
}

// faults fails the at-th changing call.
type faults struct {
	at     int64
	sticky bool
	hit    atomic.Bool
	calls  atomic.Int64
}

func (f *faults) String() string { return fmt.Sprintf("call %d, sticky %t", f.at, f.sticky) }

// MaybeError is part of errorfs.Injector.
func (f *faults) MaybeError(op errorfs.Op) error {
	if op.Kind.ReadOrWrite() != errorfs.OpIsWrite || op.Kind == errorfs.OpLock {
		return nil
	}
	n := f.calls.Add(1) - 1
	if n == f.at || f.sticky && n > f.at {
		f.hit.Store(true)
		return syscall.EIO
	}
	return nil
}

// run writes until something fails, and checks what a crash then leaves.
func (f *faults) run(t *testing.T) (result string) {
	fs := vfs.NewCrashableMem()
	o := options(t, errorfs.Wrap(fs, f))
	o.Logger = nil
	o.MemTableBytes = 64 << 10
	var acked atomic.Uint64
	var written atomic.Uint64
	result = f.load(t, o, &acked, &written)
	sure := acked.Load()
	o.FS = fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rand.New(rand.NewPCG(uint64(f.at), 7))})
	j, err := Open(o)
	if err != nil {
		t.Fatalf("%s: after %s: %v", f, result, err)
	}
	l, err := j.Log(vol1)
	if err != nil {
		t.Fatalf("%s: after %s: %v", f, result, err)
	}
	if last := uint64(l.Last().Seq); last < sure || last > written.Load() {
		t.Fatalf("%s: after %s the log ends at %d; %d were acknowledged, %d written", f, result, last, sure, written.Load())
	}
	if rep, err := l.Verify(t.Context(), nil); err != nil || rep.Err() != nil {
		t.Fatalf("%s: after %s: %v, %v", f, result, err, rep.Err())
	}
	mustClose(t, j)
	return result
}

func (f *faults) load(t *testing.T, o Options, acked, written *atomic.Uint64) string {
	j, err := Open(o)
	if err != nil {
		return "not opened"
	}
	l, err := j.Log(vol1)
	if err != nil {
		return "not opened"
	}
	prev := record.Pos{}
	for range 60 {
		recs := chain(vol1, prev, 3, 2000)
		prev = recs[2].Pos()
		written.Store(uint64(prev.Seq)) // before: it may reach the disk at once
		p, err := l.Write(Batch{Records: recs})
		if err == nil {
			err = p.Wait()
		}
		if err != nil {
			if !errors.Is(err, ErrFailed) || !errors.Is(j.Err(), ErrFailed) {
				t.Errorf("%s: error is %v, want ErrFailed", f, err)
			}
			f.nothingSucceeds(t, j, l)
			return "failed"
		}
		acked.Store(uint64(prev.Seq))
		if prev.Seq%10 == 0 {
			if err := l.Trim(prev.Seq - 5); err != nil {
				f.nothingSucceeds(t, j, l)
				return "failed"
			}
		}
	}
	if err := j.Close(); err != nil {
		return "not closed"
	}
	return "survived"
}

// nothingSucceeds checks that the first failure was the last word.
func (f *faults) nothingSucceeds(t *testing.T, j *Journal, l *Log) {
	for range 3 {
		if _, err := l.Write(Batch{Records: chain(vol1, l.Last(), 1, 10)}); !errors.Is(err, ErrFailed) {
			t.Errorf("%s: a write after the failure: %v", f, err)
		}
	}
	if _, err := l.Write(Batch{}); !errors.Is(err, ErrFailed) {
		t.Errorf("%s: an empty write after the failure: %v", f, err)
	}
	if err := l.Trim(l.First()); err == nil {
		t.Errorf("%s: a trim after the failure succeeded", f)
	}
	if err := j.Close(); !errors.Is(err, ErrFailed) {
		t.Errorf("%s: Close: %v, want ErrFailed", f, err)
	}
}

// A sync that fails once and then works again must not make later writes durable
// by accident: several were on their way.
func TestFailedSyncIsFinalForAllThatFollow(t *testing.T) {
	var broken atomic.Bool
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if (op.Kind == errorfs.OpFileSync || op.Kind == errorfs.OpFileSyncData || op.Kind == errorfs.OpFileSyncTo || op.Kind == errorfs.OpFileFlush) && broken.CompareAndSwap(true, false) {
			return syscall.EIO
		}
		return nil
	}))
	o := options(t, fs)
	o.Logger = nil
	j, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	l, other := mustLog(t, j, vol1), mustLog(t, j, vol2)
	recs := chain(vol1, record.Pos{}, 20, 100)
	mustWrite(t, l, Batch{Records: recs[:1]})
	broken.Store(true)
	var pending []*Pending
	for _, r := range recs[1:] {
		p, err := l.Write(Batch{Records: []*record.Record{r}})
		if err != nil {
			break
		}
		pending = append(pending, p)
	}
	failed := false
	for i, p := range pending {
		switch err := p.Wait(); {
		case err == nil && failed:
			t.Errorf("write %d succeeded after an earlier one failed", i)
		case err != nil && !errors.Is(err, ErrFailed):
			t.Errorf("write %d: %v, want ErrFailed", i, err)
		case err != nil:
			failed = true
			if again := p.Wait(); !errors.Is(again, ErrFailed) {
				t.Errorf("second Wait of write %d: %v", i, again)
			}
		}
	}
	if !failed {
		t.Fatal("no write failed")
	}
	if _, err := other.Write(Batch{Records: chain(vol2, record.Pos{}, 1, 10)}); !errors.Is(err, ErrFailed) {
		t.Errorf("write to another volume: %v, want ErrFailed", err)
	}
	if err := j.Close(); !errors.Is(err, ErrFailed) {
		t.Errorf("Close: %v, want ErrFailed", err)
	}
}
