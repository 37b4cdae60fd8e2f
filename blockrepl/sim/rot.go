package sim

import (
	"errors"
	"slices"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: faults.go, with a record that cannot be read any more; whoever reads the
// journal. Does: what the shell does there (mend.go, sender.go, applier.go): asks the
// other servers for the record, one after the other, and takes it where the chain of
// sums expects it; else the state machine is told. Goes to: stream.go and image.go,
// which go on; Unreadable, or Failed where it was to be applied.
//
// A record's header stays readable, and the last record of a journal is not spoiled: a
// start takes that for a torn tail, which is lose-tail.

// The shell's mendTries, mendAgain and mendWait, in the measure of peerTimeout.
const (
	mendTries = 10
	mendAgain = peerTimeout / 4
	mendWait  = peerTimeout
)

var errRot = errors.New("the model record cannot be read")

// spot is a record of a journal that cannot be read from the disk.
type spot struct {
	record.Pos
	hard bool // the disk gives nothing that could be replaced, until that ends
}

// spotAt finds the spot of number q, nil when it can be read.
func (j *journal) spotAt(q record.Seq) *spot {
	for i := range j.rot {
		if p := &j.rot[i]; p.Seq == q {
			if rec := j.os.get(q); rec != nil && rec.Sum == p.Sum {
				return p
			}
		}
	}
	return nil
}

// heal forgets the spots that f names.
func (j *journal) heal(f func(*spot) bool) {
	if len(j.rot) > 0 {
		j.rot = slices.DeleteFunc(j.rot, func(p spot) bool { return f(&p) })
	}
}

// unreadable is the first of the numbers from..to that neither memory nor disk gives,
// nil when there is none.
func (n *node) unreadable(from, to record.Seq) *spot {
	if len(n.journal.rot) == 0 {
		return nil
	}
	for q := from; q <= to && q < n.ring; q++ {
		if p := n.journal.spotAt(q); p != nil {
			return p
		}
	}
	return nil
}

// wanting reports whether n's journal cannot give a record that its image would need
// after a power cut.
func (n *node) wanting() bool {
	d := &n.journal.durable
	return slices.ContainsFunc(n.journal.rot, func(p spot) bool {
		return p.Seq > d.hard.Checkpoint && p.Seq <= d.last.Seq || d.hard.Resync != nil
	})
}

// hopeless reports whether such a record is one that no other server has any more: they
// keep what n has not acknowledged, and n's image may be behind that.
func (s *Sim) hopeless(n *node) bool {
	d := &n.journal.durable
	return slices.ContainsFunc(n.journal.rot, func(p spot) bool {
		return p.Seq > d.hard.Checkpoint && p.Seq <= d.last.Seq && !slices.ContainsFunc(s.nodes, func(m *node) bool {
			rec := m.journal.durable.get(p.Seq)
			return m != n && rec != nil && rec.Sum == p.Sum && m.journal.spotAt(p.Seq) == nil
		})
	})
}

// wanted reports whether another server than n lacks a record, which n may have.
func (s *Sim) wanted(n *node) bool {
	return slices.ContainsFunc(s.nodes, func(m *node) bool { return m != n && m.wanting() })
}

// spoil makes some records of n's journal unreadable: such as its image durably holds,
// or such as another server has. That one then loses nothing (spare): of one disk at a
// time more than its image can make up for is lost.
func (s *Sim) spoil(n *node) {
	r := s.dice.rot
	d := &n.journal.durable
	if len(d.recs) < 2 {
		return
	}
	back := pick(r, len(d.recs)-1, 4)
	from := d.last.Seq - 1 - record.Seq(r.IntN(min(back, len(d.recs)-1)))
	to := min(from+pick[record.Seq](r, 0, 0, 1, 4), d.last.Seq-1)
	hard := r.IntN(4) == 0
	var list []spot
	for q := from; q <= to; q++ {
		rec := d.get(q)
		if got := n.journal.os.get(q); got == nil || got.Sum != rec.Sum || n.journal.spotAt(q) != nil {
			continue
		}
		if (q > d.hard.Checkpoint || d.hard.Resync != nil) && (s.prof.careless || s.wanted(n) || !s.elsewhere(n, rec)) {
			continue
		}
		list = append(list, spot{rec.Pos(), hard})
	}
	if len(list) == 0 {
		return
	}
	s.hit(fRot, n)
	n.journal.rot = append(n.journal.rot, list...)
	if r.IntN(2) == 0 {
		n.ring = n.journal.os.last.Seq + 1 // memory had let go of them
	}
	s.tell(n.i, "records from %v to %v cannot be read (hard %v), memory from %v", list[0].Seq, list[len(list)-1].Seq, hard, n.ring)
	if hard {
		s.at(exp(r, 10*peerTimeout), event{what: evUndo, n: n.i, a: uint64(fRot)})
	}
}

// elsewhere reports whether a member beside n has the record durably, readable, and
// everything that was committed.
func (s *Sim) elsewhere(n *node, rec *record.Record) bool {
	return slices.ContainsFunc(s.nodes, func(m *node) bool {
		got := m.journal.durable.get(rec.Seq)
		return m != n && s.member(m) && m.up && !m.unwell() && s.complete(m) &&
			got != nil && got.Sum == rec.Sum && m.journal.spotAt(rec.Seq) == nil
	})
}

// reader is who waits for a record.
type reader uint8

const (
	forPeer   reader = iota // it is to be sent
	forImage                // it is to be applied
	forLookup               // its sum is wanted
)

// mending is a search for a record under way, with the damaged ones behind it.
type mending struct {
	id    uint64
	seq   record.Seq // the record
	at    record.Seq // asked for now: each is the proof of the one before
	peer  int        // of whom
	tries int
	what  reader
	gen   uint64 // of the applier
	hard  bool   // nothing to be replaced
	began int64
}

// mend begins one, unless it is under way for this reader.
func (n *node) mend(p *spot, seq record.Seq, what reader) {
	for _, m := range n.mends {
		if m.seq == seq && m.what == what {
			return
		}
	}
	n.mendID++
	m := &mending{id: n.mendID, seq: seq, what: what, gen: n.app.gen, hard: p.hard, peer: -1, began: n.s.now}
	n.mends = append(n.mends, m)
	n.s.tell(n.i, "record %v cannot be read (hard %v, to be applied %v)", p.Seq, p.hard, what == forImage)
	if p.hard {
		d := int64(mendAgain)
		if what != forPeer {
			d = 0
		}
		n.mendLater(m, d)
		return
	}
	n.mendNext(m)
}

func (n *node) mendLater(m *mending, d int64) {
	n.after(d, event{what: evMend, a: m.id, b: uint64(m.tries)<<8 | uint64(m.peer+1)})
}

// mendTimer ends a wait.
func (n *node) mendTimer(ev *event) {
	i := slices.IndexFunc(n.mends, func(m *mending) bool { return m.id == ev.a })
	if i < 0 {
		return
	}
	m := n.mends[i]
	if ev.b != uint64(m.tries)<<8|uint64(m.peer+1) {
		return // it was answered
	}
	if n.paused {
		n.after(n.wakes(), *ev)
		return
	}
	if m.hard {
		n.mendEnd(m, false)
		return
	}
	n.mendNext(m)
}

// mendNext asks the next server; after the last one all again, a little later.
func (n *node) mendNext(m *mending) {
	for m.peer++; m.peer < len(n.s.nodes); m.peer++ {
		if n.s.linkOf[n.i][m.peer] == nil {
			continue
		}
		for m.at = m.seq; n.journal.spotAt(m.at+1) != nil; {
			m.at++
		}
		n.fetch(m)
		return
	}
	if m.tries++; m.tries == mendTries || len(n.s.nodes) == 1 {
		n.mendEnd(m, false)
		return
	}
	m.peer = -1
	n.mendLater(m, int64(mendAgain))
}

func (n *node) fetch(m *mending) {
	l := n.s.linkOf[n.i][m.peer]
	if l == nil {
		n.mendNext(m)
		return
	}
	n.s.send(n, l.session, &wire.Fetch{Seq: m.at})
	n.mendLater(m, int64(mendWait))
}

// lend answers another server's Fetch.
func (n *node) lend(session uint64, f *wire.Fetch) {
	if n.paused {
		return
	}
	out := &wire.Fetched{Seq: f.Seq}
	if rec := n.journal.os.get(f.Seq); rec != nil && n.unreadable(f.Seq, f.Seq) == nil {
		out.Records = append(out.Records, rec)
	}
	n.s.send(n, session, out)
}

// fetched takes an answer: the very record that the chain expects, or none.
func (n *node) fetched(from int8, f *wire.Fetched) {
	for _, m := range slices.Clone(n.mends) {
		if m.hard || m.at != f.Seq || m.peer != int(from) {
			continue
		}
		ours := n.journal.os.get(f.Seq)
		if len(f.Records) != 1 || ours == nil || ours.Sum != f.Records[0].Sum || n.journal.spotAt(f.Seq+1) != nil {
			n.mendNext(m)
			continue
		}
		n.journal.heal(func(p *spot) bool { return p.Seq == f.Seq && !p.hard })
		if m.at--; m.at >= m.seq {
			n.fetch(m)
			continue
		}
		n.mendEnd(m, true)
	}
}

// mendEnd lets whoever waited go on.
func (n *node) mendEnd(m *mending, mended bool) {
	n.mends = slices.DeleteFunc(n.mends, func(o *mending) bool { return o == m })
	n.s.tell(n.i, "record %v is mended: %v, after %v", m.seq, mended, time.Duration(n.s.now-m.began))
	if mended {
		n.s.marks.note(ntMended)
	}
	switch {
	case m.what == forLookup:
		n.looked(m.seq)
	case m.what == forImage && n.app.gen != m.gen:
	case m.what == forImage && mended:
		n.app.stuck = false
		n.applyMore()
	case m.what == forImage && m.hard:
		n.failRead(errRot)
	case m.what == forImage:
		n.post(replica.Unreadable{Seq: m.seq, Apply: true})
	case mended:
		for j := range n.s.nodes {
			if c := &n.cursors[j]; c.next != 0 {
				n.armPump(int8(j))
			}
		}
	default:
		n.s.marks.note(ntUnreadable)
		n.post(replica.Unreadable{Seq: m.seq})
	}
}

// failRead ends n's part until a restart, which comes a while later: another server may
// have the record then.
func (n *node) failRead(err error) {
	n.s.marks.note(ntFailedRead)
	n.dead = true
	n.post(replica.Failed{What: "journal", Err: err})
	n.s.at(exp(n.s.dice.rot, 6*peerTimeout), event{what: evUndo, n: n.i, a: uint64(fSickDisk), b: uint64(n.run)})
}
