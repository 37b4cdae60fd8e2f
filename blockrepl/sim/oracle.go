package sim

import (
	"math"
	"runtime/debug"
	"slices"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// truth is the one order of all committed records, as the oracle saw it come
// about, and what clients were told.
//
// Two checks of reads stand beside each other. The first knows the order: a read
// shows the state after one number, at least that of every write answered before
// it began. The second knows only what clients saw, and when: no read shows a
// write that was over before another one began that was answered before the read
// (the values of a register, as a client of any disk would judge them).
type truth struct {
	s     *Sim
	lines []*line
	wild  map[record.Epoch]string // epochs begun by an act that the operator was warned of
	alone map[record.Epoch]bool   // epochs in which a server was forgotten by force without a look
	of    map[record.Epoch]*line  // where a mastership committed last

	// For each sector: when the newest answered write began; when the last zero was
	// answered (zeroes look alike). Of one line only.
	newest [sectorsMax]int64
	zeroed [sectorsMax]int64
}

func stack() string { return string(debug.Stack()) }

func (t *truth) init(s *Sim) {
	t.s, t.wild, t.alone, t.of = s, map[record.Epoch]string{}, map[record.Epoch]bool{}, map[record.Epoch]*line{}
	t.lines = []*line{{ops: map[opKey]record.Seq{}, size: s.prof.sectors}}
	for i := range t.newest {
		t.newest[i], t.zeroed[i] = -1, -1
	}
}

// watch looks at a node after each step, before its effects are carried out: has it
// committed something?
func (s *Sim) watch(n *node) {
	c := n.rep.Commit()
	if c == n.seen {
		return
	}
	from := n.seen
	n.seen = c
	if c < from {
		return // a resync begins behind another number
	}
	if n.rep.Epoch().Server != n.id {
		s.heard(n, c)
		return
	}
	s.truth.commit(n, from, c)
}

// heard looks at what a slave takes for committed.
func (s *Sim) heard(n *node, c record.Seq) {
	t := &s.truth
	rec := n.find(c)
	if rec != nil {
		if l := t.holding(n, c, rec.Sum); l != nil {
			n.line = l
			return
		}
	}
	for _, l := range t.lines {
		if rec == nil && c <= l.last() {
			return
		}
	}
	s.fail("one order", "slave %v takes %d for committed; the last committed number is %d", n.id, c, t.last())
}

// find gives a node's record although its Store may still be among the effects.
func (n *node) find(q record.Seq) *record.Record {
	for i := len(n.eff.Stores) - 1; i >= 0; i-- {
		st := &n.eff.Stores[i]
		if k := len(st.Records); k > 0 && st.Records[0].Seq <= q && q <= st.Records[k-1].Seq {
			return st.Records[q-st.Records[0].Seq]
		}
		if st.Reset != nil || st.Cut != nil && q > st.Cut.Seq {
			return nil
		}
	}
	return n.journal.os.get(q)
}

// commit takes a master's word that everything through c is committed. An old
// master may still learn that a record was acknowledged everywhere, as long as it
// is the one that the present mastership holds under that number.
func (t *truth) commit(n *node, from, c record.Seq) {
	s := t.s
	defer func() { t.of[n.rep.Epoch()] = n.line }()
	for q := from + 1; q <= c; q++ {
		rec := n.find(q)
		if rec == nil {
			if q >= n.journal.os.first {
				s.fail("one order", "master %v commits %d and does not have it", n.id, q)
				return
			}
			continue
		}
		// A line that a later mastership began may hold this record, too, and it alone,
		// while nobody knew whether it was committed. This master, asleep when its death
		// was asserted, is not of that line.
		if l := t.holding(n, q, rec.Sum); l != nil && !n.rep.Epoch().Less(l.led) {
			n.line = l
			continue
		}
		l := t.ending(n, rec)
		if l == nil {
			if l = t.forked(n, rec, c); l == nil {
				s.conflict(n, q, rec)
				return
			}
		}
		n.line = l
		if rec.Epoch.Less(l.epoch) {
			s.fail("epochs monotone", "master %v commits %d of epoch %v after epoch %v", n.id, q, rec.Epoch, l.epoch)
			return
		}
		if e := n.rep.Epoch(); l.led != e && (t.wild[e] != "" || len(t.alone) > 0) {
			l = t.part(l, q-1) // others may not know of it
			l.led, n.line = e, l
		}
		l.add(s, rec)
		t.durable(n, rec)
		if s.failure != nil {
			return
		}
	}
}

// ending finds the line that rec is the next record of.
func (t *truth) ending(n *node, rec *record.Record) *line {
	if n.line.last() == rec.Seq-1 && n.line.end().Sum == rec.Prev {
		return n.line
	}
	for _, l := range t.lines {
		if l.last() == rec.Seq-1 && l.end().Sum == rec.Prev {
			return l
		}
	}
	return nil
}

// durable checks promise 1: a committed record is fsynced on every server of the
// in-sync set that is durable at the master.
func (t *truth) durable(n *node, rec *record.Record) {
	st := &n.journal.durable.hard.State
	for i := range st.InSync {
		m := t.s.nodes[index(st.InSync[i].ID)]
		if m.incarnation != st.InSync[i].Incarnation || m.damaged {
			continue
		}
		d := &m.journal.durable
		if rec.Epoch.Less(d.hard.Promised) && (len(t.wild) > 0 || t.s.nodes[index(d.hard.Promised.Server)].holds(rec)) {
			continue // taken out of this line by force after it had acknowledged, or to get it again
		}
		if !m.holds(rec) {
			t.s.fail("durable everywhere", "master %v commits %d (epoch %v) with %v in sync (state %d of %v), whose journal durably ends at %v", n.id, rec.Seq, rec.Epoch, m.id, st.Number, st.Epoch, d.last)
			return
		}
	}
}

// holds reports whether n has rec durably, in its journal or trimmed from it.
func (n *node) holds(rec *record.Record) bool {
	d := &n.journal.durable
	got := d.get(rec.Seq)
	return got != nil && got.Sum == rec.Sum || rec.Seq < d.first && d.hard.Resync == nil && d.last.Seq >= rec.Seq
}

// conflict: a master commits another record under a committed number.
func (s *Sim) conflict(n *node, q record.Seq, rec *record.Record) {
	was := n.line.recs[min(q, n.line.last())-1]
	s.fail("nothing is lost", "master %v of epoch %v commits %d as %016x; committed before was %016x of epoch %v", n.id, n.rep.Epoch(), q, rec.Sum, was.Sum, was.Epoch)
}

// applying checks promise 3 before a record goes to an image.
func (s *Sim) applying(n *node, q record.Seq, rec *record.Record) bool {
	switch {
	case rec == nil:
		s.fail("applied is kept", "%v applies %d, which its journal does not hold (%d..%d)", n.id, q, n.journal.os.first, n.journal.os.last.Seq)
	case s.truth.holding(n, q, rec.Sum) == nil:
		s.fail("nothing uncommitted in an image", "%v applies %d as %016x of epoch %v, committed is %v in epoch %v", n.id, q, rec.Sum, rec.Epoch, s.truth.top().end(), s.truth.top().epoch)
	default:
		if d := n.journal.durable.get(q); (d == nil || d.Sum != rec.Sum) && q >= n.journal.durable.first {
			s.fail("durable before applied", "%v applies %d, which is not durable in its journal", n.id, q)
			return false
		}
		return true
	}
	return false
}

// storing checks what a node writes: dense numbers, one chain, epochs that never fall.
func (s *Sim) storing(n *node, st *replica.Store) {
	last := n.journal.os.last
	if st.Cut != nil {
		last = *st.Cut
		if st.Cut.Seq > n.journal.os.last.Seq {
			s.fail("numbers dense", "%v cuts to %v above its end %v", n.id, *st.Cut, n.journal.os.last)
		}
		if st.Cut.Seq < n.image.seq && n.journal.os.hard.Resync == nil && st.Reset == nil {
			s.fail("nothing applied is cut", "%v cuts to %d; its image holds %d", n.id, st.Cut.Seq, n.image.seq)
		}
	}
	if st.Cut != nil && s.truth.lost(n, st, n.journal.os.last.Seq) {
		s.marks.note(ntAside)
	}
	if st.Cut != nil && s.truth.lost(n, st, n.image.seq) {
		s.yielding(n, st)
	}
	if st.Reset != nil {
		s.dropping(n, last, *st.Reset)
		last = *st.Reset
	}
	for _, rec := range st.Records {
		if rec.Kind == record.KindEpoch && rec.Epoch.Server == n.id && n.rash {
			s.truth.wild[rec.Epoch], n.rash = "forget", false
		}
		if rec.Kind == record.KindEpoch && rec.Epoch.Server == n.id {
			s.inherits(n, rec.Epoch)
		}
		if rec.Seq != last.Seq+1 || rec.Prev != last.Sum {
			s.fail("numbers dense", "%v stores %d with prev %016x behind %v", n.id, rec.Seq, rec.Prev, last)
			return
		}
		last = rec.Pos()
	}
	h := st.Hard
	if h == nil {
		return
	}
	s.changing(n, h)
	old := &n.journal.os.hard
	switch {
	case h.Promised.Less(old.Promised):
		s.fail("epochs monotone", "%v stores the promise of %v after %v", n.id, h.Promised, old.Promised)
	case h.Following.Less(old.Following):
		s.fail("epochs monotone", "%v follows %v after %v", n.id, h.Following, old.Following)
	case h.Promised.Less(h.Following):
		s.fail("epochs monotone", "%v follows %v and has promised %v", n.id, h.Following, h.Promised)
	case h.Checkpoint > n.app.applied && h.Resync == nil && st.Reset == nil:
		s.fail("checkpoint below applied", "%v stores checkpoint %d, applied is %d", n.id, h.Checkpoint, n.app.applied)
	}
	if h.Resync == nil && old.Resync != nil && n.stale { // else the redo after a crash goes on
		s.whole(n, "at the end of a resync")
	}
}

// yielding checks that nobody gives up what his image holds before the
// operator has chosen the other one: by --accept-loss, or by resolve.
func (s *Sim) yielding(n *node, st *replica.Store) {
	old := n.journal.os.hard.Following
	chosen := func(h wire.EpochStart) bool { return h.Loss && old.Less(h.Epoch) }
	if st.Hard != nil && !slices.ContainsFunc(st.Hard.History, chosen) {
		s.fail("no side yields by itself", "%v gives up committed records above %v to follow %v; nobody has chosen that side", n.id, *st.Cut, st.Hard.Following)
	}
}

// dropping checks that a journal which begins anew behind base does not end, after
// what its Store sets aside, in records that were committed and are of another
// line: they would be dropped without a word.
func (s *Sim) dropping(n *node, last, base record.Pos) {
	t := &s.truth
	was := t.holding(n, last.Seq, last.Sum)
	if l := t.holding(n, base.Seq, base.Sum); l != nil {
		n.line = l
		if was != nil && n.journal.os.get(last.Seq) != nil && n.journal.os.hard.Resync == nil && !l.holds(last.Seq, last.Sum) {
			s.fail("nothing is dropped silently", "%v begins anew behind %v; its journal ended at %v, committed on another line", n.id, base, last)
		}
	}
}

// trimmed checks that nothing is trimmed which the image does not durably hold.
func (s *Sim) trimmed(n *node, through record.Seq) {
	if c := n.journal.os.hard.Checkpoint; through > c {
		s.fail("the floor", "%v trims through %d, its checkpoint is %d", n.id, through, c)
	}
}

// completed: a server says that a change is done.
func (t *truth) completed(n *node, q *request) {
	l := t.shown(n)
	seq := l.seqOf(q)
	if seq == 0 {
		t.s.fail("completed is committed", "%v completes request %d, of which nothing is committed", n.id, q.id)
		return
	}
	// A master answers before its image has the change: reads wait there until it holds
	// what was published as committed.
	if n.image.seq < seq && n.commit < seq {
		t.s.fail("completed is visible", "%v completes request %d, number %d; its image holds %d", n.id, q.id, seq, n.image.seq)
	}
	q.line = l
}

// answered: a client knows the outcome.
func (t *truth) answered(q *request) {
	if q.failed {
		if q.copies == 1 && q.seq != 0 && len(t.lines) == 1 {
			t.s.fail("refused is not done", "request %d was refused, and is number %d", q.id, q.seq)
		}
		t.open(q) // an earlier copy may still come
		return
	}
	if q.changes() {
		if q.line == nil || q.line.seqOf(q) == 0 {
			t.s.fail("completed is committed", "request %d is answered, of which nothing is committed", q.id)
			return
		}
		q.line.done = max(q.line.done, q.line.seqOf(q))
		for i := q.lo; i < q.lo+q.n; i++ {
			t.newest[i] = max(t.newest[i], q.inv)
			if q.kind != reqWrite {
				t.zeroed[i] = max(t.zeroed[i], q.res)
			}
		}
		if t.s.late(q) {
			t.open(q)
		}
		return
	}
	if q.kind == reqStale {
		return
	}
	for i, v := range q.value {
		if v != 0 {
			sector := q.lo + i
			t.newest[sector] = max(t.newest[sector], t.s.reqs[v].inv)
		}
	}
}

// saw judges what a read found in n's image.
func (t *truth) saw(n *node, q *request) {
	s := t.s
	p, l := n.image.seq, t.shown(n)
	if floor := q.floor(l); q.kind == reqRead && p < floor {
		s.fail("reads see completed writes", "%v read %d at %v shows the state after %d; %d was answered before it began", q.kind, q.id, n.id, p, floor)
		return
	}
	if p > l.last() {
		s.fail("no uncommitted read", "%v read %d at %v shows the state after %d, committed is %d", q.kind, q.id, n.id, p, l.last())
		return
	}
	for i, v := range q.value {
		sector := q.lo + i
		if want := l.at(sector, p); v != want {
			s.fail("one prefix", "%v %d at %v: sector %d is %d, after number %d it is %d", q.kind, q.id, n.id, sector, v, p, want)
			return
		}
		if q.kind == reqRead && len(t.lines) == 1 && t.over(sector, v) < q.before[i] {
			s.fail("a stale write never wins", "%v %d at %v: sector %d is %d, which was over before a write began that was answered before this read", q.kind, q.id, n.id, sector, v)
			return
		}
	}
}

// late reports whether an earlier copy of a change may still come after it was
// answered. Generations forbid it (promise 5); but where a client has no token, a
// server that had not yet asked for the old connection's generation when the
// client moved may ask for it later, as long as it takes that connection for alive.
func (s *Sim) late(q *request) bool { return q.copies > 1 && s.clients[q.client].bare }

// open notes that the outcome of a change will never be known.
func (t *truth) open(q *request) {
	if q.kind == reqZero || q.kind == reqTrim {
		for i := q.lo; i < q.lo+q.n; i++ {
			t.zeroed[i] = math.MaxInt64
		}
	}
}

// over is when the write of a value was over, as far as clients know.
func (t *truth) over(sector int, v uint64) int64 {
	if v != 0 {
		if q := t.s.reqs[v]; !q.failed && !t.s.late(q) {
			return q.res
		}
		return math.MaxInt64 // an earlier copy than the refused one was numbered, or may be
	}
	// Zeroes look alike: over only if no zeroing request is open.
	for _, c := range t.s.clients {
		for _, q := range c.pending {
			if (q.kind == reqZero || q.kind == reqTrim) && q.lo <= sector && sector < q.lo+q.n {
				return math.MaxInt64
			}
		}
	}
	return t.zeroed[sector]
}

// shown is the line that n's image is of: at the number after which two lines part,
// that of the mastership it follows.
func (t *truth) shown(n *node) *line {
	if l := t.of[n.rep.Epoch()]; l != nil && l.holds(n.image.seq, n.image.sum) {
		return l
	}
	if l := t.holding(n, n.image.seq, n.image.sum); l != nil {
		return l
	}
	return n.line
}

// whole checks a whole image against the replay of its prefix.
func (s *Sim) whole(n *node, when string) {
	l := s.truth.shown(n)
	for i := range l.size {
		if v, want := n.image.val[i], l.at(i, n.image.seq); v != want {
			s.fail("image is the replay", "%v %s: sector %d is %d, after number %d it is %d", n.id, when, i, v, n.image.seq, want)
			return
		}
	}
}
