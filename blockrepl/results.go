package blockrepl

import (
	"context"
	"fmt"
	"sync"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
)

// results brings the answers of commands to who waits for them. At most one
// entry for each command under way; commandTimeout bounds how long.
type results struct {
	mu     sync.Mutex
	next   uint64
	wait   map[uint64]chan replica.Result // capacity 1 each
	closed bool
}

func (r *results) init() { r.wait = map[uint64]chan replica.Result{} }

func (r *results) open() (uint64, chan replica.Result, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return 0, nil, false
	}
	r.next++
	ch := make(chan replica.Result, 1)
	r.wait[r.next] = ch
	return r.next, ch, true
}

func (r *results) deliver(res replica.Result) {
	r.mu.Lock()
	ch := r.wait[res.ID]
	delete(r.wait, res.ID)
	r.mu.Unlock()
	if ch != nil {
		ch <- res
	}
}

func (r *results) drop(id uint64) {
	r.mu.Lock()
	delete(r.wait, id)
	r.mu.Unlock()
}

// close answers everyone who still waits.
func (r *results) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for id, ch := range r.wait {
		ch <- replica.Result{ID: id, Err: ErrStopped}
		delete(r.wait, id)
	}
}

// command posts the event that make gives and waits for its Result.
func (v *Volume) command(ctx context.Context, make func(id uint64) replica.Event) (replica.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	id, ch, ok := v.results.open()
	if !ok {
		return replica.Result{}, ErrStopped
	}
	v.in.post(make(id))
	select {
	case res := <-ch:
		return res, res.Err
	case <-ctx.Done():
		v.results.drop(id)
		return replica.Result{}, fmt.Errorf("volume %q: %w: no outcome: %w", v.name, replica.ErrTimeout, ctx.Err())
	}
}
