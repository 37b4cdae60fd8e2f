package sim

import (
	"math"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
)

// fault is the kind of a fault or of an operator's act.
type fault uint8

const (
	fCrash      fault = iota // the process is killed
	fPower                   // the machine loses power
	fPause                   // the process stops for a while and does not know it
	fCut                     // a link is cut
	fIsolate                 // a server hears nobody and nobody hears it
	fOneWay                  // one server does not hear another
	fSlowDisk                // fsyncs take long
	fSickDisk                // a journal fsync fails
	fReplace                 // the data directory is replaced by an empty one
	fOldCopy                 // the data directory is an older copy of itself
	fLoseTail                // the journal loses its last records without a word
	fNoSpace                 // the journal's room ends for a while
	fPromote                 // promote, as it is allowed without a flag
	fOldDead                 // promote --old-master-dead, when it is
	fForget                  // forget a server
	fStop                    // an orderly stop with handover
	fResize                  // the volume grows
	fUsurp                   // the master is cut off or sleeps, and a slave is promoted
	fLose                    // a frame is lost
	fDouble                  // a frame arrives twice
	fOvertake                // a frame is overtaken
	fMove                    // a client moves to another server and sends again
	fCorrupt                 // bits of a frame are flipped
	fBare                    // a client without a token sends again
	fWildLoss                // careless: promote --accept-loss
	fWildDead                // careless: promote --old-master-dead, whether it is or not
	fWildForget              // careless: forget --force, and no heed of its warning
	fResolve                 // resolve
	fInit                    // init
	fSet                     // on_degraded and keep are changed
	fHungDisk                // no fsync ends for a while, and the process answers
	fUneven                  // a server starts with another peer_timeout
	fRot                     // records of the journal cannot be read any more
	fTwo                     // two people give commands at two servers at once
	fSickImage               // the image's disk fails: an fsync, a write, a read, or for want of room
	faults
)

var faultNames = [faults]string{"crash", "power", "pause", "cut", "isolate", "one-way", "slow-disk", "sick-disk",
	"replace", "old-copy", "lose-tail", "no-space", "promote", "old-dead", "forget", "stop", "resize", "usurp", "lose", "double", "overtake", "move", "corrupt", "bare",
	"accept-loss", "wild-dead", "wild-forget", "resolve", "init", "set", "hung-disk", "uneven", "rot", "two", "sick-image"}

func (f fault) String() string { return faultNames[f] }

// often reports whether f comes too often to look at states.
func (f fault) often() bool { return f >= fLose && f <= fBare }

// commanded reports whether f is an act of the operator.
func (f fault) commanded() bool {
	return f >= fPromote && f <= fUsurp || f >= fWildLoss && f <= fSet || f == fTwo
}

// hit notes that a fault met a server in its present state.
func (s *Sim) hit(f fault, n *node) {
	if f.often() {
		s.marks.frames[f]++
		return
	}
	s.marks.hit(f, n.state())
}

// strike is the next fault.
func (s *Sim) strike() {
	if s.calm {
		return
	}
	r := s.dice.fault
	s.at(exp(r, s.prof.every), event{what: evFault})
	if s.now < s.quiet {
		return
	}
	x := r.Float64() * s.prof.total
	for f := range faults {
		if x -= s.prof.weight[f]; x < 0 && s.prof.weight[f] > 0 {
			s.inflict(f, s.nodes[r.IntN(len(s.nodes))])
			return
		}
	}
}

