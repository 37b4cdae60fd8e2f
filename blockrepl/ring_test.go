package blockrepl

import (
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/journal/record"
	"golang.org/x/time/rate"
	"pgregory.net/rapid"
)

// chain makes records that follow each other, with payloads of n bytes.
func chain(from record.Pos, count, n int) []*record.Record {
	var recs []*record.Record
	for range count {
		p := record.Alloc(n)
		for i := range p {
			p[i] = byte(i*7 + len(recs))
		}
		rec := record.NewWrite(0, p)
		rec.Volume, rec.Origin = record.VolumeID{1}, mustID("a")
		rec.Seal(record.Epoch{Counter: 1, Server: mustID("a")}, from, 1)
		from = rec.Pos()
		recs = append(recs, rec)
	}
	return recs
}

// The ring against a plain slice of everything ever added.
func TestRingHoldsTheNewestRecords(t *testing.T) {
	all := chain(record.Pos{}, 200, 3000)
	rapid.Check(t, func(t *rapid.T) {
		b := newRingBudget(400<<10, 1)
		r := ring{budget: b}
		last, applied := 0, 0
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				n := min(rapid.IntRange(1, 30).Draw(t, "n"), len(all)-last)
				applied = min(applied+rapid.IntRange(0, 40).Draw(t, "applied"), last)
				r.add(all[last:last+n], record.Seq(applied))
				last += n
			},
			"cut": func(t *rapid.T) {
				last = rapid.IntRange(0, last).Draw(t, "last")
				applied = min(applied, last)
				r.cut(record.Seq(last))
			},
			"clear": func(*rapid.T) { r.clear() },
			"get": func(t *rapid.T) {
				from := rapid.IntRange(1, len(all)).Draw(t, "from")
				got := r.get(nil, record.Seq(from), record.Seq(last), 10, 20000)
				for i, rec := range got {
					if rec != all[from-1+i] {
						t.Fatalf("get from %d: entry %d is number %d", from, i, rec.Seq)
					}
				}
				if len(got) > 10 || len(got) > 0 && from-1+len(got) > last {
					t.Fatalf("get from %d gave %d records, the last is %d", from, len(got), last)
				}
			},
			"": func(t *rapid.T) {
				var bytes int64
				for _, rec := range r.get(nil, r.first, record.Seq(last), len(all), 1<<30) {
					bytes += cost(rec)
				}
				if bytes != r.bytes || b.used.Load() != bytes {
					t.Fatalf("accounted %d and %d bytes, held are %d", r.bytes, b.used.Load(), bytes)
				}
				if bytes > 400<<10 && r.first <= record.Seq(applied) || bytes > 800<<10 && r.count > 1 {
					t.Fatalf("%d bytes are held from %d on, the budget is %d, applied is %d", bytes, r.first, 400<<10, applied)
				}
			},
		})
	})
}

// A slave that clients waited for was slowed down like one that catches up, when their
// requests were so large that the first ones had left the ring.
func TestOnlyCommittedRecordsWaitForClientsWork(t *testing.T) {
	v := &Volume{s: &Server{opt: Options{Clock: func() replica.Time { return 1 }}}, catchUp: catchUpLimit{steady: rate.NewLimiter(1, frameBytes)}}
	v.ring.budget = newRingBudget(1<<20, 1)
	v.busyAt.Store(1)
	v.commit.Store(10)
	v.catchUp.delay(time.Now())
	if v.catchUpDelay(10) == 0 || v.catchUpDelay(11) != 0 {
		t.Errorf("record 10, committed, waits %v; 11 waits %v", v.catchUpDelay(10), v.catchUpDelay(11))
	}
	v.ring.add(chain(record.Pos{Seq: 9, Sum: 1}, 1, 512), 0)
	if d := v.catchUpDelay(10); d != 0 {
		t.Errorf("a record of the ring waits %v", d)
	}
}
