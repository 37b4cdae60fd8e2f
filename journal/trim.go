package journal

import (
	"fmt"

	"github.com/blockrepl/blockrepl/journal/record"
)

// Trim forgets the records up to upto: they cannot be read any more from now on.
// That is durable with the next Write or Close; a crash before may bring them back,
// never half of them. Trimming what is trimmed does nothing; ErrNotYet behind the
// log's end.
func (l *Log) Trim(upto record.Seq) error {
	l.write.Lock()
	defer l.write.Unlock()
	if err := l.trimLocked(upto); err != nil {
		return fmt.Errorf("trim journal of volume %s up to %d: %w", l.v, upto, err)
	}
	return nil
}

func (l *Log) trimLocked(upto record.Seq) error {
	if err := l.j.writable(); err != nil {
		return err
	}
	if l.bad != nil {
		return l.bad
	}
	if upto <= l.state.begin.Seq {
		return nil
	}
	if upto > l.last.Seq {
		return fmt.Errorf("the log ends at %d: %w", l.last.Seq, ErrNotYet)
	}
	begin, offset, err := l.positionOrNext(upto)
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.state.begin, l.state.beginOffset = begin, offset
	l.mu.Unlock()
	l.dirty = true
	if offset-l.deletedOffset >= trimBytes {
		return l.deleteTrimmed()
	}
	return nil
}

// deleteTrimmed writes the mark and the deletion of what lies below it in one
// batch, without a sync: the records are still in the memtable, and the sooner
// their deletion is there too the less reaches a table. What is in tables already
// is left to the janitor: a deletion in the memtable would only be in its way.
func (l *Log) deleteTrimmed() error {
	drop := spans(l.v, l.state.ranges(l.deleted+1, l.state.begin.Seq))
	size := l.state.beginOffset - l.deletedOffset
	s := step{l: l, state: l.state, drop: drop, dropBytes: size, dirty: true}
	flushed := l.j.onDisk(drop) >= size/10*9
	if flushed {
		s.drop = nil
	}
	s.state.dropBelow(s.state.begin.Seq)
	pb := l.j.db.NewBatch()
	if err := s.putHead(pb); err != nil {
		return err
	}
	if _, err := l.j.commit(pb, false); err != nil {
		return err
	}
	l.mu.Lock()
	l.state = s.state
	l.mu.Unlock()
	l.dropped(drop, size, !flushed)
	l.deleted, l.deletedOffset, l.dirty, l.exists = l.state.begin.Seq, l.state.beginOffset, false, true
	return nil
}

// persistState writes what no batch has carried yet.
func (l *Log) persistState() error {
	l.write.Lock()
	defer l.write.Unlock()
	if !l.dirty || l.bad != nil {
		return nil
	}
	return l.deleteTrimmed()
}

// TrimPoint is the highest number that may be trimmed so that at least keep bytes
// stay; First()-1 when nothing may.
func (l *Log) TrimPoint(keep int64) (record.Seq, error) {
	l.mu.RLock()
	lo, hi, end, all := l.state.begin.Seq, l.last.Seq, l.offset, int64(l.offset-l.state.beginOffset)
	l.mu.RUnlock()
	if all <= keep {
		return lo, nil
	}
	// The offset grows with the number: the highest one with end-offset >= keep.
	for lo < hi {
		mid := lo + (hi-lo+1)/2
		_, offset, err := l.positionOrNext(mid)
		if err != nil && mid < l.First() {
			lo = mid // trimmed meanwhile
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("find what may be trimmed of journal of volume %s: %w", l.v, err)
		}
		if int64(end-offset) >= keep {
			lo = mid
		} else {
			hi = mid - 1
		}
	}
	return lo, nil
}
