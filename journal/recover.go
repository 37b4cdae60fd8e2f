package journal

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"github.com/blockrepl/blockrepl/journal/record"
)

// Recovery of a log, in this order:
//
//  1. the state: begin mark and segments
//  2. the last key of the last segment that has one: the log's end
//  3. the end itself must be whole; else the end is not known, *CorruptError
//  4. the first record must be there and follow the begin mark
//  5. the last tailRecords must be whole and chained; damage is listed
//  6. what lies outside of begin..end and of the quarantines is garbage: trimmed and
//     not freed, or brought back by a power cut. The janitor gets what is below the
//     end, what is above is deleted at once: new records will lie there
func (l *Log) open() error {
	l.state = newState()
	err := l.readState()
	if errors.Is(err, record.ErrVersion) {
		return fmt.Errorf("open journal of volume %s: %w", l.v, err) // no damage: nothing is swept or salvaged
	}
	if err == nil {
		err = l.findEnd()
	}
	if err == nil {
		err = l.checkEnds()
	}
	if err2 := l.sweep(err); err2 != nil {
		if err != nil { // nor is it known what a Reset or Salvage may overwrite: no *CorruptError
			return fmt.Errorf("open journal of volume %s: %w; %v", l.v, err2, err)
		}
		return fmt.Errorf("open journal of volume %s: %w", l.v, err2)
	}
	return err
}

func (l *Log) readState() error {
	b, closer, err := l.j.db.Get(volumeKey(keyState, l.v))
	switch {
	case errors.Is(err, pebble.ErrNotFound):
		if l.j.readOnly {
			return fmt.Errorf("%w: %s", ErrNoVolume, l.v)
		}
		return nil
	case err != nil:
		return readError(l.v, 0, err)
	}
	defer closer.Close()
	l.exists = true
	if err := l.state.decode(b); errors.Is(err, record.ErrVersion) {
		return err
	} else if err != nil {
		return &CorruptError{l.v, 0, err}
	}
	l.known = true
	return nil
}

// findEnd looks for the last key from the last segment down. Only an empty segment
// passes the question on to the one before, whose end then is known exactly.
func (l *Log) findEnd() error {
	l.deleted, l.deletedOffset = l.state.begin.Seq, l.state.beginOffset
	l.last, l.offset = l.state.begin, l.state.beginOffset
	g := l.state.segments[len(l.state.segments)-1]
	seq, err := l.lastKey(g.ID)
	var hidden *CorruptError
	if errors.As(err, &hidden) {
		seq, err = l.probeEnd(g)
	}
	if err != nil {
		return err
	}
	seq = max(seq, g.First-1)
	if seq <= l.state.begin.Seq {
		return nil
	}
	if hidden != nil {
		l.hidden = true
		return &CorruptError{l.v, seq, hidden.Err}
	}
	r, offset, err := l.get(seq)
	if err != nil {
		return err
	}
	l.last, l.offset = r.Pos(), offset
	return nil
}

// lastKey is the highest number with a key in a segment, 0 for none.
func (l *Log) lastKey(id uint32) (record.Seq, error) {
	it, err := l.j.db.NewIter(&pebble.IterOptions{
		LowerBound: recordKey(l.v, id, 0),
		UpperBound: after(recordKey(l.v, id, 0)[:volumeKeyLen+4]),
	})
	if err != nil {
		return 0, readError(l.v, 0, err)
	}
	var seq record.Seq
	if it.Last() {
		_, seq, _ = parseRecordKey(it.Key())
	}
	if err := errors.Join(it.Error(), it.Close()); err != nil {
		return 0, readError(l.v, 0, err)
	}
	return seq, nil
}

// probeEnd is lastKey where the last keys are in a damaged block. Only a number that
// is not there gives ErrMissing, not one that is hidden, and there are no holes but
// where records were lost.
func (l *Log) probeEnd(g segment) (record.Seq, error) {
	there := func(seq record.Seq) (bool, error) {
		_, _, err := l.j.getRecord(l.v, g.ID, seq)
		var c *CorruptError
		if err != nil && !errors.As(err, &c) {
			return false, err
		}
		return !errors.Is(err, ErrMissing), nil
	}
	below := max(g.First, l.state.begin.Seq+1) - 1
	step := record.Seq(1)
	for up := true; step > 0; {
		ok, err := there(below + step)
		if err != nil {
			return 0, err
		}
		if ok {
			below += step
		}
		if up = up && ok; up {
			step *= 2
		} else {
			step /= 2
		}
	}
	return below, nil
}

// checkEnds verifies the first record and the tail. What it finds does not hinder:
// the log's end is known, and the records can be replaced.
func (l *Log) checkEnds() error {
	if l.last.Seq == l.state.begin.Seq {
		return nil
	}
	prev, seq := l.last, l.last.Seq
	bytes := 0
	for n := 0; n < tailRecords && bytes < tailBytes && seq > l.state.begin.Seq; n++ {
		next, err := l.checkOne(seq, &prev)
		if err != nil {
			return err
		}
		bytes += next
		seq--
	}
	if seq > l.state.begin.Seq {
		prev = record.Pos{}
		if _, err := l.checkOne(l.state.begin.Seq+1, &prev); err != nil {
			return err
		}
	}
	if prev.Seq == l.state.begin.Seq && prev != l.state.begin && prev.Sum != 0 {
		l.note(&CorruptError{l.v, l.state.begin.Seq + 1, fmt.Errorf("%w: prev is %016x, the log begins behind %s", record.ErrCorrupt, prev.Sum, l.state.begin)})
	}
	for _, d := range l.damage {
		l.j.o.Logger.Error("journal record is damaged; it must be fetched from another server", "volume", l.v, "seq", d.Seq, "err", d.Err)
	}
	return nil
}

