package sim

import (
	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// copying is a resync's engine: windows of a few sectors are compared with the
// master's image one after the other; every few windows what was copied is
// fsynced and told.
type copying struct {
	order  replica.ResyncOrder
	active bool
	ask    uint64 // the query under way
	offset int64
	high   record.Seq
	saving bool // an image fsync for the progress is wanted or under way
	synced bool // it began after the last window was written
	done   bool
	since  int // windows since the last progress
}

const copyWindow = 4 * sectorBytes

func (n *node) order(o *replica.ResyncOrder) {
	ask := n.copying.ask
	n.copying = copying{ask: ask}
	if o.Stop || n.ill {
		return
	}
	if !n.s.cached {
		n.image.evict(n, true)
	}
	n.mixed++
	n.image.size = int(o.Size / sectorBytes)
	for i := n.image.size; i < sectorsMax; i++ {
		n.image.set(i, 0) // of a line that is given up, on which the volume was larger
	}
	n.copying = copying{order: *o, active: true, ask: ask, offset: o.From, high: o.High}
	n.s.tell(n.i, "copies extents from %v at %d", o.To, o.From)
	n.copyNext()
}

func (n *node) copyNext() {
	n.copying.ask++
	n.after(exp(n.s.dice.disk, n.s.prof.copy), event{what: evCopy, a: n.copying.ask})
}

// copyStep asks for the next window, or ends.
func (n *node) copyStep(ev *event) {
	c := &n.copying
	if !c.active || ev.a != c.ask || c.saving || n.ill {
		return
	}
	if n.paused {
		n.after(n.wakes(), *ev)
		return
	}
	if c.offset >= c.order.Size || c.since >= 3 {
		c.done = c.offset >= c.order.Size
		c.saving, c.synced, c.since = true, false, 0
		n.copySync()
		return
	}
	q := &wire.HashQuery{Epoch: c.order.Epoch, ID: c.ask, Offset: c.offset, Block: sectorBytes, Length: min(copyWindow, c.order.Size-c.offset)}
	if n.image.blind(int(q.Offset/sectorBytes), int(q.Length/sectorBytes)) {
		n.failImage(ntImageRead)
		return
	}
	for i := range q.Length / sectorBytes {
		q.Hashes = append(q.Hashes, n.image.val[c.offset/sectorBytes+i])
	}
	n.s.send(n, c.order.Session, q)
	n.after(int64(2*peerTimeout), event{what: evCopy, a: c.ask}) // asks again
}

// answer compares as the master. The number is taken after the look.
func (n *node) answer(from int8, session uint64, q *wire.HashQuery) {
	if n.epoch != q.Epoch || q.Epoch.Server != n.id || n.paused || n.ill {
		return
	}
	if n.image.blind(int(q.Offset/sectorBytes), len(q.Hashes)) {
		n.s.marks.note(ntBlind)
		return // it comes again
	}
	d := &wire.ExtentData{Epoch: q.Epoch, ID: q.ID, Offset: q.Offset, Length: q.Length, Applied: n.image.seq}
	for i, h := range q.Hashes {
		at := q.Offset + int64(i)*sectorBytes
		v := n.image.val[at/sectorBytes]
		if v == h {
			continue
		}
		k := wire.Chunk{Offset: at, Length: sectorBytes, Zero: v == 0}
		if v != 0 {
			k.Data = make([]byte, sectorBytes)
			putValue(k.Data, v)
		}
		d.Chunks = append(d.Chunks, k)
	}
	n.s.send(n, session, d)
}

// copied takes the master's answer.
func (n *node) copied(session uint64, d *wire.ExtentData) {
	c := &n.copying
	if !c.active || session != c.order.Session || d.Epoch != c.order.Epoch || d.ID != c.ask || d.Offset != c.offset || c.saving || n.ill {
		return
	}
	for i := range d.Chunks {
		k := &d.Chunks[i]
		v := uint64(0)
		if !k.Zero {
			v = getValue(k.Data)
		}
		if n.refuses(!k.Zero) {
			n.writeFails()
			return
		}
		n.image.set(int(k.Offset/sectorBytes), v)
	}
	c.high = max(c.high, d.Applied)
	c.offset += d.Length
	c.since++
	n.copyNext()
}

// copySync has the image fsynced for the progress.
func (n *node) copySync() {
	y := &n.sync
	if n.ill {
		return
	}
	if y.busy {
		return // copySaved begins it when the one under way ends
	}
	y.busy, n.copying.synced = true, true
	n.image.beginSync()
	n.after(n.diskTime(), event{what: evImgSync, a: uint64(n.app.applied), b: y.gen})
}

func (n *node) copySaved() {
	c := &n.copying
	if !c.synced {
		n.copySync()
		return
	}
	c.saving = false
	n.post(replica.ResyncProgress{Order: c.order.ID, Offset: c.offset, Applied: c.high, Done: c.done})
	if c.done {
		c.active = false
		return
	}
	n.copyNext()
}
