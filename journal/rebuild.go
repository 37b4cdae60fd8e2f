package journal

import (
	"errors"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"github.com/blockrepl/blockrepl/journal/record"
)

// rebuilt is a log as its records tell it, where its own state is damaged.
type rebuilt struct {
	state  state // without segments where no record is whole
	last   record.Pos
	offset uint64     // of last
	aside  []keyRange // what does not hang together with it
	end    record.Seq // the highest number of that, as far as is known
}

// rebuild finds the log among the keys that no quarantine holds: the highest whole
// record of the highest segment, and what its chain of sums reaches downwards. Records
// that were trimmed may be among it, and a cut that left its segment empty may be
// undone: that is why the caller must not believe it.
func (l *Log) rebuild() (b rebuilt, err error) {
	runs, err := l.runs()
	if err != nil {
		return b, err
	}
	b.state.highest = l.state.highest
	for _, r := range slices.Backward(runs) {
		if err := b.take(l, r); err != nil {
			return b, err
		}
	}
	return b, nil
}

// take adds the whole records of a run to the log below what it has, or sets all of it
// aside.
func (b *rebuilt) take(l *Log, r keyRange) error {
	first, err := l.wholeOf(r, false)
	if err != nil || first == nil {
		b.leave(r)
		return err
	}
	end := b.state.begin
	if len(b.state.segments) == 0 {
		last, err := l.wholeOf(r, true)
		if err != nil {
			return err
		}
		end = last.pos
		b.last, b.offset = last.pos, last.offset
	} else if there, err := l.holds(r, end); err != nil || !there {
		b.leave(r)
		return err
	}
	b.state.segments = append([]segment{{r.Segment, first.pos.Seq}}, b.state.segments...)
	b.state.begin, b.state.beginOffset = record.Pos{Seq: first.pos.Seq - 1, Sum: first.prev}, first.offset-first.size
	b.leave(keyRange{r.Segment, r.First, first.pos.Seq - 1})
	b.leave(keyRange{r.Segment, end.Seq + 1, r.Last})
	return nil
}

func (b *rebuilt) leave(r keyRange) {
	if r.First <= r.Last {
		b.aside, b.end = append(b.aside, r), max(b.end, r.Last)
	}
}

// holds reports whether the run has the record at pos, whole.
func (l *Log) holds(r keyRange, pos record.Pos) (bool, error) {
	if pos.Seq < r.First || pos.Seq > r.Last {
		return false, nil
	}
	rec, _, err := l.j.getRecord(l.v, r.Segment, pos.Seq)
	var c *CorruptError
	if errors.As(err, &c) {
		return false, nil
	}
	return err == nil && rec.Pos() == pos, err
}

// wholeOf gives the place of the run's first whole record, or of its last; nil when it
// has none.
func (l *Log) wholeOf(r keyRange, last bool) (*place, error) {
	for n := range r.Last - r.First + 1 {
		seq := r.First + n
		if last {
			seq = r.Last - n
		}
		rec, offset, err := l.j.getRecord(l.v, r.Segment, seq)
		if err == nil {
			return &place{rec.Pos(), rec.Prev, offset, uint64(len(rec.Raw))}, nil
		}
		var c *CorruptError
		if !errors.As(err, &c) {
			return nil, err
		}
	}
	return nil, nil
}

// runs gives what lies under the volume's record keys outside of the quarantines, by
// segment, ascending. There may be holes in it.
func (l *Log) runs() (out []keyRange, err error) {
	for _, s := range l.unclaimed {
		it, err := l.j.db.NewIter(&pebble.IterOptions{LowerBound: s.lo, UpperBound: s.hi})
		if err != nil {
			return nil, readError(l.v, 0, err)
		}
		for ok := it.First(); ok; {
			id, first, _ := parseRecordKey(it.Key())
			next := recordKey(l.v, id+1, 0)
			if !it.SeekLT(next) {
				break // another seek would forget why
			}
			_, last, _ := parseRecordKey(it.Key())
			out = append(out, keyRange{id, first, last})
			ok = it.SeekGE(next)
		}
		if err := errors.Join(it.Error(), it.Close()); err != nil {
			return nil, readError(l.v, 0, err)
		}
	}
	return out, nil
}
