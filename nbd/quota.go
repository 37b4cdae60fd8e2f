package nbd

import (
	"context"
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

	reqs  atomic.Int32 // Invariant: 0 <= reqs <= maxReqs
	bytes atomic.Int64 // Invariant: 0 <= bytes <= maxBytes

	waiting atomic.Bool   // somebody waits on wake
	wake    chan struct{} // capacity 1
}

func newQuota(l Limits, b *budget) quota {
	return quota{maxReqs: int32(l.MaxRequests), maxBytes: l.MaxConnBytes, budget: b, wake: make(chan struct{}, 1)}
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
	if need := beyond(sum) - beyond(sum-n); need > 0 && !q.budget.tryTake(need) {
		// What was released meanwhile has paid back a part of need that was never taken: settle by the same sums.
		sum = q.bytes.Add(-n)
		q.budget.give(beyond(sum+n) - beyond(sum) - need)
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
		if err := q.budget.take(ctx, need); err != nil {
			sum = q.bytes.Add(-n)
			q.budget.give(beyond(sum+n) - beyond(sum) - need)
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
			q.budget.give(back)
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

// budget is the server's bytes, given in the order they were asked for: a large request is not overtaken for ever.
type budget struct {
	mu      sync.Mutex
	free    int64
	waiters []*budgetWaiter // at most one a connection
}

type budgetWaiter struct {
	n     int64
	ready chan struct{} // closed when the bytes were taken for it
}

func (b *budget) tryTake(n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.waiters) > 0 || b.free < n {
		return false
	}
	b.free -= n
	return true
}

func (b *budget) take(ctx context.Context, n int64) error {
	if b.tryTake(n) {
		return nil
	}
	w := &budgetWaiter{n: n, ready: make(chan struct{})}
	b.mu.Lock()
	b.waiters = append(b.waiters, w)
	b.grantLocked()
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
	default:
		for i := range b.waiters {
			if b.waiters[i] == w {
				b.waiters = append(b.waiters[:i], b.waiters[i+1:]...)
				break
			}
		}
	}
	b.grantLocked()
	return ctx.Err()
}

func (b *budget) give(n int64) {
	if n == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free += n
	b.grantLocked()
}

func (b *budget) grantLocked() {
	for len(b.waiters) > 0 && b.waiters[0].n <= b.free {
		w := b.waiters[0]
		b.waiters = b.waiters[1:]
		b.free -= w.n
		close(w.ready)
	}
}
