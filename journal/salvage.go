package journal

import (
	"errors"
	"fmt"

	"github.com/blockrepl/blockrepl/journal/record"
)

// Salvage gives a log whose end is damaged an end again: its last whole record, or its
// Begin. What lies behind is set aside under the quarantine's name, for people; meta
// goes with it in one batch, durable when it returns. The caller must remember there
// that the log has lost records. *CorruptError where the log's state itself is
// damaged: then only a Reset helps.
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
	bad := l.bad.Seq
	if bad == 0 || len(l.state.segments) >= segmentsMax {
		return record.Pos{}, l.bad
	}
	pos, offset, err := l.lastWhole(bad)
	if err != nil {
		return record.Pos{}, err
	}
	s := step{l: l, state: l.state, dirty: true}
	c.After = pos
	s.quarantine, err = l.newQuarantine(c, record.Pos{Seq: bad}, l.state.ranges(pos.Seq+1, bad), 0)
	if err != nil {
		return record.Pos{}, err
	}
	s.state.cut(pos.Seq)
	p, err := s.commit(&Batch{Meta: meta}, 0)
	if err == nil {
		err = p.Wait()
	}
	if err != nil {
		return record.Pos{}, err
	}
	l.mu.Lock()
	l.state, l.last, l.offset, l.bad = s.state, pos, offset, nil
	l.mu.Unlock()
	l.unclaimed, l.dirty, l.exists = nil, false, true
	if err := l.checkEnds(); err != nil {
		return record.Pos{}, err
	}
	return pos, l.sweep(nil)
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
