package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
)

// Comes from: deletions of records, and each flush of pebble.
// Does: frees the space of deleted records that lie in tables, and keeps the
// number of tables small. Pebble's own compactions are switched off: they would
// copy records, which are never rewritten and soon trimmed.

// waste is a deleted run of record keys.
type waste struct {
	span
	bytes uint64
	tomb  bool   // deleted by DeleteRange: in the memtable until the second flush from born on
	born  uint64 // flushes before it was deleted
}

// garbage is what was deleted of one log and may lie in tables, in order.
type garbage struct {
	mu    sync.Mutex
	list  []waste
	fresh uint64 // bytes added since the janitor was woken
}

// dropped notes deleted spans of n bytes together.
func (l *Log) dropped(drop []span, n uint64, tomb bool) {
	w := &l.j.janitor
	g := &l.garbage
	born := w.flushes.Load()
	g.mu.Lock()
	for i, d := range drop {
		if i > 0 {
			n = 0 // counted with the first
		}
		k := len(g.list) - 1
		if k >= 0 && g.list[k].tomb == tomb && g.list[k].born == born && bytes.Equal(g.list[k].hi, d.lo) {
			g.list[k].hi = d.hi
			g.list[k].bytes += n
		} else {
			g.list = append(g.list, waste{d, n, tomb, born})
		}
		g.fresh += n
	}
	enough := g.fresh >= l.j.o.MemTableBytes || l.j.space.short.Load()
	if enough {
		g.fresh = 0
	}
	g.mu.Unlock()
	if enough {
		w.wake()
	}
}

// take gives what is worth to be excised now: at least a memtable's size in tables,
// or so many small leftovers that they slow down reading. Deletions that may still
// be in the memtable stay, for Excise would force its flush; but not when they keep
// very much space occupied.
func (g *garbage) take(j *Journal) []span {
	g.mu.Lock()
	defer g.mu.Unlock()
	flushes := j.janitor.flushes.Load()
	ripe := len(g.list)
	for i, w := range g.list {
		if w.tomb && flushes < w.born+2 {
			ripe = i
			break
		}
	}
	all := memTables * j.o.MemTableBytes
	if j.space.short.Load() {
		all = min(all, trimBytes)
	}
	switch {
	case j.onDisk(join(g.list)) >= all:
		ripe = len(g.list)
	case ripe >= leftoversMax || j.onDisk(join(g.list[:ripe])) >= j.o.MemTableBytes:
	default:
		return nil
	}
	out := join(g.list[:ripe])
	g.list = append(g.list[:0:0], g.list[ripe:]...)
	return out
}

// join gives the spans of a list, neighbours as one.
func join(list []waste) []span {
	var out []span
	for _, w := range list {
		if k := len(out) - 1; k >= 0 && bytes.Equal(out[k].hi, w.lo) {
			out[k].hi = w.hi
		} else {
			out = append(out, w.span)
		}
	}
	return out
}

// onDisk estimates what the tables hold of the spans, in bytes.
func (j *Journal) onDisk(list []span) (sum uint64) {
	for _, s := range list {
		n, err := j.db.EstimateDiskUsage(s.lo, s.hi)
		if err != nil {
			continue // it decides on the time of a cleaning only
		}
		sum += n
	}
	return sum
}

// janitor frees what was deleted. One goroutine, run, from start to stop.
type janitor struct {
	flushes atomic.Uint64 // of pebble since the journal was opened
	signal  chan struct{} // capacity 1: a pending wake-up is enough
	cancel  context.CancelFunc
	done    chan struct{}

	mu    sync.Mutex
	spans []span // to be excised, beside those of the logs

	compacted uint64 // flushes at the last compaction; run's own
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

// flushed is called by pebble at the end of each flush.
func (w *janitor) flushed() {
	w.flushes.Add(1)
	w.wake()
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
		w.excise(ctx, j)
		w.compact(ctx, j)
	}
}

func (w *janitor) excise(ctx context.Context, j *Journal) {
	w.mu.Lock()
	all := w.spans
	w.spans = nil
	w.mu.Unlock()
	j.mu.Lock()
	logs := sortedLogs(j.logs)
	j.mu.Unlock()
	for _, l := range logs {
		all = append(all, l.garbage.take(j)...)
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
		if err := j.free(ctx, s); err != nil && ctx.Err() == nil {
			j.o.Logger.Warn("trimmed records could not be freed; tried again when the journal is opened", "err", err)
		}
	}
}

// free takes a span out of the tables. Of one that it cuts through pebble (v2.1.7)
// looks for the next key beside the span and takes no error for no key: where that key
// is in a damaged block the rest of the table would go, too. So we look first.
func (j *Journal) free(ctx context.Context, s span) error {
	it, err := j.db.NewIter(nil)
	if err != nil {
		return err
	}
	it.SeekLT(s.lo)
	err = it.Error()
	if err == nil && s.hi != nil {
		it.SeekGE(s.hi)
		err = it.Error()
	}
	if err = errors.Join(err, it.Close()); err != nil {
		return fmt.Errorf("what lies beside them cannot be read: %w", err)
	}
	return j.db.Excise(ctx, pebble.KeyRange{Start: s.lo, End: s.hi})
}

// compact merges the tables of the small keys: each flush adds one.
func (w *janitor) compact(ctx context.Context, j *Journal) {
	n := w.flushes.Load()
	if n < w.compacted+compactEvery || j.Err() != nil {
		return
	}
	if err := j.db.Compact(ctx, []byte{keyFormat}, []byte{keyRecord}, false); err != nil && ctx.Err() == nil {
		j.o.Logger.Warn("small keys could not be compacted; tried again later", "err", err)
	}
	w.compacted = n
}
