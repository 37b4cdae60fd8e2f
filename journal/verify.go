package journal

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/blockrepl/blockrepl/journal/mutant"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Report is what Verify found.
type Report struct {
	First, Last record.Seq // the log's, when Verify began; Last < First: empty
	Records     int64      // whole records
	Bytes       int64      // of them
	Damaged     int64      // records that are damaged, missing or not chained
	Damage      []*CorruptError
	Quarantined int64 // whole records in quarantines
}

// Err is nil when nothing was damaged, else the first damage with the count.
func (r *Report) Err() error {
	if r.Damaged == 0 {
		return nil
	}
	return fmt.Errorf("%d of %d records are damaged, the first: %w", r.Damaged, r.Damaged+r.Records, r.Damage[0])
}

func (r *Report) note(c *CorruptError) {
	r.Damaged++
	if len(r.Damage) < reportMax {
		r.Damage = append(r.Damage, c)
	}
}

// Verify reads every record of the log and of its quarantines and checks sums,
// numbers and the chain; writes may go on. progress, if not nil, is called now and
// then with the last number checked. The error is about reading; damage is in the
// Report.
func (l *Log) Verify(ctx context.Context, progress func(record.Seq)) (Report, error) {
	if err := l.j.usable(); err != nil {
		return Report{}, err
	}
	begin, last := l.Begin(), l.Last()
	rep := Report{First: begin.Seq + 1, Last: last.Seq}
	if err := l.broken(); err != nil {
		return rep, err
	}
	prev := begin
	for seq := rep.First; seq <= last.Seq; {
		if err := ctx.Err(); err != nil {
			return rep, fmt.Errorf("verify journal of volume %s at record %d: %w", l.v, seq, err)
		}
		next, err := l.Read(seq, last.Seq, 1<<20, func(r *record.Record) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			if prev.Seq == r.Seq-1 && prev.Sum != r.Prev {
				rep.note(&CorruptError{l.v, r.Seq, fmt.Errorf("%w: prev is %016x, record %d has sum %016x", record.ErrCorrupt, r.Prev, prev.Seq, prev.Sum)})
			} else {
				rep.Records++
				rep.Bytes += int64(len(r.Raw))
			}
			prev = r.Pos()
			r.Free()
			return nil
		})
		var c *CorruptError
		switch {
		case errors.Is(err, ErrTrimmed): // meanwhile
			next = l.First()
		case errors.As(err, &c):
			rep.note(c)
			next = max(next, c.Seq) + 1
		case err != nil:
			return rep, fmt.Errorf("verify journal of volume %s: %w", l.v, err)
		}
		seq = next
		if progress != nil {
			progress(seq - 1)
		}
	}
	return rep, l.verifyQuarantines(ctx, &rep)
}

func (l *Log) verifyQuarantines(ctx context.Context, rep *Report) error {
	qs, err := l.Quarantines()
	if err != nil {
		return err
	}
	for _, q := range qs {
		err := l.ReadQuarantine(q.Name, func(r *record.Record) error {
			rep.Quarantined++
			r.Free()
			return ctx.Err()
		})
		var c *CorruptError
		if errors.As(err, &c) {
			rep.note(c)
		} else if err != nil && !errors.Is(err, ErrNoQuarantine) {
			return err
		}
	}
	return nil
}

// Replace puts a record that was fetched from a peer in the place of a damaged one,
// durable when it returns. ErrProof unless it is exactly the record that the chain
// expects: its header sum is the next record's prev, or the log's last sum.
func (l *Log) Replace(rec *record.Record) error {
	l.write.Lock()
	defer l.write.Unlock()
	if err := l.replaceLocked(rec); err != nil {
		return fmt.Errorf("replace record %d in journal of volume %s: %w", rec.Seq, l.v, err)
	}
	return nil
}

func (l *Log) replaceLocked(rec *record.Record) error {
	if err := l.j.writable(); err != nil {
		return err
	}
	if err := l.within(rec.Seq); err != nil {
		return err
	}
	whole, err := record.Decode(rec.Raw)
	if err != nil {
		return err
	}
	want := l.last.Sum
	before := l.offset - uint64(len(rec.Raw))
	if rec.Seq < l.last.Seq {
		next, err := l.place(rec.Seq + 1)
		if err != nil {
			return fmt.Errorf("the record behind it is needed as the proof: %w", err)
		}
		want, before = next.prev, next.offset-next.size-uint64(len(rec.Raw))
	}
	if (whole.Volume != l.v || whole.Sum != want) && !mutant.Is("replace a record by any other") {
		return fmt.Errorf("%w: sum is %016x, the chain expects %016x", ErrProof, whole.Sum, want)
	}
	value := binary.LittleEndian.AppendUint64(nil, before+uint64(len(rec.Raw)))
	b := l.j.db.NewBatch()
	if err := b.Set(recordKey(l.v, l.state.segmentOf(rec.Seq), rec.Seq), append(value, rec.Raw...), nil); err != nil {
		return err
	}
	p, err := l.j.commit(b, true)
	if err != nil {
		return err
	}
	if err := p.Wait(); err != nil {
		return err
	}
	l.mu.Lock()
	kept := l.damage[:0:0]
	for _, d := range l.damage {
		if d.Seq != rec.Seq {
			kept = append(kept, d)
		}
	}
	l.damage = kept
	l.mu.Unlock()
	return nil
}
