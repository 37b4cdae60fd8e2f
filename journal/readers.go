package journal

import "sync"

// readers counts who is inside the database to read: it panics when it is closed over
// an iterator or a value that somebody holds. Nobody is inside while a caller's fn
// runs, which may take any time.
type readers struct {
	mu     sync.Mutex
	inside int
	closed bool
	empty  sync.Cond // inside is 0; its L is set by the first close
}

// enter is ErrClosed once close was called; else leave must follow.
func (r *readers) enter() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return ErrClosed
	}
	r.inside++
	return nil
}

func (r *readers) leave() {
	r.mu.Lock()
	r.inside--
	if r.closed && r.inside == 0 {
		r.empty.Broadcast()
	}
	r.mu.Unlock()
}

// close lets nobody in any more and waits until nobody is inside.
func (r *readers) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed, r.empty.L = true, &r.mu
	for r.inside > 0 {
		r.empty.Wait()
	}
}