// checkOne verifies record seq, whose position must be *want unless want is zero,
// and moves want to the position before it. A damaged record is noted; the chain
// then begins anew.
func (l *Log) checkOne(seq record.Seq, want *record.Pos) (bytes int, err error) {
	r, _, err := l.get(seq)
	var c *CorruptError
	if errors.As(err, &c) {
		l.note(c)
		*want = record.Pos{}
		return record.HeaderSize, nil
	}
	if err != nil {
		return 0, err
	}
	if want.Seq != 0 && r.Pos() != *want {
		l.note(&CorruptError{l.v, seq, fmt.Errorf("%w: sum is %016x, record %d has prev %016x", record.ErrCorrupt, r.Sum, seq+1, want.Sum)})
	}
	*want = record.Pos{Seq: seq - 1, Sum: r.Prev}
	return len(r.Raw), nil
}

func (l *Log) note(c *CorruptError) {
	if len(l.damage) < reportMax {
		l.damage = append(l.damage, c)
	}
}

// sweep finds keys that belong to nothing. Of a broken log it only works out what
// a Reset has to delete.
func (l *Log) sweep(openErr error) error {
	if l.j.readOnly {
		return nil
	}
	claimed, highest, err := l.quarantinedRanges()
	if openErr == nil && pebble.IsCorruptionError(err) {
		// What of the records is a quarantine's is not known, so all of it stays. Nothing
		// above the end is: it begins above every segment that was cut.
		l.j.o.Logger.Error("quarantines cannot be read, or an old value beside them; what they hold stays, and what was trimmed before the start", "volume", l.v, "err", err)
		return l.clear(span{l.end(), after(volumeKey(keyRecord, l.v))})
	}
	if err != nil {
		return err
	}
	l.state.highest = max(l.state.highest, highest)
	if openErr != nil {
		// A damaged block may hide the last of them; a state that is whole has it.
		if _, top, ok, err := l.topSegment(); err != nil && (!l.known || !pebble.IsCorruptionError(err)) {
			return err
		} else if ok && err == nil {
			l.state.highest = max(l.state.highest, top)
		}
		// Up to the segment that a Reset will begin: what it writes must stay.
		l.unclaimed = l.complement(claimed, recordKey(l.v, l.state.highest+1, 0))
		return nil
	}
	if l.last.Seq > l.state.begin.Seq {
		claimed = append(claimed, l.state.ranges(l.state.begin.Seq+1, l.last.Seq)...)
	}
	end := l.end()
	for _, s := range l.complement(claimed, end) {
		if !l.j.vacant(s) {
			l.j.janitor.add(s)
		}
	}
	return l.clear(span{end, after(volumeKey(keyRecord, l.v))})
}

// end is the key behind the log's last record.
func (l *Log) end() []byte {
	return recordKey(l.v, l.state.segments[len(l.state.segments)-1].ID, l.last.Seq+1)
}

// vacant reports whether no key is in s. What cannot be read is not vacant: damaged
// garbage is garbage.
func (j *Journal) vacant(s span) bool {
	it, err := j.db.NewIter(&pebble.IterOptions{LowerBound: s.lo, UpperBound: s.hi})
	if err != nil {
		return false
	}
	found := it.First()
	return errors.Join(it.Error(), it.Close()) == nil && !found
}

// clear deletes what lies where new records will: in order with them, while the
// janitor would take them along.
func (l *Log) clear(s span) error {
	if l.j.vacant(s) {
		return nil
	}
	b := l.j.db.NewBatch()
	if err := b.DeleteRange(s.lo, s.hi, nil); err != nil {
		return err
	}
	_, err := l.j.commit(b, false)
	return err
}

// topSegment is the highest segment id among the volume's record keys.
func (l *Log) topSegment() (seq record.Seq, id uint32, ok bool, err error) {
	lo := volumeKey(keyRecord, l.v)
	it, err := l.j.db.NewIter(&pebble.IterOptions{LowerBound: lo, UpperBound: after(lo)})
	if err != nil {
		return 0, 0, false, err
	}
	if it.Last() {
		id, seq, ok = parseRecordKey(it.Key())
	}
	return seq, id, ok, errors.Join(it.Error(), it.Close())
}

// complement gives the spans of the volume's record keys below end and outside of
// the ranges.
func (l *Log) complement(ranges []keyRange, end []byte) []span {
	slices.SortFunc(ranges, func(a, b keyRange) int {
		return slices.Compare(recordKey(l.v, a.Segment, a.First), recordKey(l.v, b.Segment, b.First))
	})
	lo := volumeKey(keyRecord, l.v)
	var out []span
	for _, s := range spans(l.v, ranges) {
		if slices.Compare(lo, s.lo) < 0 {
			out = append(out, span{lo, s.lo})
		}
		lo = s.hi
	}
	if slices.Compare(lo, end) < 0 {
		out = append(out, span{lo, end})
	}
	return out
}
