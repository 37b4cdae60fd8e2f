package journal

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/blockrepl/blockrepl/journal/mutant"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Get gives one record, verified, in memory of its own. ErrTrimmed below First,
// ErrNotYet above Last, *CorruptError when it is damaged or missing.
func (l *Log) Get(seq record.Seq) (*record.Record, error) {
	if err := l.within(seq); err != nil {
		return nil, err
	}
	r, _, err := l.get(seq)
	if err != nil {
		return nil, l.orTrimmed(seq, err)
	}
	return r, nil
}

// Position gives the number's position, of the last trimmed record too, from its header
// or from what stands behind it: a damaged payload does not hinder. ErrTrimmed below
// First-1, ErrNotYet above Last, *CorruptError when nothing tells it.
func (l *Log) Position(seq record.Seq) (record.Pos, error) {
	err := l.within(seq)
	if errors.Is(err, ErrTrimmed) && seq == l.Begin().Seq {
		err = nil
	}
	if err != nil {
		return record.Pos{}, err
	}
	pos, _, err := l.positionOrNext(seq)
	if err != nil {
		return record.Pos{}, l.orTrimmed(seq, err)
	}
	return pos, nil
}

// Read calls fn for the records from..to in order, verified each by itself and
// against the one before, until maxBytes of them were given (at least one) or fn
// returns an error. It returns the number to continue with. A record is fn's to
// keep. ErrTrimmed and ErrNotYet are about from, or about what a trim or a cut takes
// meanwhile; to may be behind the end.
func (l *Log) Read(from, to record.Seq, maxBytes int, fn func(*record.Record) error) (next record.Seq, err error) {
	if err := l.within(from); err != nil {
		return from, err
	}
	l.mu.RLock()
	last, begin := l.last, l.state.begin
	ranges := l.state.ranges(from, min(to, last.Seq))
	l.mu.RUnlock()
	c := cursor{l: l, next: from, left: min(maxBytes, readBytesMax), fn: fn}
	if from == begin.Seq+1 {
		c.prev = &begin
	}
	for _, r := range ranges {
		if err := c.run(r); err != nil {
			return c.next, l.orCut(r.Segment, c.next, l.orTrimmed(c.next, err))
		}
		if c.left <= 0 {
			break
		}
	}
	return c.next, nil
}

// within says whether seq is in First..Last.
func (l *Log) within(seq record.Seq) error {
	if err := l.j.usable(); err != nil {
		return err
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	switch {
	case seq <= l.state.begin.Seq:
		return fmt.Errorf("read record %d of volume %s, the first kept is %d: %w", seq, l.v, l.state.begin.Seq+1, ErrTrimmed)
	case l.bad != nil:
		return l.bad
	case seq > l.last.Seq:
		return fmt.Errorf("read record %d of volume %s, the last is %d: %w", seq, l.v, l.last.Seq, ErrNotYet)
	}
	return nil
}

// orTrimmed turns a hole into ErrTrimmed when the record was trimmed meanwhile.
func (l *Log) orTrimmed(seq record.Seq, err error) error {
	if errors.Is(err, ErrMissing) {
		if e := l.within(seq); e != nil {
			return e
		}
	}
	return err
}

// orCut turns a hole in a segment into ErrNotYet when seq was cut off it meanwhile.
func (l *Log) orCut(segment uint32, seq record.Seq, err error) error {
	l.mu.RLock()
	now := l.state.segmentOf(seq)
	l.mu.RUnlock()
	if now != segment && errors.Is(err, ErrMissing) {
		return fmt.Errorf("read record %d of volume %s, it was cut meanwhile: %w", seq, l.v, ErrNotYet)
	}
	return err
}

// get reads and verifies one record of the log's segments, with its offset.
func (l *Log) get(seq record.Seq) (*record.Record, uint64, error) {
	l.mu.RLock()
	id := l.state.segmentOf(seq)
	l.mu.RUnlock()
	return l.j.getRecord(l.v, id, seq)
}

func (j *Journal) getRecord(v record.VolumeID, segment uint32, seq record.Seq) (*record.Record, uint64, error) {
	if err := j.readers.enter(); err != nil {
		return nil, 0, err
	}
	defer j.readers.leave()
	value, closer, err := j.db.Get(recordKey(v, segment, seq))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, 0, &CorruptError{v, seq, ErrMissing}
	}
	if err != nil {
		return nil, 0, readError(v, seq, err)
	}
	r, offset, err := decodeValue(v, seq, value)
	return r, offset, errors.Join(err, closer.Close())
}

