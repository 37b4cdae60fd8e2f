package sim

import (
	"math/rand/v2"
	"slices"
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
	faults
)

var faultNames = [faults]string{"crash", "power", "pause", "cut", "isolate", "one-way", "slow-disk", "sick-disk",
	"replace", "old-copy", "lose-tail", "no-space", "promote", "old-dead", "forget", "stop", "resize", "usurp", "lose", "double", "overtake", "move", "corrupt", "bare",
	"accept-loss", "wild-dead", "wild-forget", "resolve", "init"}

func (f fault) String() string { return faultNames[f] }

// often reports whether f comes too often to look at states.
func (f fault) often() bool { return f >= fLose && f <= fBare }

// commanded reports whether f is an act of the operator.
func (f fault) commanded() bool { return f >= fPromote && f <= fUsurp || f >= fWildLoss }

// Options say what a schedule is drawn from.
type Options struct {
	Off    []string      // names of faults that never strike
	Length time.Duration // of the time of faults; 0: drawn
	Marks  *Marks        // counts fault × state; nil: not wanted
}

// profile is what a seed decides about a whole schedule. Each schedule has only
// some of the faults, so that rare meetings of a few of them come about.
type profile struct {
	nodes, clients, sectors int
	policy                  wire.OnDegraded
	shared                  bool
	keep                    int64
	free                    int64
	latency, disk           time.Duration
	checkpoint, copy        time.Duration
	think, fin              time.Duration
	depth                   int
	reads, move             float64
	lose, double, overtake  float64
	first, length, wind     time.Duration
	every                   time.Duration // between faults
	weight                  [faults]float64
	total                   float64

	// Drawn by drawHarsh.
	corrupt, encode float64 // of frames: bits are flipped, really encoded
	bare            float64 // of clients: without a token
	careless        bool    // the operator does what loses writes
	init            bool    // images hold something, and the operator creates the volume
}

