package sim

import "fmt"

// Memory is bounded: what a state machine holds stays within the bounds that package
// replica has, or that follow from what its shell has under way; and when all is
// done, nothing of it is left.

// holding looks at n now and then.
func (s *Sim) holding(n *node) {
	if n.looks++; n.looks%heldEvery != 0 || n.broken() {
		return
	}
	if what := n.rep.Overfull(); what != "" {
		s.fail("memory is bounded", "%v holds too many %s: %+v", n.id, what, n.rep.Held())
		return
	}
	h := n.rep.Held()
	for _, q := range []struct {
		what   string
		n, max int
	}{
		{"reads", h.Reads, len(n.rounds)},
		{"stores", h.Storing, len(n.journal.pending)},
		{"connections", h.Conns, n.opened + len(n.in.events)},
		{"changes", h.Waiting + h.Sent, heldOpsMax},
		{"lookups", h.Lookups, heldLookupsMax * len(s.nodes)},
		{"links to strangers", h.Strangers, len(s.nodes)},
		{"samples of its length", h.Kept, heldSamplesMax},
	} {
		if q.n > q.max {
			s.fail("memory is bounded", "%v holds %d %s, of which there are %d at most: %+v", n.id, q.n, q.what, q.max, h)
			return
		}
	}
}

// left says what n still holds of what was under way, "" for nothing. Reads may be, of
// clients that went elsewhere; and forwarded changes of which a frame was lost or
// overtaken, as no network does it within a connection: only the next Forward, or the
// link's end, tells of it.
func (s *Sim) left(n *node) string {
	if n.in.applied > 0 || n.in.stored > 0 {
		return "" // its loop will hear of that
	}
	h := n.rep.Held()
	if s.prof.lose > 0 || s.prof.overtake > 0 {
		h.Waiting, h.Sent = 0, 0
	}
	if h.Window+h.WindowBytes+h.Early+h.Lookups+h.Marks+h.Found+h.Waiting+h.Sent > 0 {
		return fmt.Sprintf("%+v", h)
	}
	return ""
}
