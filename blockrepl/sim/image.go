package sim

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/blockrepl/blockrepl/journal/record"
)

// image is the model of the backing file: what the page cache shows, what an
// fsync made durable, and for each sector the values written since, any of which
// a power cut may leave.
type image struct {
	size    int // sectors
	val     [sectorsMax]uint64
	durable [sectorsMax]uint64
	since   [sectorsMax][]uint64
	seq     record.Seq // what a reader may take it for
	sum     uint64     // that record's header sum
	clean   uint64     // sectors, as bits: written out in vain, so that val is not to become durable
	bad     uint64     // likewise: cannot be read until they are written

	// An fsync under way.
	snap    [sectorsMax]uint64
	snapped [sectorsMax]int
}

func (m *image) init(sectors int) { *m = image{size: sectors} }

func (m *image) set(i int, v uint64) {
	m.bad &^= 1 << i
	if m.val[i] == v && m.clean>>i&1 == 0 {
		return
	}
	m.clean &^= 1 << i
	m.val[i] = v
	m.since[i] = append(m.since[i], v)
}

// value is what the k-th sector of a record's extent becomes.
func value(rec *record.Record, k int) uint64 {
	if rec.Kind != record.KindWrite {
		return 0
	}
	return binary.LittleEndian.Uint64(rec.Raw[record.HeaderSize+k*sectorBytes:])
}

// apply writes the first part sectors of a record, all of them when part < 0.
func (m *image) apply(rec *record.Record, part int) {
	if rec.Kind == record.KindResize {
		m.size = int(rec.Length / sectorBytes)
		return
	}
	if !rec.Kind.ChangesImage() {
		return
	}
	lo, k := int(rec.Offset/sectorBytes), int(rec.Length/sectorBytes)
	if part >= 0 {
		k = min(k, part)
	}
	for i := range k {
		m.set(lo+i, value(rec, i))
	}
}

func (m *image) beginSync() {
	m.snap = m.val
	for i := range m.since {
		if m.clean>>i&1 != 0 {
			m.snap[i] = m.durable[i]
		}
		m.snapped[i] = len(m.since[i])
	}
}

func (m *image) endSync() {
	m.durable = m.snap
	for i := range m.since {
		m.since[i] = append(m.since[i][:0], m.since[i][m.snapped[i]:]...)
	}
}

// powerCut leaves in each sector its durable value or one written since.
func (m *image) powerCut(r *rand.Rand) {
	m.clean = 0
	for i := range m.val {
		v := m.durable[i]
		if k := len(m.since[i]); k > 0 {
			if j := r.IntN(k + 1); j < k {
				v = m.since[i][j]
			}
		}
		m.val[i], m.durable[i] = v, v
		m.since[i] = m.since[i][:0]
	}
}

// applier takes committed records to the image, a few at a time.
type applier struct {
	target, applied record.Seq
	busy            bool
	from, to        record.Seq   // the batch under way
	early           bool         // it is in the image already, and not yet told
	stuck           bool         // at a record that cannot be read
	missed          []record.Seq // that the start could not read
	gen             uint64
}

func (a *applier) reset(seq record.Seq) {
	*a = applier{target: seq, applied: seq, gen: a.gen + 1}
}

// syncing is the checkpointer.
type syncing struct {
	busy, armed bool
	want        record.Seq
	gen         uint64 // counts resets of the journal
	marks       bool   // the marks file is dirty
}

func (n *node) applyTo(seq record.Seq) {
	n.app.target = max(n.app.target, seq)
	n.applyMore()
}

// applyMore begins the next batch. Half of the batches are in the image before
// anyone is told, half after: readers see either.
func (n *node) applyMore() {
	a := &n.app
	if a.busy || a.stuck || n.ill || n.dead && n.s.prof.weight[fRot] > 0 || a.target <= a.applied {
		return
	}
	a.from = a.applied + 1
	a.to = min(a.target, a.applied+1+record.Seq(n.s.dice.disk.IntN(applyMax)))
	if p := n.unreadable(a.from, a.to); p != nil {
		a.stuck = true
		n.mend(p, p.Seq, forImage)
		return
	}
	a.busy = true
	if a.early = n.s.dice.disk.Uint32()&1 == 0; a.early {
		n.applyBatch(a.from, a.to)
		if n.ill {
			return
		}
	}
	n.after(n.s.dice.disk.Int64N(int64(400*time.Microsecond)), event{what: evApplied, a: a.gen})
}

func (n *node) applyBatch(from, to record.Seq) {
	for q := from; q <= to; q++ {
		rec := n.journal.os.get(q)
		if !n.s.applying(n, q, rec) {
			return
		}
		if rec.Kind.ChangesImage() && n.refuses(takesRoom(rec)) {
			n.image.apply(rec, n.s.dice.sick.IntN(int(rec.Length/sectorBytes)+1))
			n.writeFails()
			return
		}
		n.image.apply(rec, -1)
		n.image.seq, n.image.sum = q, rec.Sum
	}
}

func (n *node) applyEnd(gen uint64) {
	a := &n.app
	if gen != a.gen || !a.busy {
		return
	}
	if !a.early {
		n.applyBatch(a.from, a.to)
		if n.ill {
			return
		}
	}
	for q := a.from; q <= a.to && len(a.missed) > 0; q++ {
		if slices.Contains(a.missed, q) {
			n.in.missed = append(n.in.missed, n.journal.os.get(q))
		}
	}
	a.busy, a.applied = false, a.to
	n.in.applied = max(n.in.applied, a.to)
	n.kick()
	if y := &n.sync; !y.armed {
		y.armed = true
		n.after(exp(n.s.dice.disk, n.s.prof.checkpoint), event{what: evCheck})
	}
	n.checkpoint(true)
	n.applyMore()
}

// checkpoint begins an fsync of the image: now and then, or when one is asked for.
func (n *node) checkpoint(asked bool) {
	y := &n.sync
	if asked && (y.want == 0 || n.app.applied < y.want) {
		return
	}
	if !asked {
		y.armed = false
	}
	if y.busy || n.ill {
		return
	}
	if asked {
		y.want = 0
	}
	y.busy = true
	n.image.beginSync()
	n.after(n.diskTime(), event{what: evImgSync, a: uint64(n.app.applied), b: y.gen})
}

func (n *node) imageSynced(seq, gen uint64) {
	y := &n.sync
	y.busy = false
	if n.sick == sickSync {
		n.syncFails()
		return
	}
	n.image.endSync()
	if gen == y.gen {
		n.in.synced = max(n.in.synced, record.Seq(seq))
		n.kick()
	}
	if n.copying.saving {
		n.copySaved()
	}
	n.checkpoint(true)
}

// crash is what a crash leaves of the image: the batch under way in part.
func (n *node) crashImage(power bool) {
	a := &n.app
	if a.busy && !a.early {
		r := n.s.dice.disk
		part := a.from + record.Seq(r.IntN(int(a.to-a.from)+2))
		for q := a.from; q < part && q <= a.to; q++ {
			rec := n.journal.os.get(q)
			if !n.s.applying(n, q, rec) {
				return
			}
			torn := -1
			if q+1 == part {
				torn = r.IntN(int(rec.Length/sectorBytes) + 2)
			}
			n.image.apply(rec, torn)
		}
	}
	if power {
		n.image.powerCut(n.s.dice.disk)
	}
}
