package replica

import (
	"cmp"
	"slices"

	"github.com/blockrepl/blockrepl/journal/record"
)

// window holds early records back until the missing ones have come: the record
// that is held back of the reference system. Bounded; what does not fit is
// dropped and requested again.
//
// Invariant: ascending by number, no duplicates.
type window struct {
	early []*record.Record
	bytes int
}

func (w *window) empty() bool { return len(w.early) == 0 }

func (w *window) clear() { w.early, w.bytes = nil, 0 }

// hold keeps an early record.
func (w *window) hold(rec *record.Record) {
	i, found := slices.BinarySearchFunc(w.early, rec.Seq, func(a *record.Record, s record.Seq) int { return cmp.Compare(a.Seq, s) })
	if found {
		return
	}
	w.early = slices.Insert(w.early, i, rec)
	w.bytes += len(rec.Raw)
	for len(w.early) > 1 && (len(w.early) > windowRecordsMax || w.bytes > windowBytesMax) {
		last := w.early[len(w.early)-1]
		w.early = w.early[:len(w.early)-1]
		w.bytes -= len(last.Raw)
	}
}

// first is the lowest number held.
func (w *window) first() (record.Seq, bool) {
	if len(w.early) == 0 {
		return 0, false
	}
	return w.early[0].Seq, true
}

// take removes and gives the record with number next, and drops those below it.
func (w *window) take(next record.Seq) *record.Record {
	for len(w.early) > 0 && w.early[0].Seq <= next {
		rec := w.early[0]
		w.early = w.early[1:]
		w.bytes -= len(rec.Raw)
		if rec.Seq == next {
			return rec
		}
	}
	return nil
}
