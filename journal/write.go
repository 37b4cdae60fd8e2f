package journal

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/cockroachdb/pebble/v2"

	"github.com/blockrepl/blockrepl/journal/mutant"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: the committer of a volume, one Batch after the other.
// Does: checks that it follows the log's end, puts it into pebble's WAL.
// Goes to: Pending.Wait, nil when the WAL is synced up to it.

// MetaOp sets a key of the volume to a value, or deletes it when Value is nil.
type MetaOp struct {
	Key   string
	Value []byte
}

// Cut removes all records above After. With a Quarantine name they are set aside
// under it instead, in the same step, whatever their size.
type Cut struct {
	After      record.Pos // must be a position of the log, or its Begin
	Quarantine string     // a name not in use, 1..QuarantineNameMax bytes; "" deletes
	Reason     string     // for people; kept with the quarantine
	Time       int64      // wall clock, ns since 1970; for people
}

// Batch is one step of a log, atomic: after a crash all of it is there or nothing.
//
// One exception: a Batch above BatchBytes becomes several steps. A crash may then
// leave Cut or Reset and the first of its Records, but Meta only with all of them.
type Batch struct {
	// Cut and Reset happen first, Cut before Reset: a tail that is set aside
	// outlives the records that Reset drops. A log whose end is damaged has no
	// tail to set aside; there Cut beside a Reset does nothing.
	Cut *Cut
	// Reset drops all records, not the quarantines and meta; the log then begins
	// behind the position (a resync has brought the image there).
	Reset *record.Pos
	// Records are sealed and follow each other and the log's end.
	Records []*record.Record
	// Meta changes keys in the same step.
	Meta []MetaOp
	// Urgent may use half of the reserve of free space: changes of state, and
	// records that this server is bound to keep. Client writes at the master leave
	// it false.
	Urgent bool
}

// Pending is a Batch on its way to the disk.
type Pending struct {
	j *Journal
	b *pebble.Batch
	// err is the outcome, once b is nil.
	err error
}

// Wait returns nil when the batch and all before it in this journal are synced. An
// error wraps ErrFailed and is final. It must be called once, from one goroutine;
// a further call gives the same.
func (p *Pending) Wait() error {
	if p.b == nil {
		return p.err
	}
	b := p.b
	p.b = nil
	var err error
	if !p.j.o.syncEach && !mutant.Is("hand a batch to pebble without a sync") {
		err = b.SyncWait()
	}
	if err == nil {
		err = b.Close()
	}
	if err != nil {
		p.j.fail(fmt.Errorf("sync: %w", err))
	}
	// A failure that was noted before the sync returned may be the sync's own: the
	// disk's errors are not told to pebble (failStop).
	if p.err = p.j.Err(); mutant.Is("call a failed sync of the journal done") {
		p.err = nil
	}
	return p.err
}

// Write applies a batch and returns without waiting for the disk. When it returns
// an error nothing of the batch was done: a *GapError when the records do not
// follow, ErrNoSpace when free space is short, ErrFailed when the journal failed
// before.
func (l *Log) Write(b Batch) (*Pending, error) {
	l.write.Lock()
	defer l.write.Unlock()
	p, err := l.writeLocked(&b)
	if err != nil {
		return nil, fmt.Errorf("write to journal of volume %s: %w", l.v, err)
	}
	return p, nil
}

func (l *Log) writeLocked(b *Batch) (*Pending, error) {
	if err := l.j.writable(); err != nil {
		return nil, err
	}
	if err := checkBatch(b); err != nil {
		return nil, err
	}
	if b.Reset == nil && l.bad != nil {
		return nil, l.bad
	}
	// The step is worked out on copies; only when pebble has it they become true.
	s := step{l: l, state: l.state, last: l.last, offset: l.offset, deleted: l.deleted, deletedOffset: l.deletedOffset}
	if err := s.begin(b); err != nil {
		return nil, err
	}
	size, err := s.check(b.Records)
	if err != nil {
		return nil, err
	}
	if err := l.j.space.take(size+metaSize(b.Meta), b.Urgent); err != nil {
		return nil, err
	}
	p, err := s.commit(b, size)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.state, l.last, l.offset = s.state, s.last, s.offset
	if b.Reset != nil {
		l.bad, l.damage = nil, nil
	}
	l.mu.Unlock()
	l.deleted, l.deletedOffset, l.dirty, l.exists = s.deleted, s.deletedOffset, false, true
	l.dropped(s.drop, s.dropBytes, true)
	return p, nil
}

