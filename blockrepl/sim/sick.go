package sim

import (
	"errors"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: the heap, with the disk of an image that fails: an fsync, a write, a read,
// or for want of room. Does: what the shell does there (applier.go, checkpoint.go,
// copying.go, reads.go): the server takes no part until a restart, which comes a while
// later; a read that nobody else can answer is told to its client, and one for another
// server's resync is not answered. Goes to: the state machine, as Failed.
//
// It has times and dice of its own: a schedule without it, and the other faults of one
// with it, are drawn as if it did not exist.

var errImage = errors.New("the model image fails")

// sickness is what an image's disk has.
type sickness uint8

const (
	sickNone  sickness = iota
	sickSync           // the next fsync fails
	sickWrite          // the next write fails in its middle
	sickFull           // writes fail until there is room again
	sickRead           // some sectors cannot be read until they are written
	sicknesses
)

// drawSick decides how often images fail in a schedule.
func (s *Sim) drawSick(opt Options) {
	r := s.dice.sick
	s.prof.sick = 0
	if every := pick(r, 100*time.Millisecond, 300*time.Millisecond); chance(r, 0.2) && !opt.off(fSickImage) {
		s.prof.sick = every
		s.at(int64(s.prof.first)+exp(r, every), event{what: evSick})
	}
}

// sicken is the next time that an image's disk falls sick.
func (s *Sim) sicken() {
	if s.calm {
		return
	}
	r := s.dice.sick
	s.at(exp(r, s.prof.sick), event{what: evSick})
	n, kind, long := s.nodes[r.IntN(len(s.nodes))], 1+sickness(r.IntN(int(sicknesses)-1)), exp(r, 6*peerTimeout)
	if s.now < s.quiet || !n.up || n.unwell() || n.spared > s.now {
		return
	}
	s.hit(fSickImage, n)
	s.tell(n.i, "image falls sick, kind %d, for %v", kind, time.Duration(long))
	n.sick = kind
	switch kind {
	case sickFull:
		if r.IntN(2) == 0 { // else nobody has looked since
			n.post(replica.Space{Free: s.prof.free, Image: n.room()})
		}
	case sickRead:
		for i := range n.image.size {
			if r.IntN(4) == 0 {
				n.image.bad |= 1 << i
			}
		}
	}
	s.at(long, event{what: evUndo, n: n.i, a: uint64(fSickImage)})
}

// recover ends a sickness of the disk; what failed by it needs a restart all the same.
func (n *node) recover() {
	if n.sick == sickFull && n.up {
		n.post(replica.Space{Free: n.s.prof.free})
	}
	n.sick, n.image.bad = sickNone, 0
}

// room is what a full file system leaves the image, as the shell tells it.
func (n *node) room() wire.Room { return wire.Room{Bytes: 1, At: n.app.applied} }

// broken reports whether n takes no part until a restart, or will not in a moment.
func (n *node) broken() bool { return n.dead || n.ill }

// unwell reports whether n is broken or may soon be.
func (n *node) unwell() bool { return n.broken() || n.sickDisk || n.sick != sickNone }

// failImage ends n's part until a restart.
func (n *node) failImage(t notable) {
	n.ill = true
	n.app.busy = false
	n.s.marks.note(t)
	n.s.tell(n.i, "image fails: %s", notableNames[t])
	n.post(replica.Failed{What: "image", Err: errImage})
	n.s.at(exp(n.s.dice.sick, 4*peerTimeout), event{what: evUndo, n: n.i, a: uint64(fSickDisk), b: uint64(n.run)})
}

// refuses reports whether a write to the image fails now: one that takes room, when that
// is what is wanting.
func (n *node) refuses(room bool) bool {
	return n.sick == sickWrite || n.sick == sickFull && room
}

// writeFails is such a write's end.
func (n *node) writeFails() {
	if n.sick == sickFull {
		n.failImage(ntImageFull)
		return
	}
	n.sick = sickNone
	n.failImage(ntImageWrite)
}

// syncFails is the end of an fsync of the image that fails.
func (n *node) syncFails() {
	n.sick = sickNone
	n.image.failSync(n)
	if n.copying.saving && n.copying.synced {
		n.s.marks.note(ntCopyLost)
	}
	n.failImage(ntImageSync)
}

// takesRoom reports whether a record may need blocks that the image does not have.
func takesRoom(rec *record.Record) bool {
	return rec.Kind.ChangesImage() && rec.Kind != record.KindTrim
}

// blind reports whether some of k sectors at lo cannot be read.
func (m *image) blind(lo, k int) bool {
	return m.bad != 0 && m.bad>>lo&(1<<k-1) != 0
}

// failSync is what an fsync that failed leaves of each sector written since the last
// one: dirty as it was; or written out in vain. Then the disk holds what it held, or
// something written since, and the page cache shows that, or the newest value still, and
// calls it clean: no later fsync, which succeeds, writes it.
func (m *image) failSync(n *node) {
	r := n.s.dice.sick
	for i := range m.since {
		k := len(m.since[i])
		if k == 0 {
			continue
		}
		what := r.IntN(3)
		if what == 0 {
			continue
		}
		if j := r.IntN(k + 1); j < k {
			m.durable[i] = m.since[i][j]
		}
		m.since[i] = m.since[i][:0]
		if what == 1 {
			m.clean |= 1 << i
		} else {
			m.val[i] = m.durable[i]
		}
	}
}

// evict lets the page cache forget some clean sectors, or all: the disk's show.
func (m *image) evict(n *node, all bool) {
	for i := 0; m.clean != 0 && i < sectorsMax; i++ {
		if m.clean>>i&1 != 0 && (all || n.s.dice.sick.IntN(2) == 0) {
			m.val[i] = m.durable[i]
			m.clean &^= 1 << i
		}
	}
}

// cannotSee ends a read of what cannot be read: where nobody else can answer the client
// is told, else the server's part ends.
func (n *node) cannotSee(q *request, c *client) bool {
	if !n.rep.Alone() {
		n.failImage(ntImageRead)
		return true
	}
	n.s.marks.note(ntReadTold)
	n.s.at(n.s.latency(), event{what: evReply, n: n.i, p: c.i, a: q.id, b: c.conn.id<<1 | 1})
	return true
}
