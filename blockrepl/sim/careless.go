package sim

import (
	"slices"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// A careless operator gives the flags that assert something without looking whether
// it is so, promotes whom a warning named, and resolves a split brain on any side.
// That loses writes. What it must not do is lose more than was said: at most what
// the forced mastership's own server does not hold; of what others hold that answer
// it, exactly the numbers that the report names as missing; and on the kept side of
// a split brain nothing.

// careless gives the command of fault f at n.
func (o *operator) careless(s *Sim, f fault, n *node) {
	if f == fWildLoss || f == fWildDead {
		o.another(s)
		n = s.behind(n)
	}
	switch f {
	case fWildLoss:
		if o.leave(s, n) {
			return
		}
		s.hit(f, n)
		o.wildly(o.barring(s, n, "accept-loss"))
		o.acceptLoss(s, n)
	case fWildDead:
		s.hit(f, n)
		o.wildly(o.barring(s, n, "old-master-dead"))
		s.tell(n.i, "promote --old-master-dead, without a look")
		n.post(replica.Promote{ID: o.next, OldMasterDead: true})
	case fWildForget:
		o.forget(s, n, true)
	case fResolve:
		s.hit(f, n)
		o.keep(s, n)
	}
}

// acceptLoss is the command.
func (o *operator) acceptLoss(s *Sim, n *node) {
	s.tell(n.i, "promote --accept-loss")
	n.post(replica.Promote{ID: o.next, AcceptLoss: true, OldMasterDead: s.dice.oper.IntN(2) == 0})
}

// leave lets n lack what will be committed, sometimes: it is cut off, the others forget
// it, and a while later it is promoted all the same.
func (o *operator) leave(s *Sim, n *node) bool {
	r := s.dice.oper
	st, _ := s.newest()
	if len(s.nodes) < 3 || st.Epoch.IsZero() || r.IntN(3) == 0 {
		return false
	}
	m := s.nodes[index(st.Master)]
	if m == n || !m.up || m.broken() {
		return false
	}
	s.inflict(fIsolate, n)
	s.tell(m.i, "forget %v, which is cut off", n.id)
	m.post(replica.Forget{ID: o.next, Server: n.id})
	s.at(2*int64(peerTimeout)+exp(r, peerTimeout), event{what: evLeft, n: n.i, run: n.run})
	return true
}

// left is the promotion of who was left behind.
func (o *operator) left(s *Sim, n *node) {
	if s.calm || n.broken() {
		return
	}
	o.next++
	o.another(s)
	s.hit(fWildLoss, n)
	o.wildly(o.barring(s, n, "accept-loss"))
	o.acceptLoss(s, n)
}

// behind is mostly a server that lacks what was committed, where there is one, for by
// it something is lost; else n.
func (s *Sim) behind(n *node) *node {
	r := s.dice.oper
	from := r.IntN(len(s.nodes))
	for i := range s.nodes {
		m := s.nodes[(from+i)%len(s.nodes)]
		if m.up && !m.broken() && !s.complete(m) && r.IntN(3) > 0 {
			return m
		}
	}
	return n
}

// keep resolves a split brain in favour of n's side.
func (o *operator) keep(s *Sim, n *node) {
	if n.rep.View(n.now()).State == replica.SplitBrain {
		s.marks.note(ntSplit)
	}
	o.wildly("resolve")
	n.out = !inState(&n.journal.os.hard.State, n.id)
	s.tell(n.i, "resolve --keep %v", n.id)
	n.post(replica.Resolve{ID: o.next})
}

// another notes that a promotion is ordered without a look at others under way. What is
// asserted of the old master says nothing of a new one: it may lose what that commits.
func (o *operator) another(s *Sim) {
	o.rash = s.now + 6*int64(peerTimeout)
	if o.promote != 0 && o.dead != nil {
		o.wild[o.promote] = "two at once"
	}
}

// wildly notes that the command to come is one whose losses are the operator's.
func (o *operator) wildly(why string) {
	o.wild[o.next] = why
}

// barring is why, unless a warning names n.
func (o *operator) barring(s *Sim, n *node, why string) string {
	if n.warned && !o.clear(s, n) {
		return "barred"
	}
	return why
}

// heedless reports whether the operator promotes n although a warning names it.
func (o *operator) heedless(s *Sim, n *node) bool {
	if !s.prof.careless || s.dice.oper.IntN(2) == 0 {
		return false
	}
	o.wildly("barred")
	return true
}

// answered judges the answer to a promotion or to resolve.
func (o *operator) answered(s *Sim, n *node, r *replica.Result) {
	why := o.wild[r.ID]
	delete(o.wild, r.ID)
	rep := r.Report
	switch {
	case r.Err != nil && why == "resolve":
		s.marks.note(ntRefused)
		return
	case r.Err != nil || rep == nil || rep.Epoch.IsZero() || rep.Already:
		return
	case why == "resolve":
		s.marks.note(ntResolved)
		s.truth.wild[rep.Epoch] = why
		// One that takes itself for in sync may be out, as its master warned.
		if n.out || !n.warned && s.prof.suspends() {
			s.keeps(n)
		}
		return
	case why == "barred" || why != "" && rep.Needs != "": // a flag that is not needed asserts nothing
		s.truth.wild[rep.Epoch] = why
	}
	s.announced(n, rep, why)
}

// inherits notes that n begins epoch e on the state of a mastership whose losses are the
// operator's, though that committed nothing: e goes on where it left the others out.
func (s *Sim) inherits(n *node, e record.Epoch) {
	t := &s.truth
	for _, m := range s.nodes {
		h := &m.journal.os.hard
		base := h.State.Epoch
		begun := slices.ContainsFunc(n.journal.os.hard.History, func(b wire.EpochStart) bool { return b.Epoch == base })
		if h.Promised == e && base.Less(e) && t.wild[base] != "" && t.wild[e] == "" && !begun {
			t.wild[e] = t.wild[base]
		}
	}
}

// before are the epochs that n's history names before the one it has just begun.
func (n *node) before() []wire.EpochStart {
	h := n.journal.os.hard.History
	return h[:max(0, len(h)-1)]
}

// keeps checks that the side of a split brain that is kept is kept whole.
func (s *Sim) keeps(n *node) {
	h := n.before()
	for _, l := range s.truth.lines {
		if len(h) > 0 && h[len(h)-1].Epoch == l.epoch && s.common(n, l) < l.last() {
			s.fail("resolve keeps its side whole", "%v resolves in favour of its side, which has committed %d; its journal agrees up to %d", n.id, l.last(), s.common(n, l))
		}
	}
}

// common is the number through which n's journal is of line l.
func (s *Sim) common(n *node, l *line) record.Seq {
	for q := min(l.last(), n.rep.View(n.now()).Last); q > 0; q-- {
		rec := n.find(q)
		if rec == nil { // trimmed, which it is where it is committed
			return q
		}
		if l.holds(q, rec.Sum) {
			return q
		}
	}
	return 0
}

// announced checks that what a promotion loses is what its report says, as far as
// anyone who answered holds it.
func (s *Sim) announced(n *node, rep *replica.PromoteReport, why string) {
	lost := false
	if why == "barred" {
		s.marks.note(ntBarred)
		if rep.Needs == "" {
			return // what that loses was said by the warning
		}
	}
	var before, loss record.Epoch // the last of its past, and the last over a loss
	for _, h := range n.before() {
		if before = h.Epoch; h.Loss {
			loss = h.Epoch
		}
	}
	for _, l := range s.truth.lines {
		if l.epoch.Less(before) {
			continue // given up when that began, if at all
		}
		for q := s.common(n, l) + 1; q <= l.last(); q++ {
			if l.recs[q-1].Epoch.Less(loss) {
				continue // likewise, though the line went on since
			}
			lost = true
			if rep.MissingFirst != 0 && rep.MissingFirst <= q && q <= rep.MissingLast {
				continue
			}
			for _, line := range rep.Servers[1:] {
				m := s.nodes[index(line.Server)]
				d := &m.journal.durable
				if !line.Answers || q > line.Last || d.hard.Following != line.Epoch {
					continue
				}
				if rec := d.get(q); rec != nil && l.holds(q, rec.Sum) {
					s.fail("what is lost was announced", "%v is promoted to %v without number %d, which %v answered to hold; announced as missing are %d..%d", n.id, rep.Epoch, q, m.id, rep.MissingFirst, rep.MissingLast)
					return
				}
			}
		}
	}
	switch {
	case !lost:
	case why == "accept-loss":
		s.marks.note(ntLoss)
	case why == "old-master-dead":
		s.marks.note(ntDeadLie)
	}
}

// reconcile does in the calm what status says after careless acts: what it says,
// with the flags that the answers ask for, since nobody else will do it.
func (o *operator) reconcile(s *Sim, n *node, command string) {
	switch command {
	case "promote":
		barred := n.warned && !o.clear(s, n)
		o.tried[n.i]++
		tried := o.tried[n.i]
		if barred && tried <= 3 {
			return
		}
		if barred || tried > 1 {
			o.wildly(o.barring(s, n, "calm"))
		}
		s.tell(n.i, "promote, time %d", tried)
		n.post(replica.Promote{ID: o.next, OldMasterDead: tried > 1, AcceptLoss: tried > 2})
	case "resolve":
		split := slices.Clone(s.nodes)
		split = slices.DeleteFunc(split, func(m *node) bool { return !m.up || m.rep.View(m.now()).State != replica.SplitBrain })
		o.keep(s, pick(s.dice.oper, split...))
	}
}
