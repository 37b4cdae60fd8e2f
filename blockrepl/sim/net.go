package sim

import (
	"slices"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// link is one session between two servers: frames arrive in order until it is
// cut, and each end learns of the cut in its own time. Only the frames that
// package wire calls safe are lost, doubled or overtaken.
type link struct {
	session uint64
	ends    [2]int8
	runs    [2]uint32
	up      [2]bool // LinkUp was told and LinkDown was not
	closed  [2]bool
	last    [2]int64 // when the newest ordered frame of this end arrives
	heard   [2]int64
	held    [2][]wire.Message // sent by this end, waiting for the network
}

func (l *link) end(i int8) int {
	if l.ends[0] == i {
		return 0
	}
	return 1
}

func (s *Sim) link(session uint64) *link { return s.links[session-1] }

// dial opens a link when n has none to m, and closes one that is silent.
func (s *Sim) dial(n, m *node) {
	s.at(int64(20*time.Millisecond)+s.dice.net.Int64N(int64(60*time.Millisecond)), event{what: evDial, n: n.i, p: m.i})
	if !n.up || n.paused {
		return
	}
	if l := s.linkOf[n.i][m.i]; l != nil {
		k := l.end(n.i)
		dumb := s.blocked[m.i][n.i] || l.closed[1-k] || m.run != l.runs[1-k] || !m.up // else the shell's own frames keep it alive
		if dumb && s.now-l.heard[k] > 4*int64(peerTimeout) {
			s.closeSession(n, l.session)
			n.post(replica.LinkDown{Peer: m.id, Session: l.session, Reason: "silent"})
		}
		return
	}
	if n.i > m.i || !m.up || m.paused || s.blocked[n.i][m.i] || s.blocked[m.i][n.i] {
		return
	}
	s.session++
	l := &link{session: s.session, ends: [2]int8{n.i, m.i}, runs: [2]uint32{n.run, m.run}}
	s.links = append(s.links, l)
	for _, e := range []*node{n, m} {
		e.after(s.latency(), event{what: evLinkUp, a: l.session})
	}
}

func (s *Sim) latency() int64 { return int64(30*time.Microsecond) + exp(s.dice.net, s.prof.latency) }

func (s *Sim) linkUp(n *node, ev *event) {
	l := s.link(ev.a)
	k := l.end(n.i)
	m := s.nodes[l.ends[1-k]]
	if l.closed[k] || l.closed[1-k] || m.run != l.runs[1-k] || !m.up {
		l.closed[k] = true
		return
	}
	if old := s.linkOf[n.i][m.i]; old != nil {
		s.closeSession(n, old.session)
	}
	l.up[k], l.heard[k] = true, s.now
	s.linkOf[n.i][m.i] = l
	n.post(replica.LinkUp{Peer: m.id, Session: l.session, Incarnation: m.incarnation})
	if !s.blocked[m.i][n.i] {
		s.release(n, l, k)
	}
}

// release delivers what was held for end k.
func (s *Sim) release(n *node, l *link, k int) {
	held := l.held[1-k]
	l.held[1-k] = nil
	for _, msg := range held {
		if l.closed[k] {
			return // one of them was damaged
		}
		s.deliver(n, l, k, msg)
	}
}

// closeSession ends a session at n's side; the other learns of it.
func (s *Sim) closeSession(n *node, session uint64) {
	l := s.link(session)
	k := l.end(n.i)
	if l.closed[k] {
		return
	}
	l.closed[k], l.up[k] = true, false
	m := s.nodes[l.ends[1-k]]
	if s.linkOf[n.i][m.i] == l {
		s.linkOf[n.i][m.i] = nil
	}
	n.cursors[m.i] = cursor{}
	if !l.closed[1-k] && !s.blocked[n.i][m.i] {
		s.at(s.latency(), event{what: evLinkDown, n: m.i, run: l.runs[1-k], a: session})
	}
}

func (s *Sim) linkDown(n *node, ev *event) {
	l := s.link(ev.a)
	k := l.end(n.i)
	if l.closed[k] {
		return
	}
	s.closeSession(n, ev.a)
	n.post(replica.LinkDown{Peer: serverIDs[l.ends[1-k]], Session: l.session, Reason: "cut"})
}

// cutLinks ends n's sessions: its process is gone. The others learn of it soon,
// or, after a power cut, when they miss it.
func (s *Sim) cutLinks(n *node, silent bool) {
	for j := range s.nodes {
		l := s.linkOf[n.i][j]
		if l == nil {
			continue
		}
		k := l.end(n.i)
		l.closed[k], l.up[k] = true, false
		s.linkOf[n.i][j] = nil
		if !silent && !s.blocked[n.i][j] {
			s.at(s.latency(), event{what: evLinkDown, n: int8(j), run: l.runs[1-k], a: l.session})
		}
	}
}

// safe reports whether a frame may be lost, doubled and overtaken.
func safe(m wire.Message) bool {
	switch m.(type) {
	case damaged:
		return false
	case *wire.Append, *wire.Ack, *wire.Request, *wire.Heartbeat, *wire.HeartbeatAck, *wire.ReadIndex, *wire.ReadIndexOK:
		return true
	}
	return false
}

// send puts a frame on its way.
func (s *Sim) send(n *node, session uint64, msg wire.Message) {
	l := s.link(session)
	k := l.end(n.i)
	if l.closed[k] {
		return
	}
	if f, ok := msg.(*wire.Forward); ok {
		msg = copyForward(f)
	}
	msg = s.carry(n, msg)
	m := s.nodes[l.ends[1-k]]
	ev := event{what: evFrame, n: m.i, p: n.i, run: l.runs[1-k], a: session, msg: msg}
	r, p := s.dice.net, &s.prof
	d := s.latency()
	if safe(msg) && !s.calm {
		switch {
		case chance(r, p.lose):
			s.hit(fLose, n)
			return
		case chance(r, p.double):
			s.hit(fDouble, n)
			s.at(d+s.latency(), ev)
		case chance(r, p.overtake):
			s.hit(fOvertake, n)
			s.at(d+exp(r, 10*time.Millisecond), ev)
			return
		}
	}
	at := max(s.now+d, l.last[k])
	l.last[k] = at
	s.at(at-s.now, ev)
}

// copyForward gives the master drafts of its own: it seals them.
func copyForward(f *wire.Forward) *wire.Forward {
	c := &wire.Forward{Epoch: f.Epoch, Index: f.Index, Records: make([]*record.Record, len(f.Records))}
	for i, rec := range f.Records {
		c.Records[i] = &record.Record{Header: rec.Header, Raw: slices.Clone(rec.Raw)}
	}
	return c
}

// arrive hands a frame to its receiver, or holds it while the network does.
func (s *Sim) arrive(n *node, ev *event) {
	l := s.link(ev.a)
	k := l.end(n.i)
	if l.closed[k] {
		return
	}
	if s.blocked[ev.p][n.i] || !l.up[k] || len(l.held[1-k]) > 0 {
		l.held[1-k] = append(l.held[1-k], ev.msg.(wire.Message))
		return
	}
	s.deliver(n, l, k, ev.msg.(wire.Message))
}

func (s *Sim) deliver(n *node, l *link, k int, msg wire.Message) {
	l.heard[k] = s.now
	from := l.ends[1-k]
	switch m := msg.(type) {
	case damaged:
		s.broken(n, l, serverIDs[from], m)
	case *wire.HashQuery:
		n.answer(from, l.session, m)
	case *wire.ExtentData:
		n.copied(l.session, m)
	case *wire.Fetch:
		n.lend(l.session, m)
	case *wire.Fetched:
		n.fetched(from, m)
	default:
		n.post(replica.Received{Peer: serverIDs[from], Session: l.session, Msg: msg})
	}
}

// block holds the frames i → j, or lets them go again in their order.
func (s *Sim) block(i, j int8, on bool) {
	if s.blocked[i][j] == on {
		return
	}
	s.blocked[i][j] = on
	if on {
		return
	}
	for _, l := range s.links {
		k := l.end(j)
		if l.ends[k] != j || l.ends[1-k] != i || len(l.held[1-k]) == 0 {
			continue
		}
		if l.up[k] && s.nodes[j].up && s.nodes[j].run == l.runs[k] {
			s.release(s.nodes[j], l, k)
		}
	}
}
