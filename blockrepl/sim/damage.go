package sim

import (
	"slices"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
)

// Comes from: faults.go. Does: takes from a server what it had acknowledged, where the
// promises say that nothing is lost by it: another one has everything, and somebody is
// left who can find it out. Goes to: a start on what is left.

// loseData takes from a server what it has acknowledged, as long as another
// server of the in-sync set still has everything.
func (s *Sim) loseData(f fault, n *node) {
	r := s.dice.fault
	if n.spared > s.now || s.truth.last() == 0 {
		return
	}
	if !s.spare(n) || f == fOldCopy && n.copyOf == nil {
		if f == fOldCopy {
			s.hit(f, n)
			s.crash(n, true)
			n.copyOf = n.backup()
			s.at(exp(r, peerTimeout), event{what: evStart, n: n.i})
		}
		return
	}
	hurt := func(m *node) bool { return m.damaged }
	blackout := f == fLoseTail && r.IntN(2) == 0 && !slices.ContainsFunc(s.nodes, hurt) && !slices.ContainsFunc(s.nodes, (*node).noting)
	if blackout {
		// All lose power, and one disk what it had called durable. Whoever could
		// remember it has forgotten; the longest journal end is taken all the same,
		// as long as nobody forces its server out of the set first.
		s.quiet = s.now + 6*int64(peerTimeout)
		for _, m := range s.nodes {
			m.spared = s.quiet
		}
	} else if f != fReplace {
		// What is remembered of n is durable a moment later only: someone who knows
		// stays up until then. Without that nobody could find it out.
		m := s.witness(n)
		if m == nil {
			return
		}
		if f == fOldCopy && !inState(&n.copyOf.journal.durable.hard.State, m.id) {
			return // the copy may begin without asking m; nobody could know
		}
		m.spared = s.now + 3*int64(peerTimeout)
		if n.markFile.durable.Seq < s.truth.last() || f == fOldCopy {
			// Its own marks do not tell, so it is found out by others only if they
			// are there to speak: nothing else goes wrong meanwhile.
			if !s.sound(n) {
				return
			}
			s.quiet = m.spared
		}
	}
	s.hit(f, n)
	s.crash(n, true)
	n.damaged = true
	switch f {
	case fReplace:
		s.tell(n.i, "data directory is replaced")
		n.newData()
		n.copyOf = nil
	case fOldCopy:
		s.tell(n.i, "data directory is restored from a copy that ends at %v", n.copyOf.journal.durable.last)
		n.restore(n.copyOf)
		n.copyOf = nil
	case fLoseTail:
		from := n.journal.loseTail(1 + r.IntN(10))
		s.tell(n.i, "journal loses its tail from %v on", from)
	}
	for _, m := range s.nodes {
		if blackout {
			s.crash(m, true)
			s.at(min(exp(r, peerTimeout), 2*int64(peerTimeout)), event{what: evStart, n: m.i})
		}
	}
	s.at(exp(r, peerTimeout), event{what: evStart, n: n.i})
}

// noting reports whether n is writing a state down: who is in sync would be another
// question after a power cut.
func (n *node) noting() bool {
	os, durable := &n.journal.os.hard, &n.journal.durable.hard
	return os.Proposed != nil || os.State.Epoch != durable.State.Epoch || os.State.Number != durable.State.Number
}

// unnoticed reports whether n's disk lost what it had called durable, and nobody may
// have noticed: were n promoted without those who could tell, nobody ever would.
func (s *Sim) unnoticed(n *node) bool { return n.damaged && !s.complete(n) }

// sound reports whether all but n run and everyone hears everyone.
func (s *Sim) sound(n *node) bool {
	for _, m := range s.nodes {
		if m != n && (!m.up || m.paused || m.unwell()) {
			return false
		}
		for _, k := range s.nodes {
			if k != m && (s.blocked[m.i][k.i] || k != n && m != n && s.linkOf[m.i][k.i] == nil) {
				return false
			}
		}
	}
	return s.oper.promote == 0 && s.now >= s.oper.until
}

// witness is another member that runs and knows of everything that is committed.
func (s *Sim) witness(n *node) *node {
	for _, m := range s.nodes {
		if m != n && s.member(m) && m.up && !m.unwell() && m.rep.Commit() >= s.truth.last() {
			return m
		}
	}
	return nil
}

// backup is an old copy of a data directory.
type backup struct {
	journal journal
	image   [sectorsMax]uint64
	size    int
	mark    mark
}

func (n *node) backup() *backup {
	b := &backup{image: n.image.val, size: n.image.size, mark: n.markFile}
	b.journal.durable, b.journal.os = n.journal.durable.clone(), n.journal.durable.clone()
	return b
}

func (n *node) restore(b *backup) {
	n.journal, n.mark, n.markFile = b.journal, b.mark, b.mark
	n.image.init(b.size)
	n.image.val, n.image.durable = b.image, b.image
}

// newest is the newest state that any server's disk knows, and the newest that
// was proposed beyond it.
func (s *Sim) newest() (st, proposed *wire.State) {
	for _, n := range s.nodes {
		for _, c := range []*wire.State{&n.journal.os.hard.State, &n.journal.durable.hard.State} {
			if st == nil || newerState(c, st) {
				st = c
			}
		}
	}
	for _, n := range s.nodes {
		if c := n.journal.os.hard.Proposed; c != nil && newerState(c, st) && (proposed == nil || newerState(c, proposed)) {
			proposed = c
		}
	}
	return st, proposed
}

func newerState(a, b *wire.State) bool {
	if c := a.Epoch.Compare(b.Epoch); c != 0 {
		return c > 0
	}
	return a.Number > b.Number
}

// member reports whether n is a true member of the in-sync set now, however the
// changes under way end.
func (s *Sim) member(n *node) bool {
	st, proposed := s.newest()
	in := func(st *wire.State) bool {
		for i := range st.InSync {
			if st.InSync[i].ID == n.id {
				return st.InSync[i].Incarnation == n.incarnation
			}
		}
		return false
	}
	return in(st) && (proposed == nil || in(proposed)) && !n.damaged
}

// spare reports whether another server holds all that n has acknowledged, and knows
// that it does: where only n's disk said that it admitted m, nobody is left to tell.
func (s *Sim) spare(n *node) bool {
	for _, m := range s.nodes {
		if m != n && s.member(m) && m.up && !m.unwell() && inState(&m.journal.durable.hard.State, m.id) && s.complete(m) {
			return !s.wanted(n)
		}
	}
	return false
}
