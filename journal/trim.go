package journal

import (
	"bytes"
	"context"
	"fmt"
	"sync"

	"github.com/cockroachdb/pebble/v2"

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
// their deletion is there too the less reaches a table.
func (l *Log) deleteTrimmed() error {
	drop := spans(l.v, l.state.ranges(l.deleted+1, l.state.begin.Seq))
	s := step{l: l, state: l.state, drop: drop, dirty: true}
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
	l.dropped(drop, l.state.beginOffset-l.deletedOffset)
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

// garbage is what was deleted by DeleteRange but may lie in tables, where only
// Excise frees it.
type garbage struct {
	mu    sync.Mutex
	fresh []span // deleted since the last flush: excising it would force a flush
	ripe  []span // deleted before
	bytes uint64 // of both
	max   uint64 // excised at once beyond this, flush or not: two memtables
}

// dropped notes deleted spans for the janitor.
func (l *Log) dropped(drop []span, n uint64) {
	g := &l.garbage
	g.mu.Lock()
	for _, d := range drop {
		if k := len(g.fresh) - 1; k >= 0 && bytes.Equal(g.fresh[k].hi, d.lo) {
			g.fresh[k].hi = d.hi
		} else {
			g.fresh = append(g.fresh, d)
		}
	}
	g.bytes += n
	many := g.bytes >= g.max
	g.mu.Unlock()
	if many {
		l.j.janitor.wake()
	}
}

// take gives what is to be excised now.
func (g *garbage) take() []span {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := g.ripe
	g.ripe, g.fresh = g.fresh, nil
	if g.bytes >= g.max {
		out = append(out, g.ripe...)
		g.ripe, g.bytes = nil, 0
	}
	return out
}

// janitor frees deleted ranges that lie in tables. One goroutine, run, from start
// to stop.
type janitor struct {
	signal chan struct{} // capacity 1: a pending wake-up is enough
	cancel context.CancelFunc
	done   chan struct{}

	mu    sync.Mutex
	spans []span // beside those of the logs
}

func (w *janitor) init() { w.signal = make(chan struct{}, 1) }

func (w *janitor) start(j *Journal) {
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel, w.done = cancel, make(chan struct{})
	go w.run(ctx, j)
}

func (w *janitor) stop() {
	w.cancel()
	<-w.done
}

func (w *janitor) wake() {
	select {
	case w.signal <- struct{}{}:
	default:
	}
}

// add hands over a deleted range that belongs to no open log.
func (w *janitor) add(s ...span) {
	w.mu.Lock()
	w.spans = append(w.spans, s...)
	w.mu.Unlock()
	w.wake()
}

func (w *janitor) run(ctx context.Context, j *Journal) {
	defer close(w.done)
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.signal:
		}
		w.clean(ctx, j)
	}
}

func (w *janitor) clean(ctx context.Context, j *Journal) {
	w.mu.Lock()
	all := w.spans
	w.spans = nil
	w.mu.Unlock()
	j.mu.Lock()
	logs := sortedLogs(j.logs)
	j.mu.Unlock()
	for _, l := range logs {
		all = append(all, l.garbage.take()...)
	}
	if len(all) == 0 || j.Err() != nil {
		return
	}
	// Excise is durable at once. The marks that make these ranges garbage must be
	// durable before it, else a crash leaves a log with a hole.
	if err := j.syncAll(); err != nil {
		return
	}
	for _, s := range all {
		if ctx.Err() != nil {
			return
		}
		if err := j.db.Excise(ctx, pebble.KeyRange{Start: s.lo, End: s.hi}); err != nil && ctx.Err() == nil {
			j.o.Logger.Warn("trimmed records could not be freed; tried again when the journal is opened", "err", err)
		}
	}
}
