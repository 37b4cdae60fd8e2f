package journal

import (
	"errors"
	"fmt"
	"math"

	"github.com/blockrepl/blockrepl/journal/record"
)

// Salvage makes a log whole that is not: one whose end is damaged ends at its last
// whole record, or its Begin; one whose state is damaged is what its records tell, or
// empty. What else lies there is set aside under the quarantine's name, for people;
// meta goes with it in one batch, durable when it returns. The caller must remember
// there that the log has lost records. A *CorruptError where even that does not help;
// then only a Reset does.
func (l *Log) Salvage(c Cut, meta []MetaOp) (record.Pos, error) {
	l.write.Lock()
	defer l.write.Unlock()
	pos, err := l.salvageLocked(&c, meta)
	if err != nil {
		return record.Pos{}, fmt.Errorf("salvage journal of volume %s: %w", l.v, err)
	}
	return pos, nil
}

func (l *Log) salvageLocked(c *Cut, meta []MetaOp) (record.Pos, error) {
	if err := l.j.writable(); err != nil {
		return record.Pos{}, err
	}
	if l.bad == nil {
		return l.last, nil
	}
	b, err := l.remains()
	if err != nil {
		return record.Pos{}, err
	}
	if len(b.state.segments) >= segmentsMax || len(b.aside) > segmentsMax {
		return record.Pos{}, l.bad
	}
	s := step{l: l, state: b.state, dirty: true}
	if len(b.aside) > 0 {
		c.After = b.last
		if s.quarantine, err = l.newQuarantine(c, record.Pos{Seq: b.end}, b.aside, 0); err != nil {
			return record.Pos{}, err
		}
	}
	s.state.cut(b.last.Seq)
	p, err := s.commit(&Batch{Meta: meta}, 0)
	if err == nil {
		err = p.Wait()
	}
	if err != nil {
		return record.Pos{}, err
	}
	l.mu.Lock()
	l.state, l.last, l.offset, l.bad = s.state, b.last, b.offset, nil
	l.mu.Unlock()
	l.deleted, l.deletedOffset = s.state.begin.Seq, s.state.beginOffset
	l.unclaimed, l.dirty, l.exists, l.known, l.hidden = nil, false, true, true, false
	if err := l.checkEnds(); err != nil {
		return record.Pos{}, err
	}
	return b.last, l.sweep(nil)
}

// remains is what is still known of a broken log.
func (l *Log) remains() (b rebuilt, err error) {
	bad := l.bad.Seq
	if bad == 0 {
		return l.rebuild()
	}
	b.state = l.state
	if b.last, b.offset, err = l.lastWhole(bad); err != nil {
		return b, err
	}
	b.aside, b.end = l.state.ranges(b.last.Seq+1, bad), bad
	if r := &b.aside[len(b.aside)-1]; l.hidden && r.Segment == l.state.segmentOf(math.MaxUint64) {
		r.Last = math.MaxUint64 - 1 // nobody else has of the last segment
	}
	return b, nil
}

// lastWhole is the highest whole record below the damaged end bad, or Begin.
func (l *Log) lastWhole(bad record.Seq) (record.Pos, uint64, error) {
	for seq := bad - 1; seq > l.state.begin.Seq; seq-- {
		r, offset, err := l.get(seq)
		if err == nil {
			return r.Pos(), offset, nil
		}
		var c *CorruptError
		if !errors.As(err, &c) {
			return record.Pos{}, 0, err
		}
	}
	return l.state.begin, l.state.beginOffset, nil
}
