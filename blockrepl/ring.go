package blockrepl

import (
	"sync"
	"sync/atomic"

	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: the volume's loop, with every record handed to the journal.
// Does: keeps the newest records in memory, within a budget of bytes; those that
// applier and senders have yet to read, within twice as many.
// Goes to: applier and senders, which so seldom read the journal.

// ringBudget is the memory that the rings of all volumes share.
type ringBudget struct {
	max   int64
	share atomic.Int64 // what each volume may always keep
	used  atomic.Int64
}

func newRingBudget(bytesMax int64, volumes int) *ringBudget {
	b := &ringBudget{max: bytesMax}
	b.share.Store(max(ringShareMin, bytesMax/int64(max(1, volumes))))
	return b
}

// ring holds the records first .. first+count-1 of one volume.
//
// Invariant: slots[(head+i) % len(slots)] is record first+i for every i < count;
// len(slots) is zero or a power of two.
type ring struct {
	budget *ringBudget

	mu    sync.RWMutex
	slots []*record.Record
	head  int
	count int
	first record.Seq
	bytes int64
}

// add appends records that follow each other; a hole before them empties the
// ring first. The oldest go until the budget is kept, those above applied only when
// twice the budget is used; the newest stays in any case.
func (r *ring) add(recs []*record.Record, applied record.Seq) {
	if len(recs) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.count > 0 && recs[0].Seq != r.first+record.Seq(r.count) {
		r.clearLocked()
	}
	for _, rec := range recs {
		if r.count == 0 {
			r.first = rec.Seq
		}
		if r.count == len(r.slots) {
			r.growLocked()
		}
		r.slots[(r.head+r.count)&(len(r.slots)-1)] = rec
		r.count++
		r.accountLocked(cost(rec))
	}
	share := r.budget.share.Load()
	for r.count > 1 && r.bytes > share && r.budget.used.Load() > r.budget.max {
		if r.first > applied && r.budget.used.Load() <= 2*r.budget.max {
			break
		}
		r.dropFirstLocked()
	}
}

// cost is what a record takes of the budget, in bytes: its array and the slot.
func cost(rec *record.Record) int64 { return int64(cap(rec.Raw)) + 256 }

func (r *ring) accountLocked(n int64) {
	r.bytes += n
	r.budget.used.Add(n)
}

func (r *ring) growLocked() {
	grown := make([]*record.Record, max(64, 2*len(r.slots)))
	for i := range r.count {
		grown[i] = r.slots[(r.head+i)&(len(r.slots)-1)]
	}
	r.slots, r.head = grown, 0
}

func (r *ring) dropFirstLocked() {
	r.accountLocked(-cost(r.slots[r.head]))
	r.slots[r.head] = nil
	r.head = (r.head + 1) & (len(r.slots) - 1)
	r.count--
	r.first++
}

func (r *ring) clearLocked() {
	for r.count > 0 {
		r.dropFirstLocked()
	}
	r.slots, r.head = nil, 0
}

// clear forgets everything: a reset journal, or a closing volume.
func (r *ring) clear() {
	r.mu.Lock()
	r.clearLocked()
	r.mu.Unlock()
}

// cut forgets the records above last.
func (r *ring) cut(last record.Seq) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.count > 0 && r.first+record.Seq(r.count)-1 > last {
		r.count--
		i := (r.head + r.count) & (len(r.slots) - 1)
		r.accountLocked(-cost(r.slots[i]))
		r.slots[i] = nil
	}
}

// get appends the records from..to to dst as far as they are held without a gap,
// at most recordsMax of them and bytesMax encoded bytes (but at least one). It
// appends nothing when from is not held.
func (r *ring) get(dst []*record.Record, from, to record.Seq, recordsMax int, bytesMax int64) []*record.Record {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if from < r.first || from >= r.first+record.Seq(r.count) {
		return dst
	}
	last := min(to, r.first+record.Seq(r.count)-1)
	var n int64
	for seq, added := from, 0; seq <= last && added < recordsMax; seq, added = seq+1, added+1 {
		rec := r.slots[(r.head+int(seq-r.first))&(len(r.slots)-1)]
		n += int64(len(rec.Raw))
		if n > bytesMax && added > 0 {
			break
		}
		dst = append(dst, rec)
	}
	return dst
}

// has reports whether the ring holds record seq.
func (r *ring) has(seq record.Seq) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return seq >= r.first && seq < r.first+record.Seq(r.count)
}
