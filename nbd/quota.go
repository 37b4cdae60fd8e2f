package nbd

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
)

// quota counts what the requests of one connection hold, from being read until their reply is written (or dropped).
//
// Only the reader of the connection acquires; anybody releases. What exceeds the connection's reserve is taken from the
// server's budget, so that the sum over all connections is bounded and a connection with slow replies cannot starve one
// whose requests are small.
type quota struct {
	maxReqs  int32
	maxBytes int64
	budget   *budget
	share    *share // of the budget, the export's

	reqs  atomic.Int32 // Invariant: 0 <= reqs <= maxReqs
	bytes atomic.Int64 // Invariant: 0 <= bytes <= maxBytes

	waiting atomic.Bool   // somebody waits on wake
	wake    chan struct{} // capacity 1
}

func newQuota(l Limits, b *budget) quota {
	return quota{maxReqs: int32(l.MaxRequests), maxBytes: l.MaxConnBytes, budget: b, share: &share{}, wake: make(chan struct{}, 1)}
}

// beyond is the part of n bytes that exceeds the reserve of a connection.
func beyond(n int64) int64 { return max(0, n-connReserve) }

// fits reports whether a request of n bytes may start.
func (q *quota) fits(n int64) bool {
	return q.reqs.Load() < q.maxReqs && q.bytes.Load()+n <= q.maxBytes
}

// tryAcquire takes one request of n bytes if that needs no waiting.
func (q *quota) tryAcquire(n int64) bool {
	if !q.fits(n) {
		return false
	}
	sum := q.bytes.Add(n)
	if need := beyond(sum) - beyond(sum-n); need > 0 && !q.budget.tryTake(q.share, need) {
		// What was released meanwhile has paid back a part of need that was never taken: settle by the same sums.
		sum = q.bytes.Add(-n)
		q.budget.give(q.share, beyond(sum+n)-beyond(sum)-need)
		return false
	}
	q.reqs.Add(1)
	return true
}

// acquire takes one request of n bytes and waits for it until ctx ends.
func (q *quota) acquire(ctx context.Context, n int64) error {
	if err := q.await(ctx, func() bool { return q.fits(n) }); err != nil {
		return err
	}
	sum := q.bytes.Add(n)
	if need := beyond(sum) - beyond(sum-n); need > 0 {
		if err := q.budget.take(ctx, q.share, need); err != nil {
			sum = q.bytes.Add(-n)
			q.budget.give(q.share, beyond(sum+n)-beyond(sum)-need)
			return err
		}
	}
	q.reqs.Add(1)
	return nil
}

// release gives back reqs requests that held n bytes.
func (q *quota) release(reqs int32, n int64) {
	if n > 0 {
		sum := q.bytes.Add(-n)
		if back := beyond(sum+n) - beyond(sum); back > 0 {
			q.budget.give(q.share, back)
		}
	}
	if left := q.reqs.Add(-reqs); left < 0 {
		panic("nbd: bug: a request was released twice")
	}
	if q.waiting.Load() {
		select {
		case q.wake <- struct{}{}:
		default:
		}
	}
}

// idle waits until no request is left.
func (q *quota) idle(ctx context.Context) error {
	return q.await(ctx, func() bool { return q.reqs.Load() == 0 })
}

func (q *quota) await(ctx context.Context, ready func() bool) error {
	q.waiting.Store(true)
	defer q.waiting.Store(false)
	for !ready() {
		select {
		case <-q.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// budget is the server's bytes, given in the order they were asked for: a large request is not overtaken for ever. While
// several exports are open one of them holds at most as much as it leaves to the others, or a single request: the requests
// of one that hangs do not become everybody's.
type budget struct {
	mu      sync.Mutex
	free    int64
	waiters []*budgetWaiter   // at most one a connection
	shares  map[string]*share // of the exports that are open, by name
}

// share is what an export's connections hold of the budget. Guarded by budget.mu.
type share struct {
	used    int64
	open    int  // connections
	waiting bool // scratch of grantLocked: one of its waiters must go on waiting
}

type budgetWaiter struct {
	share *share
	n     int64
	ready chan struct{} // closed when the bytes were taken for it
}

// open gives the share of an export to one more connection, until close.
func (b *budget) open(export string) *share {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.shares[export]
	if s == nil {
		if s = (&share{}); b.shares == nil {
			b.shares = map[string]*share{}
		}
		b.shares[export] = s
	}
	s.open++
	return s
}

func (b *budget) close(export string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.shares[export]; s.open > 1 {
		s.open--
		return
	}
	delete(b.shares, export)
	b.grantLocked() // who is left alone may have all
}

// beyondLocked reports whether n more bytes are too many for the share.
func (b *budget) beyondLocked(s *share, n int64) bool {
	return len(b.shares) > 1 && s.used > 0 && s.used+n > b.free-n
}

func (b *budget) tryTake(s *share, n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.tryTakeLocked(s, n)
}

func (b *budget) tryTakeLocked(s *share, n int64) bool {
	if b.free < n || b.beyondLocked(s, n) {
		return false
	}
	for _, w := range b.waiters {
		if w.share == s || !b.beyondLocked(w.share, w.n) {
			return false
		}
	}
	b.free -= n
	s.used += n
	return true
}

func (b *budget) take(ctx context.Context, s *share, n int64) error {
	b.mu.Lock()
	if b.tryTakeLocked(s, n) {
		b.mu.Unlock()
		return nil
	}
	w := &budgetWaiter{share: s, n: n, ready: make(chan struct{})}
	b.waiters = append(b.waiters, w)
	b.mu.Unlock()
	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-w.ready: // granted at the same moment: give it to the next
		b.free += n
		s.used -= n
	default:
		b.waiters = slices.DeleteFunc(b.waiters, func(o *budgetWaiter) bool { return o == w })
	}
	b.grantLocked()
	return ctx.Err()
}

func (b *budget) give(s *share, n int64) {
	if n == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free += n
	s.used -= n
	b.grantLocked()
}

// grantLocked gives to the waiters in their order what is free. Only who has more than its share is passed by, and then
// by other exports alone.
func (b *budget) grantLocked() {
	if len(b.waiters) == 0 {
		return
	}
	for _, w := range b.waiters {
		w.share.waiting = false
	}
	full := false
	b.waiters = slices.DeleteFunc(b.waiters, func(w *budgetWaiter) bool {
		switch {
		case full || w.share.waiting:
			return false
		case b.beyondLocked(w.share, w.n):
			w.share.waiting = true
			return false
		case w.n > b.free:
			full = true
			return false
		}
		b.free -= w.n
		w.share.used += w.n
		close(w.ready)
		return true
	})
}