// readError tells damage of a table, which concerns one record, from a disk that
// does not answer.
func readError(v record.VolumeID, seq record.Seq, err error) error {
	if pebble.IsCorruptionError(err) {
		return &CorruptError{v, seq, err}
	}
	return fmt.Errorf("read record %d of volume %s: %w", seq, v, err)
}

// decodeValue copies and verifies the value of a record's key.
func decodeValue(v record.VolumeID, seq record.Seq, value []byte) (*record.Record, uint64, error) {
	if len(value) < offsetLen+record.HeaderSize || len(value) > offsetLen+largestRecord {
		return nil, 0, &CorruptError{v, seq, fmt.Errorf("%w: value of %d bytes", record.ErrCorrupt, len(value))}
	}
	raw := record.AllocRaw(len(value) - offsetLen)
	copy(raw, value[offsetLen:])
	r, err := record.Decode(raw)
	if err != nil {
		return nil, 0, &CorruptError{v, seq, err}
	}
	if r.Volume != v || r.Seq != seq {
		return nil, 0, &CorruptError{v, seq, fmt.Errorf("%w: it is record %d of volume %s", record.ErrCorrupt, r.Seq, r.Volume)}
	}
	offset := binary.LittleEndian.Uint64(value)
	if offset < uint64(len(r.Raw)) {
		return nil, 0, &CorruptError{v, seq, fmt.Errorf("%w: offset %d", record.ErrCorrupt, offset)}
	}
	return r, offset, nil
}

// place is where a record stands, without its payload.
type place struct {
	pos    record.Pos
	prev   uint64 // header sum of the record before
	offset uint64 // behind the record
	size   uint64
}

// place reads a record's header. A damaged payload does not hinder.
func (l *Log) place(seq record.Seq) (p place, err error) {
	l.mu.RLock()
	id := l.state.segmentOf(seq)
	l.mu.RUnlock()
	if err := l.j.readers.enter(); err != nil {
		return p, err
	}
	defer l.j.readers.leave()
	value, closer, err := l.j.db.Get(recordKey(l.v, id, seq))
	if errors.Is(err, pebble.ErrNotFound) {
		return p, &CorruptError{l.v, seq, ErrMissing}
	}
	if err != nil {
		return p, readError(l.v, seq, err)
	}
	defer func() { err = errors.Join(err, closer.Close()) }()
	if len(value) < offsetLen+record.HeaderSize {
		return p, &CorruptError{l.v, seq, fmt.Errorf("%w: value of %d bytes", record.ErrCorrupt, len(value))}
	}
	h, err := record.DecodeHeader(value[offsetLen:])
	if err != nil {
		return p, &CorruptError{l.v, seq, err}
	}
	p = place{h.Pos(), h.Prev, binary.LittleEndian.Uint64(value), uint64(len(value) - offsetLen)}
	if h.Volume != l.v || h.Seq != seq || p.offset < p.size {
		return p, &CorruptError{l.v, seq, fmt.Errorf("%w: it is record %d of volume %s at offset %d", record.ErrCorrupt, h.Seq, h.Volume, p.offset)}
	}
	return p, nil
}

// position gives the position and offset of a number from begin to last.
func (l *Log) position(seq record.Seq) (record.Pos, uint64, error) {
	l.mu.RLock()
	pos, offset := l.last, l.offset
	if seq == l.state.begin.Seq {
		pos, offset = l.state.begin, l.state.beginOffset
	}
	l.mu.RUnlock()
	if seq == pos.Seq {
		return pos, offset, nil
	}
	p, err := l.place(seq)
	return p.pos, p.offset, err
}