// inflict lets fault f meet node n.
func (s *Sim) inflict(f fault, n *node) {
	r := s.dice.fault
	if f.commanded() {
		s.oper.order(s, f, n)
		return
	}
	if !n.up {
		return
	}
	short := exp(r, peerTimeout/2)
	long := exp(r, 3*peerTimeout)
	switch f {
	case fCrash, fPower:
		if n.spared > s.now {
			return
		}
		s.hit(f, n)
		s.crash(n, f == fPower)
		s.at(pick(r, short, long), event{what: evStart, n: n.i})
	case fPause:
		s.hit(f, n)
		n.paused, n.pausedTo = true, max(n.pausedTo, s.now+pick(r, short, long))
		s.tell(n.i, "is paused for %v", time.Duration(n.pausedTo-s.now))
		n.kick()
	case fCut:
		m := s.nodes[r.IntN(len(s.nodes))]
		if l := s.linkOf[n.i][m.i]; l != nil && l.up[l.end(n.i)] {
			s.hit(f, n)
			s.tell(n.i, "link to %v is cut", m.id)
			s.at(short, event{what: evLinkDown, n: n.i, run: n.run, a: l.session})
			s.at(pick(r, 0, short), event{what: evLinkDown, n: m.i, run: m.run, a: l.session})
		}
	case fIsolate:
		s.hit(f, n)
		s.tell(n.i, "is isolated")
		for _, m := range s.nodes {
			if m != n {
				s.block(n.i, m.i, true)
				s.block(m.i, n.i, true)
			}
		}
		s.at(long, event{what: evUndo, n: n.i, p: -1, a: uint64(f)})
	case fOneWay:
		m := s.nodes[r.IntN(len(s.nodes))]
		if m != n {
			s.hit(f, n)
			s.tell(n.i, "is not heard by %v", m.id)
			s.block(n.i, m.i, true)
			s.at(long, event{what: evUndo, n: n.i, p: m.i, a: uint64(f)})
		}
	case fSlowDisk:
		s.hit(f, n)
		n.slowTo = s.now + long
	case fHungDisk:
		s.hit(f, n)
		n.hungTo = s.now + pick(r, short, long, 4*long)
		s.tell(n.i, "disk hangs for %v", time.Duration(n.hungTo-s.now))
	case fSickDisk:
		if n.spared > s.now {
			return
		}
		s.hit(f, n)
		n.sickDisk = true
		s.at(2*long, event{what: evUndo, n: n.i, a: uint64(f), b: uint64(n.run)})
	case fNoSpace:
		s.hit(f, n)
		if k := r.IntN(1 << 10); k%2 == 0 {
			n.post(replica.Space{Free: int64(k)})
		} else { // the image has little room, and nobody looks at it again
			n.post(replica.Space{Free: s.prof.free, Image: wire.Room{Bytes: replica.SpaceReserve + int64(k), At: n.app.applied}})
		}
		s.at(long, event{what: evUndo, n: n.i, a: uint64(f), b: uint64(n.run)})
	case fReplace, fOldCopy, fLoseTail:
		s.loseData(f, n)
	case fRot:
		s.spoil(n)
	}
}

// undo ends a fault.
func (s *Sim) undo(ev *event) {
	n := s.nodes[ev.n]
	switch fault(ev.a) {
	case fIsolate, fOneWay:
		for _, m := range s.nodes {
			if m != n && (ev.p < 0 || ev.p == m.i) {
				s.block(n.i, m.i, false)
				if ev.p < 0 {
					s.block(m.i, n.i, false)
				}
			}
		}
		s.tell(n.i, "is heard again")
	case fSickDisk:
		if n.up && uint64(n.run) == ev.b && n.broken() {
			s.crash(n, false)
			s.at(0, event{what: evStart, n: n.i})
		}
	case fNoSpace:
		if n.up && uint64(n.run) == ev.b {
			n.post(replica.Space{Free: s.prof.free})
		}
	case fRot:
		n.journal.heal(func(p *spot) bool { return p.hard })
	case fSickImage:
		n.recover()
	}
}

// crash ends n's process, and what it and its machine had not made durable.
func (s *Sim) crash(n *node, power bool) {
	if !n.up {
		return
	}
	if n.filling != nil {
		s.marks.note(ntInitCrash)
	}
	s.tell(n.i, "crashes (power %v), journal durable %v of %v", power, n.journal.durable.last.Seq, n.journal.os.last.Seq)
	n.crashImage(power)
	n.up, n.sickDisk, n.dead, n.ill = false, false, false, false
	if n.sick == sickSync || n.sick == sickWrite {
		n.sick = sickNone
	}
	n.hungTo = 0
	s.cutLinks(n, power)
	s.dropConns(n)
	n.journal.crash(s.dice.disk)
	s.oper.crashed(n)
}

// becalm ends the faults: everything runs and every link is possible, but disks may go
// on hanging. What is left to do is the operator's. A master whose death was asserted stays down until
// that command is answered, as its words ask.
func (s *Sim) becalm() {
	s.calm, s.calmAt = true, s.now
	s.tell(-1, "the faults stop; last committed is %d", s.truth.last())
	for i := range s.nodes {
		for j := range s.nodes {
			s.block(int8(i), int8(j), false)
		}
	}
	for _, n := range s.nodes {
		if n.hungTo > s.now && s.dice.rot.IntN(2) == 0 {
			n.hungTo = math.MaxInt64 // until the operator repairs it
			s.marks.note(ntHungCalm)
			s.tell(n.i, "disk goes on hanging")
		} else {
			n.hungTo = 0
		}
		n.slowTo, n.sickDisk = 0, false
		n.recover()
		n.journal.heal(func(p *spot) bool { return p.hard && p.Seq > n.journal.durable.hard.Checkpoint })
		if n.paused {
			n.pausedTo = s.now
			n.kick()
		}
		switch {
		case !n.up:
			s.at(0, event{what: evStart, n: n.i})
		default:
			n.post(replica.Space{Free: s.prof.free})
		}
	}
	s.at(int64(operatorLook), event{what: evOperator})
}
