package sim

import (
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
)

// In some schedules images hold something before there is a volume, and the
// operator creates it by init: from what the image of one server holds, empty, or
// from a file, which takes a while. That server may crash in the middle; then, as
// long as there is no volume, the command is given again. Whatever comes of it, the
// volume's first state is what the server's image held when the command was answered.
// On another server he may begin one too, and call it off: that one's image is written
// to meanwhile, whoever has the volume by then.

// initKind is what init gives the image.
type initKind uint8

const (
	initKeep initKind = iota // what it holds
	initZero
	initFrom // what a file holds
)

// filling is an init under way, as the shell carries it out.
type filling struct {
	kind   initKind
	step   int    // sectors are filled below
	id     uint64 // of the command: InitStart, then Init
	filled bool
	vain   bool // it is called off before its end
}

// seedImages gives some images content and lets the servers start over a while.
func (s *Sim) seedImages() {
	r := s.dice.bits
	for _, n := range s.nodes {
		if r.IntN(2) == 0 {
			for i := range n.image.size {
				if r.IntN(2) == 0 {
					n.image.set(i, s.foreign(i))
				}
			}
			n.image.beginSync()
			n.image.endSync()
		}
	}
	s.oper.creator = s.nodes[r.IntN(len(s.nodes))]
	s.at(r.Int64N(int64(2*peerTimeout)), event{what: evInit, n: s.oper.creator.i})
}

// foreign is a value that no client wrote.
func (s *Sim) foreign(sector int) uint64 {
	q := &request{id: uint64(len(s.reqs)), lo: sector, n: 1}
	s.reqs = append(s.reqs, q)
	return q.id
}

// ordered gives the command, again and again until there is a volume.
func (o *operator) ordered(s *Sim) {
	n := o.creator
	s.at(int64(peerTimeout)+exp(s.dice.bits, 2*peerTimeout), event{what: evInit, n: n.i})
	for _, m := range s.nodes {
		if !m.journal.os.hard.State.Epoch.IsZero() {
			// There is one; nobody would create another, but where it is seen at once.
			if n.up && !n.broken() && n.filling == nil && !n.rep.View(n.now()).Blank && s.dice.bits.IntN(4) == 0 {
				o.next++
				n.filling = &filling{id: o.next}
				n.post(replica.InitStart{ID: o.next})
			}
			return
		}
	}
	if n.up && !n.broken() && n.filling == nil {
		n.beginInit(initKind(s.dice.bits.IntN(3)), false)
	}
	if m := s.nodes[s.dice.bits.IntN(len(s.nodes))]; m != n && m.up && !m.broken() && m.filling == nil {
		m.beginInit(initFrom, true)
	}
}

// beginInit is the command at its server.
func (n *node) beginInit(kind initKind, vain bool) {
	o := &n.s.oper
	if !n.rep.View(n.now()).Blank {
		return
	}
	o.next++
	n.filling = &filling{kind: kind, id: o.next, vain: vain}
	n.s.hit(fInit, n)
	n.s.tell(n.i, "init, kind %d", kind)
	n.post(replica.InitStart{ID: o.next})
}

// fill is a step of an init.
func (n *node) fill() {
	f, r := n.filling, n.s.dice.bits
	if f == nil || n.ill {
		return
	}
	if f.kind == initKeep {
		f.step = n.image.size
	}
	for k := 1 + r.IntN(4); k > 0 && f.step < n.image.size; k-- {
		v := uint64(0)
		if f.kind == initFrom && r.IntN(2) == 0 {
			v = n.s.foreign(f.step)
		}
		n.image.set(f.step, v)
		f.step++
	}
	if f.step < n.image.size {
		n.after(exp(r, 10*time.Millisecond), event{what: evFill})
		return
	}
	n.image.beginSync()
	n.image.endSync()
	if f.vain {
		n.s.tell(n.i, "init is called off")
		n.filling = nil
		n.post(replica.InitEnd{})
		return
	}
	n.s.oper.next++
	f.id, f.filled = n.s.oper.next, true
	n.post(replica.Init{ID: f.id})
}

// initialized hears the answer.
func (s *Sim) initialized(n *node, err error) {
	if err == nil && !n.filling.filled {
		n.after(int64(time.Millisecond), event{what: evFill})
		return
	}
	n.filling = nil
	if err != nil {
		s.marks.note(ntInitRefused)
		return
	}
	s.marks.note(ntInit)
	l := s.truth.lines[0]
	if l.last() > 0 {
		s.fail("a volume is created once", "%v creates it; it has %d records", n.id, l.last())
		return
	}
	for i := range l.vers {
		for _, v := range l.vers[i] { // of a creation that a power cut took back
			s.reqs[v.val].kind = 0
		}
		l.vers[i] = nil
		v := n.image.val[i]
		if v == 0 {
			continue
		}
		l.vers[i] = []version{{0, v}}
		q := s.reqs[v]
		q.kind, q.inv, q.res, q.copies = reqWrite, -1, -1, 1
	}
}
