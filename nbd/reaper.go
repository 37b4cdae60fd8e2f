package nbd

import (
	"fmt"
	"time"
)

// sample is what the reaper last saw of a connection that is in the middle of something.
type sample struct {
	since         time.Time // zero: nothing was under way
	in, out, reqs uint64
}

// runReaper looks once a second for clients that are gone while nobody reads from them, and for those that stopped in the
// middle of a message or do not take their replies. One goroutine for all: the hot path sets no timers. It ends when the
// server closes and no connection is left.
func (s *Server) runReaper() {
	t := time.NewTicker(reapEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-s.ctx.Done():
			return
		}
		if s.reap(time.Now()) {
			return
		}
	}
}

// reap examines every connection and aborts the dead ones; true means that the reaper has nothing left to do.
func (s *Server) reap(now time.Time) bool {
	s.mu.Lock()
	if len(s.conns) == 0 {
		s.reaping = false // the next connection starts another
		s.mu.Unlock()
		return true
	}
	dead := map[*conn]error{}
	for c, st := range s.conns {
		if err := s.examine(c, st, now); err != nil {
			dead[c] = err
		}
	}
	s.mu.Unlock()
	for c, err := range dead {
		c.abort(err)
	}
	return false
}

// examine gives the reason why a connection must end, or nil.
func (s *Server) examine(c *conn, st *connState, now time.Time) error {
	if !c.in.reading.Load() && c.client.Gone() {
		return ErrPeerClosed // the reader waits for something else and would not see it
	}
	if st.waiting != nil || !(c.in.mid.Load() || c.out.busy()) {
		st.sample.since = time.Time{} // negotiating has a deadline of its own
		return nil
	}
	in, out, reqs := c.in.total.Load(), c.out.total.Load(), c.stats.requests.Load()
	last := st.sample
	if last.since.IsZero() || in-last.in >= stallBytes || out-last.out >= stallBytes || reqs != last.reqs {
		st.sample = sample{since: now, in: in, out: out, reqs: reqs}
		return nil
	}
	if took := now.Sub(last.since); took >= s.limits.StallTimeout {
		return fmt.Errorf("%d bytes in and %d out in %v: %w", in-last.in, out-last.out, took, ErrStalled)
	}
	return nil
}