func checkBatch(b *Batch) error {
	if b.Reset != nil && b.Reset.Seq == 0 && b.Reset.Sum != 0 {
		return fmt.Errorf("reset to %s, the beginning has sum 0", *b.Reset)
	}
	if b.Cut != nil && len(b.Cut.Quarantine) > QuarantineNameMax {
		return fmt.Errorf("quarantine name of %d bytes, at most %d are allowed", len(b.Cut.Quarantine), QuarantineNameMax)
	}
	for _, m := range b.Meta {
		if len(m.Key) == 0 || len(m.Key) > MetaKeyMax || len(m.Value) > MetaValueMax {
			return fmt.Errorf("meta %.40q of %d bytes with %d bytes of value: out of bounds", m.Key, len(m.Key), len(m.Value))
		}
	}
	return nil
}

func metaSize(ops []MetaOp) int64 {
	n := int64(256) // keys, state, headers
	for _, m := range ops {
		n += int64(len(m.Key) + len(m.Value) + recordKeyLen)
	}
	return n
}

// step is a Batch being applied: what the log will be after it.
type step struct {
	l             *Log
	state         state
	last          record.Pos
	offset        uint64
	deleted       record.Seq
	deletedOffset uint64
	drop          []span // deleted in this step
	dropBytes     uint64
	quarantine    *quarantineInfo
	dirty         bool
}

// begin works out Cut and Reset.
func (s *step) begin(b *Batch) error {
	s.dirty = s.l.dirty
	if b.Cut != nil && s.l.bad == nil {
		if err := s.cut(b.Cut); err != nil {
			return err
		}
	}
	if b.Reset != nil {
		s.reset(*b.Reset)
	}
	return nil
}

func (s *step) reset(begin record.Pos) {
	if s.l.bad != nil {
		s.drop = s.l.unclaimed // the segments may be unknown: all but the quarantines
	} else {
		s.drop = append(s.drop, spans(s.l.v, s.state.ranges(s.deleted+1, s.last.Seq))...)
	}
	s.dropBytes += s.offset - s.deletedOffset
	s.state.highest++
	s.state.begin, s.state.beginOffset = begin, s.offset
	s.state.segments = []segment{{s.state.highest, begin.Seq + 1}}
	s.last, s.deleted, s.deletedOffset, s.dirty = begin, begin.Seq, s.offset, true
}

func (s *step) cut(c *Cut) error {
	switch {
	case c.After.Seq > s.last.Seq:
		return fmt.Errorf("cut behind %s, the log ends at %s: %w", c.After, s.last, ErrNotYet)
	case c.After.Seq < s.state.begin.Seq:
		return fmt.Errorf("cut behind %s, the log begins behind %s: %w", c.After, s.state.begin, ErrTrimmed)
	}
	at, offset, err := s.l.positionOrNext(c.After.Seq)
	if err != nil {
		return fmt.Errorf("cut behind %s: %w", c.After, err)
	}
	if at != c.After {
		return fmt.Errorf("cut behind %s: the log holds %s: %w", c.After, at, ErrProof)
	}
	if c.After.Seq == s.last.Seq {
		return nil
	}
	if len(s.state.segments) >= segmentsMax {
		return fmt.Errorf("cut behind %s: more than %d cuts since the last trim", c.After, segmentsMax)
	}
	tail := s.state.ranges(c.After.Seq+1, s.last.Seq)
	if c.Quarantine == "" {
		s.drop, s.dropBytes = spans(s.l.v, tail), s.offset-offset
	} else {
		s.quarantine, err = s.l.newQuarantine(c, s.last, tail, int64(s.offset-offset))
		if err != nil {
			return err
		}
	}
	s.state.cut(c.After.Seq)
	s.last, s.offset, s.dirty = c.After, offset, true
	return nil
}

// check verifies that the records follow the log's end and gives their size.
func (s *step) check(recs []*record.Record) (int64, error) {
	size := int64(0)
	last := s.last
	for _, r := range recs {
		if r.Volume != s.l.v || r.Sum == 0 || len(r.Raw) != record.HeaderSize+int(r.Stored) {
			return 0, fmt.Errorf("record %d of volume %s is not sealed or of another volume", r.Seq, r.Volume)
		}
		if r.Seq != last.Seq+1 || r.Prev != last.Sum && !mutant.Is("append a record of another past") {
			return 0, &GapError{s.l.v, last, record.Pos{Seq: r.Seq, Sum: r.Prev}}
		}
		last = r.Pos()
		size += int64(len(r.Raw))
	}
	return size, nil
}

