package sim

import (
	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/journal/record"
)

// line is one order of committed records, as the oracle saw it come about, and what
// clients were told of it. By the rules there is one; a second one forks off it
// only where the operator was told what that loses, and did it all the same.
type line struct {
	index  int          // in truth.lines
	parent *line        // it forked off; nil for the first
	fork   record.Seq   // through this they are equal
	led    record.Epoch // the mastership that began it
	recs   []*record.Record
	ops    map[opKey]record.Seq
	seqs   map[uint64]record.Seq // lowest number of each request; nil: request.seq
	vers   [sectorsMax][]version
	size   int
	epoch  record.Epoch // of the newest record
	done   record.Seq   // every write answered so far has a number up to here
}

// opKey names one operation of one server's client: it is numbered once (rule 8).
type opKey struct {
	origin                record.ServerID
	attachment, operation uint64
}

// version is a sector's value from a number on.
type version struct {
	seq record.Seq
	val uint64
}

func (l *line) last() record.Seq { return record.Seq(len(l.recs)) }

// end is the position of the last record.
func (l *line) end() record.Pos {
	if len(l.recs) == 0 {
		return record.Pos{}
	}
	return l.recs[len(l.recs)-1].Pos()
}

// holds reports whether number q with header sum sum is of this line.
func (l *line) holds(q record.Seq, sum uint64) bool {
	return q == 0 || q <= l.last() && l.recs[q-1].Sum == sum
}

// at is a sector's value after number q.
func (l *line) at(sector int, q record.Seq) uint64 {
	v := l.vers[sector]
	for i := len(v) - 1; i >= 0; i-- {
		if v[i].seq <= q {
			return v[i].val
		}
	}
	return 0
}

// seqOf is the lowest number that a copy of q has, zero when none has one.
func (l *line) seqOf(q *request) record.Seq {
	if l.seqs == nil {
		return q.seq
	}
	return l.seqs[q.id]
}

// add appends a committed record.
func (l *line) add(s *Sim, rec *record.Record) {
	l.recs = append(l.recs, rec)
	l.epoch = rec.Epoch
	if rec.Kind == record.KindResize {
		if int(rec.Length/sectorBytes) < l.size {
			s.fail("the volume never shrinks", "number %d resizes it from %d sectors to %d", rec.Seq, l.size, rec.Length/sectorBytes)
		}
		l.size = min(int(rec.Length/sectorBytes), sectorsMax)
	}
	if !rec.Kind.ChangesImage() {
		return
	}
	key := opKey{rec.Origin, rec.Attachment, rec.Operation}
	if q, twice := l.ops[key]; twice {
		s.fail("numbered once", "operation %d of attachment %d through %v is numbers %d and %d", rec.Operation, rec.Attachment, rec.Origin, q, rec.Seq)
		return
	}
	l.ops[key] = rec.Seq
	lo, k := int(rec.Offset/sectorBytes), int(rec.Length/sectorBytes)
	for i := range k {
		l.vers[lo+i] = append(l.vers[lo+i], version{rec.Seq, value(rec, i)})
	}
	q := s.reqs[rec.Time]
	switch {
	case l.seqs == nil && q.seq == 0:
		q.seq = rec.Seq
	case l.seqs != nil && l.seqs[q.id] == 0:
		l.seqs[q.id] = rec.Seq
	}
}

// branch is a new line that equals l through number p.
func (l *line) branch(s *Sim, p record.Seq) *line {
	b := &line{parent: l, fork: p, ops: map[opKey]record.Seq{}, seqs: map[uint64]record.Seq{}, size: s.prof.sectors}
	for i := range l.vers {
		if v := l.vers[i]; len(v) > 0 && v[0].seq == 0 {
			b.vers[i] = append(b.vers[i], v[0]) // what was there before the first record
		}
	}
	for _, rec := range l.recs[:p] {
		b.add(s, rec)
	}
	b.done = min(l.done, p)
	return b
}

