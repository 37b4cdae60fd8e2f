package sim

import (
	"slices"
	"strings"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// The calm: no fault strikes any more, and the operator does what status says until every
// server is healthy, or was not in the stated time.

// act looks at status in the calm and does what it has been saying for a while.
func (o *operator) act(s *Sim) {
	s.at(int64(operatorLook), event{what: evOperator})
	for _, n := range s.nodes { // whoever can be repaired is not to be forgotten
		if n.up && n.rep.View(n.now()).State == replica.FailedHere {
			if n.failed++; n.wanting() && n.failed > 2 && o.instead(s, n) {
				return // restarting it does not help
			}
			if n.failed > 2 && n.failed%2 == 0 {
				continue // nor does it always; others need something, too
			}
			s.crash(n, false)
			s.at(0, event{what: evStart, n: n.i})
			return
		}
	}
	for i := range s.nodes { // beginning behind whoever was obeyed last: each gets its turn
		n := s.nodes[(o.turn+i)%len(s.nodes)]
		if !n.up {
			continue
		}
		v := n.rep.View(n.now())
		d := &o.said[n.i]
		if v.Next == "" || v.Next != d.next {
			*d = said{next: v.Next}
			continue
		}
		if d.looks++; d.looks < 3 {
			continue
		}
		*d = said{}
		o.turn = int(n.i) + 1
		o.obey(s, n, &v)
		return // one thing at a time
	}
}

// obey does what status says is next.
func (o *operator) obey(s *Sim, n *node, v *replica.View) {
	s.tell(n.i, "status: %v, %s; next: %s", v.State, v.Reason, v.Next)
	o.next++
	_, command, ok := strings.Cut(v.Next, "blockrepl ")
	if strings.Contains(v.Next, "when this one is stopped") && o.instead(s, n) {
		return
	}
	if m := s.ailing(n, v.Next); m != nil {
		m.ailed++
	}
	if m := s.ailing(n, v.Next); m != nil && (!ok || m.ailed%3 == 0 || strings.Contains(v.Next, "when this one is stopped") || s.dice.oper.IntN(2) == 0) {
		s.marks.note(ntRepaired)
		s.tell(m.i, "is repaired")
		s.crash(m, false)
		s.at(0, event{what: evStart, n: m.i})
		return
	}
	if !ok {
		return
	}
	words := strings.Fields(command)
	if s.prof.careless && (words[0] == "promote" || words[0] == "resolve") {
		o.reconcile(s, n, words[0])
		return
	}
	switch words[0] {
	case "promote":
		if strings.HasPrefix(v.Next, "on another") {
			for _, m := range s.nodes {
				if m != n && m.up && s.complete(m) {
					n = m
				}
			}
		}
		if o.promote != 0 {
			return
		}
		o.promote, o.node = o.next, n
		// Where those who knew that n is in sync have lost their data, and no server is
		// left that is known to be, there is only to accept a loss; the oracle knows
		// that there is none.
		o.tried[n.i]++
		dead := s.noMaster()
		n.post(replica.Promote{ID: o.next, OldMasterDead: dead && s.complete(n), AcceptLoss: dead && s.complete(n) && !s.better(n) && o.tried[n.i] > 2})
	case "forget":
		at := n
		if strings.HasPrefix(v.Next, "on the master") {
			at = s.nodes[index(v.Config.Master)]
		}
		force := len(words) > 3 && words[3] == "--force"
		server := record.MustServerID(strings.TrimRight(words[2], ";."))
		if at.up {
			at.post(replica.Forget{ID: o.next, Server: server, Force: force || len(s.nodes) == 2})
		}
	case "resolve":
		s.fail("no split brain by the rules", "%v: %s", n.id, v.Reason)
	}
}

// ailing is the server whose disk n's status asks to be repaired, nil when there is none.
func (s *Sim) ailing(n *node, next string) *node {
	if strings.Contains(next, "repair the disk") || strings.Contains(next, "when this one is stopped") {
		return n
	}
	for _, m := range s.nodes {
		if m.up && strings.HasPrefix(next, "repair or restart "+m.id.String()) {
			return m
		}
	}
	return nil
}

// instead stops n and promotes another server that has everything.
func (o *operator) instead(s *Sim, n *node) bool {
	if o.promote != 0 {
		return false
	}
	for _, m := range s.nodes {
		if m == n || !m.up || m.broken() || !s.complete(m) || m.wanting() || s.better(m) {
			continue
		}
		s.crash(n, false)
		o.next++
		n.held, n.failed = true, 0
		o.promote, o.node, o.dead = o.next, m, n
		if s.prof.careless {
			o.wildly(o.barring(s, m, "calm"))
		}
		s.tell(m.i, "promote instead of %v", n.id)
		m.post(replica.Promote{ID: o.next, OldMasterDead: true, AcceptLoss: !s.member(m)})
		return true
	}
	return false
}

// noMaster reports whether the server that the newest state names master is none.
func (s *Sim) noMaster() bool {
	st, _ := s.newest()
	m := s.nodes[index(st.Master)]
	return !m.up || m.rep.View(m.now()).Role != wire.RoleMaster
}

// better reports whether n is not in sync and another server is, with everything.
func (s *Sim) better(n *node) bool {
	return !s.member(n) && slices.ContainsFunc(s.nodes, func(m *node) bool { return m != n && s.member(m) && s.complete(m) && !m.wanting() })
}

// complete reports whether n holds everything that was committed.
func (s *Sim) complete(n *node) bool {
	last := s.truth.last()
	if n.journal.durable.hard.Resync != nil || last == 0 {
		return last == 0
	}
	if d := &n.journal.durable; d.hard.Checkpoint >= last && last < d.first && last <= d.last.Seq {
		return true // in its image, and trimmed
	}
	rec := n.journal.durable.get(last)
	top := s.truth.top()
	return rec != nil && top.holds(last, rec.Sum) || n.journal.durable.last == top.end()
}

// healthy reports whether every server is, and has everything.
func (s *Sim) healthy() bool {
	l := s.truth.shown(s.nodes[0])
	for _, n := range s.nodes {
		if !n.up || n.app.applied != l.last() || s.truth.shown(n) != l || n.app.busy || len(n.in.events) > 0 {
			return false
		}
	}
	for _, c := range s.clients {
		if len(c.pending) > 0 {
			return false
		}
	}
	for _, n := range s.nodes {
		v := n.rep.View(n.now())
		if v.State != replica.Healthy || v.Last != l.last() {
			return false
		}
	}
	return true
}

// done reports whether the schedule is over.
func (s *Sim) done() bool {
	if !s.calm || s.now < s.calmAt+int64(s.prof.wind) {
		return false
	}
	if s.events%64 == 0 && s.healthy() {
		if s.wellAt == 0 {
			s.wellAt = s.now
		}
		// What clients gave up is answered still: frames of it are under way.
		return s.now > s.wellAt+int64(restMost) || !slices.ContainsFunc(s.nodes, func(n *node) bool { return s.left(n) != "" })
	}
	if s.now > s.calmAt+int64(s.calmMost()) {
		for _, n := range s.nodes {
			if !n.up {
				s.tell(n.i, "is down")
				continue
			}
			v := n.rep.View(n.now())
			s.tell(n.i, "%v: %s; next: %s", v.State, v.Reason, v.Next)
			s.tell(n.i, "role %v, epoch %v, state %v", v.Role, v.Epoch, v.Config)
			s.tell(n.i, "last %v, committed %v, applied %v, durable %v", v.Last, v.Committed, v.Applied, v.Durable)
			for _, p := range v.Peers {
				s.tell(n.i, "  peer %v is %v, %s", p.Server, p.State, p.Reason)
			}
		}
		for _, c := range s.clients {
			s.tell(-1, "client %d: %d pending, connected %v", c.i, len(c.pending), c.conn != nil)
			for _, q := range c.pending {
				s.tell(-1, "  request %d: %v, in %d copies, sent first at %v", q.id, q.kind, q.copies, time.Duration(q.inv))
			}
		}
		s.fail("liveness", "not healthy %v after the last fault", s.calmMost())
	}
	return false
}

// calmMost is the stated time of liveness of this schedule.
func (s *Sim) calmMost() time.Duration {
	if s.prof.careless {
		return carelessMax
	}
	return calmMax + time.Duration(max(0, len(s.nodes)-2))*calmForServer
}

// final is what must be true at the end.
func (s *Sim) final() {
	for _, n := range s.nodes {
		n.image.evict(n, true)
		s.whole(n, "at the end")
		if what := s.left(n); what != "" {
			s.fail("memory is bounded", "nothing is under way, and %v holds %s", n.id, what)
		}
		for q := n.journal.os.first; q <= n.journal.os.last.Seq; q++ {
			if !s.truth.shown(n).holds(q, n.journal.os.get(q).Sum) {
				s.fail("one order", "%v holds another record %d at the end", n.id, q)
				return
			}
		}
	}
}