// commit builds pebble's batches and hands them over in order. Only the last one
// is waited for: pebble's WAL is in order.
func (s *step) commit(b *Batch, size int64) (*Pending, error) {
	l := s.l
	pb := l.j.newBatch(int(min(size, BatchBytes)) + len(b.Records)*64 + 1024)
	err := s.putHead(pb)
	for _, r := range b.Records {
		if err != nil {
			break
		}
		if pb.Len() > 1024 && pb.Len()+len(r.Raw) > BatchBytes {
			_, err = l.j.commit(pb, false)
			pb = l.j.db.NewBatch()
		}
		if err == nil {
			err = s.put(pb, r)
		}
	}
	for _, m := range b.Meta {
		if err != nil {
			break
		}
		if m.Value == nil {
			err = pb.Delete(nameKey(keyMeta, l.v, m.Key), nil)
		} else {
			err = pb.Set(nameKey(keyMeta, l.v, m.Key), m.Value, nil)
		}
	}
	if err == nil && pb.Empty() {
		err = pb.LogData([]byte{0}, nil) // Wait must mean that all before is synced
	}
	if err != nil {
		return nil, err
	}
	return l.j.commit(pb, true)
}

// newBatch makes a batch for so many bytes. Pebble rounds up to a power of two, and
// allocates a second time when it is not given one; larger batches than it keeps by
// default are worth to be kept, for large writes come in rows.
func (j *Journal) newBatch(size int) *pebble.Batch {
	return j.db.NewBatchWithSize(1<<bits.Len(uint(size-1)), pebble.WithMaxRetainedSizeBytes(batchKeptBytes))
}

// putHead puts what Cut, Reset and a moved begin change.
func (s *step) putHead(pb *pebble.Batch) error {
	if !s.dirty && s.l.exists || s.l.exists && mutant.Is("cut the journal in memory only") {
		return nil
	}
	if err := pb.Set(volumeKey(keyState, s.l.v), s.state.encode(), nil); err != nil {
		return err
	}
	for _, d := range s.drop {
		if err := pb.DeleteRange(d.lo, d.hi, nil); err != nil {
			return err
		}
	}
	if s.quarantine != nil {
		return s.quarantine.put(pb, s.l.v)
	}
	return nil
}

func (s *step) put(pb *pebble.Batch, r *record.Record) error {
	s.offset += uint64(len(r.Raw))
	d := pb.SetDeferred(recordKeyLen, offsetLen+len(r.Raw))
	putRecordKey(d.Key, s.l.v, s.state.segmentOf(r.Seq), r.Seq)
	binary.LittleEndian.PutUint64(d.Value, s.offset)
	copy(d.Value[offsetLen:], r.Raw)
	s.last = r.Pos()
	return d.Finish()
}

// writable says whether the journal takes writes.
func (j *Journal) writable() error {
	if j.readOnly {
		return ErrReadOnly
	}
	if err := j.usable(); err != nil {
		return err
	}
	return j.Err()
}

// commit hands a batch to pebble, in order, and waits only when pebble does. With
// sync the Pending's Wait is the way to learn the outcome; without it a later
// batch's is.
func (j *Journal) commit(pb *pebble.Batch, sync bool) (p *Pending, err error) {
	j.apply.Lock()
	defer j.apply.Unlock()
	if err := j.Err(); err != nil { // Close commits too: whoever else comes asked writable
		return nil, err
	}
	defer func() {
		if r := recover(); r != nil {
			// Pebble panics when it can neither close the old WAL nor open the
			// next, with its commit lock held. Nobody may enter it any more.
			j.abandoned = true
			j.fail(fmt.Errorf("pebble: %v", r))
			p, err = nil, j.Err()
			j.logger.die(fmt.Sprint(r))
		}
	}()
	switch {
	case !sync || mutant.Is("hand a batch to pebble without a sync"):
		err = j.db.Apply(pb, pebble.NoSync)
		if err == nil {
			err = pb.Close()
		}
	case j.o.syncEach:
		err = j.db.Apply(pb, pebble.Sync)
	default:
		err = j.db.ApplyNoSyncWait(pb, pebble.Sync)
	}
	if err != nil {
		j.fail(fmt.Errorf("apply: %w", err))
		return nil, j.Err()
	}
	return &Pending{j: j, b: pb}, nil
}

// fail notes the first failure. Nothing succeeds after it.
func (j *Journal) fail(cause error) {
	err := fmt.Errorf("%w: %w: restart the server; what it acknowledged before is kept", ErrFailed, cause)
	if j.failure.CompareAndSwap(nil, &err) {
		j.o.Logger.Error("journal failed", "dir", j.o.Dir, "err", err)
	}
}

// syncAll makes everything written so far durable.
func (j *Journal) syncAll() error {
	b := j.db.NewBatch()
	if err := b.LogData([]byte{0}, nil); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	p, err := j.commit(b, true)
	if err != nil {
		return err
	}
	return p.Wait()
}