func pick[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

func drawProfile(r *rand.Rand, opt Options) profile {
	ms := time.Millisecond
	p := profile{
		nodes: pick(r, 1, 2, 2, 3, 3, 3, 3, 4, 5), clients: 1 + r.IntN(3), sectors: pick(r, 8, 16, 32),
		policy: pick(r, wire.Suspend, wire.Suspend, wire.Suspend, wire.Continue), shared: r.IntN(2) == 0,
		keep: pick[int64](r, 1<<10, 8<<10, 1<<30), free: 1 << 40,
		latency: pick(r, 100*time.Microsecond, ms, 4*ms), disk: pick(r, 200*time.Microsecond, ms, 5*ms),
		checkpoint: pick(r, 5*ms, 50*ms, 300*ms), copy: pick(r, ms, 10*ms, 40*ms),
		think: pick(r, 2*ms, 8*ms, 20*ms), fin: pick(r, ms, 20*ms, 2*peerTimeout),
		depth: 1 + r.IntN(pendingMax), reads: 0.1 + 0.5*r.Float64(), move: pick(r, 0, 0.002, 0.02),
		lose: pick(r, 0, 0.01, 0.1), double: pick(r, 0, 0.02), overtake: pick(r, 0, 0.02, 0.1),
		first:  time.Duration(r.IntN(600)) * ms,
		length: time.Duration(1000+r.IntN(3000)) * ms, wind: 300 * ms,
		every: pick(r, 40*ms, 120*ms, 400*ms),
	}
	if opt.Length > 0 {
		p.length = opt.Length
	}
	base := [faults]float64{fCrash: 4, fPower: 3, fPause: 3, fCut: 3, fIsolate: 2, fOneWay: 2, fSlowDisk: 2, fSickDisk: 0.6,
		fReplace: 0.7, fOldCopy: 0.7, fLoseTail: 0.7, fNoSpace: 0.5, fPromote: 4, fOldDead: 2, fForget: 3, fStop: 2, fResize: 0.7, fUsurp: 2}
	for f := range faults {
		on := r.IntN(2) == 0 || f == fCrash
		for _, name := range opt.Off {
			if name == f.String() {
				on = false
				p.drop(f)
			}
		}
		if on {
			p.weight[f] = base[f]
			p.total += base[f]
		}
	}
	return p
}

// drawHarsh draws what only some schedules have, from dice of its own: a schedule
// without it is played as it would be if it did not exist.
func (p *profile) drawHarsh(r *rand.Rand, opt Options) {
	p.corrupt, p.encode = pick(r, 0, 0, 0, 0.0005, 0.005), pick(r, 0, 0.002)
	p.bare = pick(r, 0, 0, 0, 0.5)
	p.careless = chance(r, 0.2) && p.nodes > 1
	if p.careless {
		p.drawCareless(r)
	}
	p.init = chance(r, 0.12)
	for _, name := range opt.Off {
		switch name {
		case fCorrupt.String():
			p.corrupt = 0
		case fInit.String():
			p.init = false
		case fBare.String():
			p.bare = 0
		case fWildLoss.String(), fWildDead.String(), fWildForget.String(), fResolve.String():
			f := fault(slices.Index(faultNames[:], name))
			p.total -= p.weight[f]
			p.weight[f] = 0
		}
	}
}

// drawCareless gives the operator the acts that lose writes, and takes the faults
// away that do so by themselves: how much a disk may lose unnoticed is reckoned for
// an operator who keeps the rules.
func (p *profile) drawCareless(r *rand.Rand) {
	for _, f := range []fault{fOldCopy, fLoseTail} {
		p.total -= p.weight[f]
		p.weight[f] = 0
	}
	for _, f := range []fault{fWildLoss, fWildDead, fWildForget, fResolve} {
		p.weight[f] = 1 + float64(r.IntN(2))
		p.total += p.weight[f]
	}
}

func (p *profile) drop(f fault) {
	switch f {
	case fLose:
		p.lose = 0
	case fDouble:
		p.double = 0
	case fOvertake:
		p.overtake = 0
	case fMove:
		p.move = 0
	}
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
	case fSickDisk:
		if n.spared > s.now {
			return
		}
		s.hit(f, n)
		n.sickDisk = true
		s.at(2*long, event{what: evUndo, n: n.i, a: uint64(f), b: uint64(n.run)})
	case fNoSpace:
		s.hit(f, n)
		n.post(replica.Space{Free: int64(r.IntN(1 << 10))})
		s.at(long, event{what: evUndo, n: n.i, a: uint64(f), b: uint64(n.run)})
	case fReplace, fOldCopy, fLoseTail:
		s.loseData(f, n)
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
		if n.up && uint64(n.run) == ev.b && n.dead {
			s.crash(n, false)
			s.at(0, event{what: evStart, n: n.i})
		}
	case fNoSpace:
		if n.up && uint64(n.run) == ev.b {
			n.post(replica.Space{Free: s.prof.free})
		}
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
	n.up, n.sickDisk, n.dead = false, false, false
	s.cutLinks(n, power)
	s.dropConns(n)
	n.journal.crash(s.dice.disk)
	s.oper.crashed(n)
}

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

// sound reports whether all but n run and everyone hears everyone.
func (s *Sim) sound(n *node) bool {
	for _, m := range s.nodes {
		if m != n && (!m.up || m.paused || m.dead || m.sickDisk) {
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
		if m != n && s.member(m) && m.up && !m.dead && !m.sickDisk && m.rep.Commit() >= s.truth.last() {
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
		if m != n && s.member(m) && m.up && !m.dead && !m.sickDisk && inState(&m.journal.durable.hard.State, m.id) {
			return true
		}
	}
	return false
}

// becalm ends the faults: everything runs and every link is possible. What is
// left to do is the operator's. A master whose death was asserted stays down until
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
		n.slowTo, n.sickDisk = 0, false
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