// positionOrNext is position, told by the record behind when the record itself cannot
// be read.
func (l *Log) positionOrNext(seq record.Seq) (record.Pos, uint64, error) {
	pos, offset, err := l.position(seq)
	if err == nil {
		return pos, offset, nil
	}
	next, err2 := l.place(seq + 1)
	if err2 != nil {
		return record.Pos{}, 0, errors.Join(err, err2)
	}
	return record.Pos{Seq: seq, Sum: next.prev}, next.offset - next.size, nil
}

// cursor gives records in order to fn.
type cursor struct {
	l    *Log
	next record.Seq
	prev *record.Pos // of next-1; nil: not known
	left int         // bytes
	fn   func(*record.Record) error

	ahead      []*record.Record // read, not given yet
	aheadBytes int              // what the last collect might read
}

// run gives the records of one range, first by an iterator. Where that meets
// damage, by a Get for each: a damaged block hides its neighbours from an iterator
// even when they were replaced since.
func (c *cursor) run(r keyRange) error {
	err := c.iterate(r)
	var corrupt *CorruptError
	if !errors.As(err, &corrupt) {
		return err
	}
	// Behind r.Last the damage is another range's.
	for c.next <= r.Last && c.left > 0 {
		rec, _, err := c.l.j.getRecord(c.l.v, r.Segment, c.next)
		if err == nil {
			err = c.give(rec)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *cursor) iterate(r keyRange) error {
	for c.left > 0 && c.next <= r.Last {
		err := c.collect(keyRange{r.Segment, c.next, r.Last})
		for i, rec := range c.ahead {
			c.ahead[i] = nil
			if e := c.give(rec); e != nil {
				return e
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// collect reads some records into c.ahead, and holds nothing of the database when it
// returns: an iterator keeps what is trimmed on disk, and Close from its end, for as
// long as fn likes.
func (c *cursor) collect(r keyRange) (err error) {
	c.ahead = c.ahead[:0]
	if err := c.l.j.readers.enter(); err != nil {
		return err
	}
	defer c.l.j.readers.leave()
	next := r.First
	lo, hi := r.bounds(c.l.v)
	it, err := c.l.j.db.NewIter(&pebble.IterOptions{LowerBound: lo, UpperBound: hi})
	if err != nil {
		return readError(c.l.v, next, err)
	}
	defer func() {
		if e := it.Close(); err == nil && e != nil {
			err = readError(c.l.v, next, e)
		}
	}()
	c.aheadBytes = min(max(2*c.aheadBytes, aheadMin), aheadMax)
	left := min(c.left, c.aheadBytes)
	for ok := it.First(); ok && left > 0; ok = it.Next() {
		if _, seq, good := parseRecordKey(it.Key()); !good || seq != next {
			return &CorruptError{c.l.v, next, ErrMissing}
		}
		value, err := it.ValueAndErr()
		if err != nil {
			return readError(c.l.v, next, err)
		}
		rec, _, err := decodeValue(c.l.v, next, value)
		if err != nil {
			return err
		}
		c.ahead = append(c.ahead, rec)
		next, left = next+1, left-len(rec.Raw)
	}
	if err := it.Error(); err != nil {
		return readError(c.l.v, next, err)
	}
	if left > 0 && next <= r.Last {
		return &CorruptError{c.l.v, next, ErrMissing}
	}
	return nil
}

// give checks the chain and hands the record to fn.
func (c *cursor) give(rec *record.Record) error {
	if c.prev != nil && rec.Prev != c.prev.Sum && !mutant.Is("read records that do not follow each other") {
		return &CorruptError{c.l.v, rec.Seq, fmt.Errorf("%w: prev is %016x, record %d has sum %016x", record.ErrCorrupt, rec.Prev, c.prev.Seq, c.prev.Sum)}
	}
	pos, n := rec.Pos(), len(rec.Raw) // before fn, which may free it
	if err := c.fn(rec); err != nil {
		return err
	}
	c.prev, c.next, c.left = &pos, pos.Seq+1, c.left-n
	return nil
}
