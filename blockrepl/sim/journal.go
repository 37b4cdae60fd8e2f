package sim

import (
	"errors"
	"math/rand/v2"
	"slices"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

var errDisk = errors.New("the model disk fails")

// content is what a journal holds of the volume.
type content struct {
	first  record.Seq // lowest number kept; last.Seq+1 when none is
	last   record.Pos
	recs   []*record.Record // first..last
	hard   replica.Hard
	table  replica.Table
	memory []wire.Memory
}

// journal has two views: os is what the process wrote, durable what would surely
// be there after a crash; pending lies between, in order.
type journal struct {
	os, durable content
	pending     []replica.Store
	trims       []record.Seq // beside pending: trimmed behind that store; 0: not
	syncing     bool
	rot         []spot // what cannot be read
}

func newJournal() journal {
	return journal{os: content{first: 1}, durable: content{first: 1}}
}

// get gives a kept record, nil if it is not kept.
func (c *content) get(q record.Seq) *record.Record {
	if q < c.first || q > c.last.Seq {
		return nil
	}
	return c.recs[q-c.first]
}

// sumAt is the header sum of a number, zero when it is not known.
func (c *content) sumAt(q record.Seq) uint64 {
	if q == c.last.Seq {
		return c.last.Sum
	}
	if rec := c.get(q); rec != nil {
		return rec.Sum
	}
	if rec := c.get(q + 1); rec != nil {
		return rec.Prev
	}
	return 0
}

// lookUp is the header sum of a number as the disk tells it, zero when it does not.
func (j *journal) lookUp(q record.Seq) uint64 {
	if j.spotAt(q) != nil && j.spotAt(q+1) != nil {
		return 0
	}
	return j.os.sumAt(q)
}

func (c *content) cut(to record.Pos) {
	if to.Seq+1 < c.first {
		c.recs, c.first = c.recs[:0], to.Seq+1
	} else if to.Seq < c.last.Seq {
		c.recs = c.recs[:to.Seq+1-c.first]
	}
	c.last = to
}

func (c *content) write(st *replica.Store) {
	if st.Cut != nil {
		c.cut(*st.Cut)
	}
	if st.Reset != nil {
		c.recs, c.first, c.last = nil, st.Reset.Seq+1, *st.Reset
	}
	c.recs = append(c.recs, st.Records...)
	if k := len(st.Records); k > 0 {
		c.last = st.Records[k-1].Pos()
	}
	if st.Hard != nil {
		c.hard = *st.Hard
	}
	if st.Table != nil {
		c.table = *st.Table
	}
	if st.Memory != nil {
		c.memory = st.Memory
	}
}

func (c *content) trim(through record.Seq) {
	if through < c.first {
		return
	}
	through = min(through, c.last.Seq)
	c.recs = c.recs[through+1-c.first:]
	c.first = through + 1
}

func (c *content) clone() content {
	d := *c
	d.recs = slices.Clone(c.recs)
	return d
}

func (j *journal) write(st replica.Store) {
	st.Records = slices.Clone(st.Records)
	j.heal(func(p *spot) bool {
		k := len(st.Records)
		return st.Reset != nil || st.Cut != nil && p.Seq == st.Cut.Seq || k > 0 && p.Seq >= st.Records[0].Seq && p.Seq <= st.Records[k-1].Seq
	})
	j.os.write(&st)
	j.pending = append(j.pending, st)
	j.trims = append(j.trims, 0)
}

// trim drops records. After a crash those may be back whose trim was behind the
// last durable store.
func (j *journal) trim(through record.Seq) {
	j.os.trim(through)
	if k := len(j.trims); k > 0 {
		j.trims[k-1] = through
		return
	}
	j.durable.trim(through)
}

func (j *journal) durableThrough(store uint64) {
	k := 0
	for k < len(j.pending) && j.pending[k].ID <= store {
		j.durable.write(&j.pending[k])
		if t := j.trims[k]; t != 0 {
			j.durable.trim(t)
		}
		k++
	}
	j.pending = slices.Delete(j.pending, 0, k)
	j.trims = slices.Delete(j.trims, 0, k)
}

// crash leaves what is durable and a random part of what was being written, in order.
func (j *journal) crash(r *rand.Rand) {
	if len(j.pending) > 0 {
		if k := r.IntN(len(j.pending) + 1); k > 0 {
			j.durableThrough(j.pending[k-1].ID)
		}
	}
	j.pending, j.trims, j.syncing = nil, nil, false
	j.os = j.durable.clone()
}

// loseTail takes the last records away, as a flipped bit near the end of a live
// log does: they are taken for a torn tail.
func (j *journal) loseTail(k int) record.Seq {
	c := &j.durable
	k = min(k, len(c.recs))
	if k == 0 {
		return 0
	}
	first := c.last.Seq + 1 - record.Seq(k)
	rec := c.recs[len(c.recs)-k]
	c.cut(record.Pos{Seq: first - 1, Sum: rec.Prev})
	j.heal(func(p *spot) bool { return p.Seq == first-1 })
	j.os = c.clone()
	return first
}

// saved is what a start finds.
func (j *journal) saved() replica.Saved {
	c := &j.os
	s := replica.Saved{Hard: c.hard, First: c.first, Last: c.last, Table: c.table, Memory: slices.Clone(c.memory)}
	s.Hard.History = slices.Clone(c.hard.History)
	if m := c.hard.Resync; m != nil {
		k := *m
		s.Hard.Resync = &k
	}
	s.Table.Entries = slices.Clone(c.table.Entries)
	from := max(c.first, min(c.table.AsOf, c.hard.Checkpoint)+1)
	hole := false // the number before cannot be read
	for q := from; q <= c.last.Seq; q++ {
		rec := c.get(q)
		if j.spotAt(q) != nil {
			if hole {
				s.Sums = s.Sums[:0]
			}
			s.Sums, hole = append(s.Sums, 0), true // the next record says which
			if q > c.table.AsOf {
				s.Missed = append(s.Missed, q)
			}
			continue
		}
		if q == from {
			s.Sums = append(s.Sums, rec.Prev)
		}
		if hole {
			s.Sums[len(s.Sums)-1], hole = rec.Prev, false
		}
		s.Sums = append(s.Sums, rec.Sum)
		if q > c.table.AsOf && (rec.Kind == record.KindMark || rec.Kind == record.KindResize) {
			s.Marks = append(s.Marks, rec)
		}
	}
	if len(s.Sums) == 0 && s.Last.Seq > 0 {
		s.Sums = []uint64{s.Last.Sum}
	}
	for _, rec := range c.recs {
		s.Bytes += int64(len(rec.Raw))
	}
	return s
}