// holding finds the line that a number of n's belongs to: its own where that does.
func (t *truth) holding(n *node, q record.Seq, sum uint64) *line {
	if n.line.holds(q, sum) {
		return n.line
	}
	for i := len(t.lines) - 1; i >= 0; i-- {
		if t.lines[i].holds(q, sum) {
			return t.lines[i]
		}
	}
	return nil
}

// lost reports whether what n sets aside, through number last, was committed, and is
// not what the master that it follows from now on holds under those numbers.
func (t *truth) lost(n *node, st *replica.Store, last record.Seq) bool {
	if len(t.lines) == 1 || st.Hard == nil || index(st.Hard.Following.Server) < 0 {
		return false
	}
	master := &t.s.nodes[index(st.Hard.Following.Server)].journal.os
	for q := max(st.Cut.Seq+1, n.journal.os.first); q <= min(last, n.journal.os.last.Seq); q++ {
		rec := n.journal.os.get(q)
		if t.holding(n, q, rec.Sum) != nil && master.sumAt(q) != rec.Sum && q >= master.first {
			return true
		}
	}
	return false
}

// lineOf finds the line of a server that starts: that of the last record of its
// journal which is committed.
func (t *truth) lineOf(n *node) *line {
	j := &n.journal.os
	for q := j.last.Seq; q+1 >= j.first && q > 0; q-- {
		if l := t.holding(n, q, j.sumAt(q)); l != nil {
			return l
		}
	}
	return n.line
}

// top is the line with the newest epoch.
func (t *truth) top() *line {
	top := t.lines[0]
	for _, l := range t.lines[1:] {
		if top.epoch.Less(l.epoch) {
			top = l
		}
	}
	return top
}

func (t *truth) last() record.Seq { return t.top().last() }

// forked makes a new line: master n commits rec under a number that is taken
// where its line is. nil: that loses what nobody gave up.
func (t *truth) forked(n *node, rec *record.Record, c record.Seq) *line {
	// Where do they part?
	from, p, prev := n.line, rec.Seq-1, rec.Prev
	for !from.holds(p, prev) {
		if l := t.holding(n, p, prev); l != nil {
			from = l
			break
		}
		r := n.find(p)
		if r == nil {
			return nil
		}
		p, prev = p-1, r.Prev
	}
	allowed := t.givenUp(from.recs[p:])
	b := t.part(from, p)
	var mine []*record.Record
	for q := p + 1; q <= c; q++ {
		r := n.find(q)
		if r == nil {
			t.lines = t.lines[:b.index]
			return nil
		}
		mine = append(mine, r)
		if q < rec.Seq {
			b.add(t.s, r)
		}
	}
	if !allowed && !t.givenUp(mine) {
		t.lines = t.lines[:b.index]
		return nil
	}
	t.s.tell(n.i, "goes on alone: its line parts from the other after number %d; there it ends at %d", p, from.last())
	t.s.marks.note(ntFork)
	return b
}

// part begins a new line that equals l through number p.
func (t *truth) part(l *line, p record.Seq) *line {
	b := l.branch(t.s, p)
	b.index = len(t.lines)
	t.lines = append(t.lines, b)
	return b
}

// givenUp reports whether a mastership among records began by an act whose loss
// the operator was told, or went on by one.
func (t *truth) givenUp(recs []*record.Record) bool {
	for _, rec := range recs {
		if rec.Kind == record.KindEpoch && t.wild[rec.Epoch] != "" || t.alone[rec.Epoch] {
			return true
		}
	}
	return false
}

// begin notes what a read must see.
func (t *truth) begin(q *request) {
	for _, l := range t.lines {
		q.floors = append(q.floors, l.done)
	}
	q.before = append(q.before, t.newest[q.lo:q.lo+q.n]...)
}

// floor is the lowest number that read q may see on line l: every write that was
// answered before it began, and is of that line, has a number up to there.
func (q *request) floor(l *line) record.Seq {
	if l.index < len(q.floors) {
		return q.floors[l.index]
	}
	return min(q.floor(l.parent), l.fork) // it parted later
}
