package replica

import (
	"fmt"
	"slices"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: sealed records, changes of the small state. Does: orders journal batches,
// and draws what follows when they are durable; knows the sums of what is kept.
// Goes to: Store, then Stored; Ack.

// storing is a Store under way: what becomes true when it is durable.
type storing struct {
	id  uint64
	seq record.Seq // numbers through this are durable; 0: no records
	// following is Hard.Following in it; zero: no Hard.
	following record.Epoch
	act       func()
}

// push appends a sealed record behind last; it is stored at the end of the Step.
func (r *Replica) push(rec *record.Record) {
	if rec.Seq != r.last.Seq+1 || rec.Prev != r.last.Sum {
		panic(fmt.Sprintf("blockrepl: bug: record %d behind %v", rec.Seq, r.last))
	}
	r.last = rec.Pos()
	r.sums.need = r.durable // a greeting names it, however long the disk takes
	r.sums.push(rec.Sum)
	r.kept.add(rec.Seq, int64(len(rec.Raw)))
	r.plain.add(rec.Seq, rec.PlainBytes())
	r.batch = append(r.batch, rec)
	if changesTable(rec.Kind) {
		r.marks = append(r.marks, rec)
		r.tableChanged(rec)
	}
}

// flush hands the Step's records to the journal in one batch.
func (r *Replica) flush() {
	if len(r.batch) == 0 {
		return
	}
	s := Store{Records: r.batch}
	r.batch = nil
	if r.memDirty >= 1024 {
		s.Memory = r.memoryCopy()
	}
	r.storeSeq(s, r.last.Seq, nil)
}

// store orders a journal batch; act runs when it is durable.
func (r *Replica) store(s Store, act func()) {
	r.flush()
	r.storeSeq(s, 0, act)
}

func (r *Replica) storeSeq(s Store, seq record.Seq, act func()) {
	r.storeID++
	s.ID = r.storeID
	if len(r.storing) == 0 {
		r.synced = r.now
	}
	r.out.Stores = append(r.out.Stores, s)
	w := storing{id: s.ID, seq: seq, act: act}
	if s.Hard != nil {
		w.following = s.Hard.Following
	}
	r.storing = append(r.storing, w)
}

// saveHard stores the small state whole.
func (r *Replica) saveHard(act func()) {
	r.store(Store{Hard: r.hardCopy()}, act)
}

func (r *Replica) hardCopy() *Hard {
	h := r.hard
	h.History = slices.Clone(h.History)
	if h.Resync != nil {
		m := *h.Resync
		h.Resync = &m
	}
	return &h
}

func (r *Replica) memoryCopy() []wire.Memory {
	r.memDirty = 0
	return slices.Clone(r.memory)
}

// stored takes in that journal batches are durable.
func (r *Replica) stored(id uint64) {
	before := r.durable
	for len(r.storing) > 0 && r.storing[0].id <= id {
		s := r.storing[0]
		r.storing, r.synced = r.storing[1:], r.now
		r.durable = max(r.durable, s.seq)
		if !s.following.IsZero() {
			r.followed = s.following
		}
		if s.act != nil {
			s.act()
		}
	}
	if r.durable > before {
		r.ackDurable()
	}
}

// cutTo removes everything above to from this server's idea of its journal. The
// caller orders the Store.
func (r *Replica) cutTo(to record.Pos) {
	if to.Seq < r.applyTo {
		panic(fmt.Sprintf("blockrepl: bug: cut to %d below applied %d", to.Seq, r.applyTo))
	}
	r.flush()
	r.last = to
	r.durable = min(r.durable, to.Seq)
	for i := range r.storing {
		r.storing[i].seq = min(r.storing[i].seq, to.Seq)
	}
	r.sums.cut(to)
	r.kept.cut(to.Seq)
	r.plain.cut(to.Seq)
	for len(r.marks) > 0 && r.marks[len(r.marks)-1].Seq > to.Seq {
		r.marks = r.marks[:len(r.marks)-1]
	}
	r.renumberTable()
	r.unfind(to.Seq)
}

// renumberTable makes the numbered table again from the applied one.
func (r *Replica) renumberTable() {
	r.numbered = r.table.clone()
	for _, m := range r.marks {
		r.numbered.apply(m, r.hard.State.Shared)
	}
}

type lookup struct {
	seq record.Seq
	act func(record.Pos, bool)
}

// looked answers the lookups of a number.
func (r *Replica) looked(ev Looked) {
	var acts []func(record.Pos, bool)
	r.lookups = slices.DeleteFunc(r.lookups, func(l lookup) bool {
		if l.seq == ev.Seq {
			acts = append(acts, l.act)
		}
		return l.seq == ev.Seq
	})
	for _, act := range acts { // may look up more
		act(ev.Pos, ev.OK)
	}
}

// sumAt finds the header sum of a number, at once or after a look into the journal.
// With mend the other servers give what is damaged there, if they can.
func (r *Replica) sumAt(seq record.Seq, mend bool, act func(record.Pos, bool)) {
	if sum, ok := r.sums.at(seq); ok {
		act(record.Pos{Seq: seq, Sum: sum}, true)
		return
	}
	if seq+1 < r.first || seq > r.last.Seq { // the first record kept tells the sum before it
		act(record.Pos{}, false)
		return
	}
	r.lookups = append(r.lookups, lookup{seq, act})
	r.out.Lookups = append(r.out.Lookups, Lookup{seq, mend})
}
