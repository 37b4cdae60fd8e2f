package sim

import (
	"slices"
	"strings"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// operator gives commands. In the time of faults they come at random, but by the
// rules that a command's own words ask the operator to keep:
//
//   - --old-master-dead is said only when the newest mastership's server is dead,
//     and stays so until the command is answered, and only of a server that is in
//     the in-sync set, and not for a server whose forget was not answered;
//   - forget --force is said to the newest master only, and whoever it leaves out of
//     the in-sync set is not promoted until it is in sync again;
//   - one promotion at a time; but two people may promote two servers at once, without a
//     flag, while nothing is asserted.
//
// In the calm the operator does what status says, and nothing else.
type operator struct {
	asserts []forced // forced forgets that are not answered yet
	next    uint64
	promote uint64 // the promotion under way; 0: none
	node    *node  // at which
	dead    *node  // kept down for it
	rash    int64  // a careless promotion may be under way until then
	until   int64  // no --old-master-dead before: a stop may have asked a slave to take over
	said    [nodesMax]said
	beside  uint64            // the second of two promotions at once
	turn    int               // whose status is looked at first
	tried   [nodesMax]int     // promotions in the calm
	creator *node             // where the volume is created, when by command
	wild    map[uint64]string // commands of a careless operator, and why
}

// said is what a node's status has been saying.
type said struct {
	next  string
	looks int
}

// order gives the command of fault f, at n or where it belongs.
func (o *operator) order(s *Sim, f fault, n *node) {
	r := s.dice.oper
	if !n.up || n.broken() {
		return
	}
	o.next++
	switch f {
	case fPromote:
		if o.promote != 0 || s.unnoticed(n) || n.warned && !o.clear(s, n) && !o.heedless(s, n) {
			return
		}
		s.hit(f, n)
		o.promote, o.node = o.next, n
		s.tell(n.i, "promote")
		n.post(replica.Promote{ID: o.next, DryRun: chance(r, 0.1)})
	case fOldDead:
		o.oldDead(s, n)
	case fForget:
		o.forget(s, n, false)
	case fWildLoss, fWildDead, fWildForget, fResolve:
		o.careless(s, f, n)
	case fStop:
		if n.tidy || o.promote != 0 || n.spared > s.now {
			return
		}
		s.hit(f, n)
		s.tell(n.i, "stop with handover")
		n.tidy = true
		n.stops[o.next] = true
		o.until = s.now + 10*int64(peerTimeout)
		n.post(replica.Stop{ID: o.next, Handover: true})
	case fUsurp:
		o.usurp(s, n)
	case fSet:
		o.set(s, n)
	case fTwo:
		o.two(s, n)
	case fResize:
		if size := s.truth.top().size + 1 + r.IntN(4); size <= sectorsMax {
			s.hit(f, n)
			s.tell(n.i, "resize to %d sectors", size)
			n.post(replica.Resize{ID: o.next, Size: int64(size) * sectorBytes})
		}
	}
}

// set changes the volume's options, mostly at the newest master.
func (o *operator) set(s *Sim, n *node) {
	r := s.dice.oper
	if st, _ := s.newest(); !st.Epoch.IsZero() && r.IntN(8) > 0 {
		n = s.nodes[index(st.Master)]
	}
	if !n.up || n.broken() {
		return
	}
	policy, keep := pick(r, wire.Suspend, wire.Continue), pick[int64](r, 0, 1<<10, 8<<10, 1<<30)
	s.hit(fSet, n)
	s.tell(n.i, "set on_degraded %v, keep %d", policy, keep)
	n.post(replica.SetOptions{ID: o.next, OnDegraded: policy, Keep: keep})
}

// two promotes n and lets another operator give a command at another server, who does
// not know of it: within the time of a message or two. Neither asserts anything.
func (o *operator) two(s *Sim, n *node) {
	r := s.dice.oper
	if len(s.nodes) == 1 || o.dead != nil || len(o.asserts) > 0 || s.unnoticed(n) || n.warned && !o.clear(s, n) {
		return
	}
	m := s.nodes[r.IntN(len(s.nodes))]
	if m == n || !m.up || m.broken() {
		return
	}
	s.hit(fTwo, n)
	o.until = s.now + 10*int64(peerTimeout)
	s.at(exp(r, 2*s.prof.latency), event{what: evSecond, n: m.i, run: m.run})
	if s.prof.careless && n.rep.View(n.now()).State == replica.SplitBrain {
		o.keep(s, n)
		return
	}
	s.tell(n.i, "promote, one of two")
	n.post(replica.Promote{ID: o.next})
}

// second is the other operator's command.
func (o *operator) second(s *Sim, n *node) {
	r := s.dice.oper
	if s.calm || n.broken() {
		return
	}
	o.next++
	at := n
	if st, _ := s.newest(); !st.Epoch.IsZero() {
		at = s.nodes[index(st.Master)]
	}
	switch k := r.IntN(6); {
	case s.prof.careless && n.rep.View(n.now()).State == replica.SplitBrain:
		o.keep(s, n)
	case k < 3:
		if s.unnoticed(n) || n.warned && !o.clear(s, n) {
			return
		}
		s.tell(n.i, "promote, the other of two")
		o.beside = o.next
		n.post(replica.Promote{ID: o.next})
	case !at.up || at.broken():
	case k == 3:
		o.forget(s, at, false)
	case k == 4:
		o.set(s, at)
	default:
		o.order(s, fResize, at)
	}
}

// forced is a forget --force under way: what it asserts binds from when it is
// said, however late the server that was asked carries it out.
type forced struct {
	id   uint64
	at   *node
	bars []*node
}

// bar notes that m must not be promoted from now on.
func (f *forced) bar(m *node) {
	m.warned = true
	f.bars = append(f.bars, m)
}

// settled forgets about forced forgets that are answered, or will never be.
func (o *operator) settled(done func(forced) bool) { o.asserts = slices.DeleteFunc(o.asserts, done) }

// noted hears what a master tells by itself: whom it goes on without, as on_degraded =
// continue allows. What it proposed may come to be known when it is dead.
func (o *operator) noted(s *Sim, n *node, t *replica.Note) {
	p := n.journal.os.hard.Proposed
	if p == nil || !strings.HasPrefix(t.Text, "on_degraded = continue: going on without") {
		return
	}
	for _, id := range strings.Fields(t.Args[1].(string)) {
		m := s.nodes[index(record.MustServerID(id))]
		m.warned, m.without = true, *p
	}
}

// builtOn reports whether mastership e led to state st: counters alone do not tell,
// where two masterships were forced beside each other.
func (s *Sim) builtOn(st *wire.State, e record.Epoch) bool {
	for _, n := range s.nodes {
		for _, h := range []*replica.Hard{&n.journal.os.hard, &n.journal.durable.hard} {
			if !e.IsZero() && h.State.Epoch == st.Epoch && len(h.History) > 0 && !e.Less(h.History[0].Epoch) {
				return slices.ContainsFunc(h.History, func(x wire.EpochStart) bool { return x.Epoch == e })
			}
		}
	}
	return true
}

// clear takes a warning back once the server is in sync again.
func (o *operator) clear(s *Sim, n *node) bool {
	open := slices.ContainsFunc(o.asserts, func(f forced) bool { return slices.Contains(f.bars, n) })
	if st, _ := s.newest(); s.member(n) && !open && newerState(st, &n.without) && s.builtOn(st, n.leftBy) {
		n.warned = false
	}
	return !n.warned
}

// usurp promotes n while the master hears nobody or sleeps: it goes on as long as
// it believes in itself, with its clients, and comes back later.
func (o *operator) usurp(s *Sim, n *node) {
	st, _ := s.newest()
	if st.Epoch.IsZero() || o.promote != 0 || n.warned && !o.clear(s, n) && !o.heedless(s, n) {
		return
	}
	m := s.nodes[index(st.Master)]
	if m == n || !m.up {
		return
	}
	s.hit(fUsurp, n)
	r := s.dice.oper
	if r.IntN(3) == 0 {
		s.inflict(fPause, m)
	} else {
		s.inflict(fIsolate, m)
		if r.IntN(2) == 0 { // the others notice, it does not
			for _, k := range s.nodes {
				if l := s.linkOf[k.i][m.i]; k != m && l != nil {
					s.at(0, event{what: evLinkDown, n: k.i, run: k.run, a: l.session})
				}
			}
		}
	}
	s.at(exp(r, peerTimeout/2), event{what: evUsurp, n: n.i, run: n.run})
}

// usurped is the promotion, and sometimes a crash in its middle.
func (o *operator) usurped(s *Sim, n *node) {
	if o.promote != 0 || s.calm || s.now < s.quiet || s.unnoticed(n) {
		return
	}
	if n.warned && !s.prof.careless && !o.clear(s, n) {
		return // the warning came since
	}
	o.next++
	if n.warned && s.prof.careless {
		o.wildly("barred")
	}
	o.promote, o.node = o.next, n
	s.tell(n.i, "promote, behind the master's back")
	n.post(replica.Promote{ID: o.next})
	if m := s.nodes[s.dice.oper.IntN(len(s.nodes))]; m != n && s.dice.oper.IntN(2) == 0 {
		s.at(exp(s.dice.oper, peerTimeout/8), event{what: evCrash, n: m.i, run: m.run})
	}
}

// oldDead promotes a member of the in-sync set when the newest master is dead.
func (o *operator) oldDead(s *Sim, n *node) {
	st, proposed := s.newest()
	if o.promote != 0 || s.now < o.until || st.Epoch.IsZero() || !s.member(n) || proposed != nil && proposed.Master != st.Master {
		return
	}
	if !n.doubt.Epoch.IsZero() && !newerState(st, &n.doubt) {
		return // somebody may yet hear that it is forgotten
	}
	if s.hopeless(n) {
		return // with that the others' images are left out, which alone have everything
	}
	m := s.nodes[index(st.Master)]
	if m == n || m.up || n.warned && !o.clear(s, n) && !o.heedless(s, n) {
		return
	}
	s.hit(fOldDead, n)
	o.promote, o.node, o.dead = o.next, n, m
	m.held = true
	if s.now < o.rash {
		o.wildly("two at once")
	}
	s.tell(n.i, "promote --old-master-dead (%v)", m.id)
	n.post(replica.Promote{ID: o.next, OldMasterDead: true})
}

// forget takes a server out at whoever thinks to be the master.
func (o *operator) forget(s *Sim, n *node, wild bool) {
	r := s.dice.oper
	if n.rep.Epoch().Server != n.id {
		return
	}
	m := s.nodes[r.IntN(len(s.nodes))]
	if m == n {
		return
	}
	force := wild || chance(r, 0.4)
	if force {
		// Its words: m will not be promoted. So n must be the newest master, and no
		// promotion may be under way.
		st, _ := s.newest()
		if n.damaged && !wild {
			return // nor would one whose disk was just restored leave out who could tell
		}
		if !wild && (o.promote != 0 || s.now < max(o.until, o.rash) || st.Master != n.id) {
			return
		}
		f := forced{id: o.next, at: n}
		for _, k := range s.nodes { // no majority may know of it
			h := &n.journal.os.hard
			if k == m || !inState(&h.State, k.id) || h.Proposed != nil && !inState(h.Proposed, k.id) {
				f.bar(k)
			}
		}
		o.asserts = append(o.asserts, f)
	}
	if wild {
		s.hit(fWildForget, n)
		s.truth.alone[n.rep.Epoch()] = true
		n.rash = n.rep.View(n.now()).Role == wire.RoleCandidate
	} else {
		s.hit(fForget, n)
	}
	if st, _ := s.newest(); st != nil {
		m.doubt = *st
	}
	s.tell(n.i, "forget %v, force %v", m.id, force)
	n.post(replica.Forget{ID: o.next, Server: m.id, Force: force})
}

// result hears the answer to a command.
func (o *operator) result(s *Sim, n *node, r *replica.Result) {
	s.tell(n.i, "command %d: %v %v", r.ID, r.Err, r.Note)
	for _, f := range o.asserts {
		if st := n.rep.View(n.now()).Config; f.id == r.ID && r.Err == nil {
			for _, m := range s.nodes { // the answer names whom a change before leaves out, too
				if !inState(&st, m.id) {
					m.warned = true
				}
			}
		}
	}
	o.settled(func(f forced) bool { return f.id == r.ID })
	if rep := r.Report; r.Err == nil && rep != nil && !rep.Epoch.IsZero() && !rep.Already {
		o.leftOut(s, n, r)
		if r.ID == o.beside {
			s.marks.note(ntSecond)
		}
	}
	o.answered(s, n, r)
	if n.filling != nil && r.ID == n.filling.id {
		s.initialized(n, r.Err)
	}
	if r.ID == o.promote {
		o.ended(s)
	}
	if n.stops[r.ID] {
		delete(n.stops, r.ID)
		for j := range s.nodes {
			if l := s.linkOf[n.i][j]; l != nil && chance(s.dice.oper, 0.9) {
				s.send(n, l.session, &wire.Leaving{Reason: "stops", Restart: true, Vow: n.rep.Vow()})
			}
		}
		s.crash(n, false)
		s.at(exp(s.dice.oper, peerTimeout), event{what: evStart, n: n.i})
	}
}

// leftOut hears whom a promotion at n left out: all of them are named. Only where no
// majority knows of it does this operator heed that; else it tries whether the rules
// alone, without a flag, keep those servers from being promoted.
func (o *operator) leftOut(s *Sim, n *node, r *replica.Result) {
	rep := r.Report
	out := func(id record.ServerID) bool { return !slices.Contains(rep.InSync, id) }
	for _, line := range rep.Servers {
		if line.InSync && out(line.Server) && !slices.Contains(strings.Fields(r.Note), line.Server.String()) {
			s.fail("who is left out is named", "%v is promoted to %v without %v, which the report has in sync; the warning is %q", n.id, rep.Epoch, line.Server, r.Note)
		}
	}
	st := n.rep.View(n.now()).Config
	forced := st.Forced || st.Epoch != rep.Epoch // it may follow another one already
	for _, m := range s.nodes {
		if forced && r.Note != "" && out(m.id) {
			m.warned, m.leftBy = true, rep.Epoch
		}
	}
}

func (o *operator) ended(s *Sim) {
	o.promote, o.node = 0, nil
	if o.dead != nil {
		o.dead.held = false
		s.at(0, event{what: evStart, n: o.dead.i})
		o.dead = nil
	}
}

// crashed hears that a server died: nobody will answer its commands.
func (o *operator) crashed(n *node) {
	o.settled(func(f forced) bool { return f.at == n })
	if o.node == n {
		o.ended(n.s)
	}
}
