package replica

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// A resync copies the extents that differ, because records are no longer kept or
// because this image's past is not to be believed (design, section 7):
//
//  1. beginResync: the mark is durable, the journal begins anew behind Base (S0).
//  2. The stream from S0+1 goes to the journal as always; nothing is applied.
//  3. The shell compares and copies extents; resyncProgress notes how far.
//  4. With the last extent Target (S1) is known: S0+1..S1 are applied, which
//     leaves the image as the state at S1; the mark goes with the next image fsync.

// resync is what a resync needs beyond the mark.
type resync struct {
	running bool   // the shell copies
	order   uint64 // ID of the newest order
	ending  bool   // Target is applied; the image fsync is ordered
	saving  bool   // the mark is gone here, and not yet from the journal
}

// resyncing is what others are told: after a crash the mark would still be there, and
// this server not be promotable.
func (r *Replica) resyncing() bool {
	return r.hard.Resync != nil || r.resy.saving && !mutated("end a resync before that is durable")
}

// beginResync drops this server's past. The caller stores the mark with the reset.
func (r *Replica) beginResync(base record.Pos, t Table) {
	r.warn("resync begins: extents are compared with the master's; this server is not promotable until it ends", "seq", uint64(base.Seq), "master", r.s.master.String())
	r.beginBehind(base, t)
	r.hard.Resync = &ResyncMark{Base: base.Seq, High: base.Seq}
	r.believe()
	r.resy = resync{order: r.resy.order}
}

// beginBehind drops the journal, so that it begins anew behind base, where the image
// is taken to be and t is the table. The caller orders the Store with the Reset.
func (r *Replica) beginBehind(base record.Pos, t Table) {
	r.flush()
	for i := range r.storing {
		r.storing[i].seq = 0
	}
	r.last, r.durable, r.first = base, 0, base.Seq+1
	r.trimmed = base.Seq
	r.commit, r.applied, r.applyTo = base.Seq, base.Seq, base.Seq
	r.sums = newSums(base, []uint64{base.Sum})
	r.kept.reset(base.Seq)
	r.plain.reset(base.Seq)
	r.marks = nil
	r.table = t
	r.renumberTable()
	r.hard.Checkpoint, r.hard.Image = base.Seq, nil
	r.redo = redo{}
	// What was ordered before, in the same round, is of the journal that is dropped: its
	// numbers mean other records now.
	r.out.Apply, r.out.SyncImage, r.out.Trim = 0, 0, 0
	r.forgetForwards()
}

// encodeTable is the table in a Join.
func encodeTable(t *Table) []byte {
	b, err := json.Marshal(t)
	if err != nil {
		panic(fmt.Sprintf("blockrepl: bug: encode table: %v", err))
	}
	return b
}

// decodeTable reads what encodeTable wrote.
func decodeTable(b []byte) (Table, error) {
	var t Table
	if err := json.Unmarshal(b, &t); err != nil {
		return t, fmt.Errorf("attachment table: %w", err)
	}
	if !t.fits() || t.Size < 0 {
		return t, fmt.Errorf("attachment table of %d entries in %d bytes, size %d", len(t.Entries), t.size(), t.Size)
	}
	slices.SortFunc(t.Entries, func(a, b Entry) int { return cmp.Compare(a.Identity, b.Identity) })
	return t, nil
}

// continueResync lets the shell copy, from where it was.
func (r *Replica) continueResync() {
	m := r.hard.Resync
	if m == nil || !r.s.joined || r.resy.running {
		return
	}
	if m.Target != 0 { // all is copied
		r.resyncApplied()
		return
	}
	p := r.peer(r.s.master)
	if p == nil || p.session == 0 {
		return
	}
	r.resy.running = true
	r.resy.order++
	r.out.Resync = &ResyncOrder{ID: r.resy.order, To: p.id, Session: p.session, Epoch: r.hard.Following, From: m.Offset, Size: r.table.Size, High: m.High}
}

// stopResync stops the copying; the mark stays.
func (r *Replica) stopResync() {
	if r.resy.running {
		r.resy.running = false
		r.out.Resync = &ResyncOrder{Stop: true}
	}
}

// resyncProgress notes how far the copying is. Word of an older order may still be
// under way: taken for the present one's it would end the copying in the books
// while the shell goes on writing extents over the records that are applied.
func (r *Replica) resyncProgress(ev ResyncProgress) {
	m := r.hard.Resync
	if m == nil || !r.resy.running || ev.Order != r.resy.order || m.Target != 0 {
		return
	}
	m.Offset = max(m.Offset, ev.Offset)
	m.High = max(m.High, ev.Applied)
	if ev.Done {
		r.resy.running = false
		m.Target = max(m.High, m.Base)
		if mutated("end a resync at its beginning") {
			m.Target = m.Base
		}
		r.note("every extent is compared; applying the records that came meanwhile", "from", uint64(m.Base+1), "to", uint64(m.Target))
	}
	r.saveHard(r.resyncApplied)
}

// resyncApplied ends a resync when everything through Target is applied: first
// the image fsync, then the mark goes with the checkpoint.
func (r *Replica) resyncApplied() {
	m := r.hard.Resync
	if m == nil || m.Target == 0 || r.resy.ending || r.applied < m.Target {
		return
	}
	r.resy.ending = true
	r.out.SyncImage = r.applied
}

// endResync clears the mark: the image is fsynced with everything through the
// checkpoint. The caller stores Hard; ended tells the master when that is durable.
func (r *Replica) endResync() (ended func()) {
	m := r.hard.Resync
	if m == nil || m.Target == 0 || r.hard.Checkpoint < m.Target {
		return nil
	}
	r.hard.Resync = nil
	r.resy = resync{order: r.resy.order, saving: true}
	r.note("resync ended; the image is the state after a number again", "seq", uint64(r.hard.Checkpoint))
	r.readsApplied()
	order := r.resy.order
	return func() {
		if !r.resy.saving || r.hard.Resync != nil || r.resy.order != order {
			return
		}
		r.resy.saving = false
		p := r.peer(r.s.master)
		if a := r.ack(); p != nil && a != nil && r.role == wire.RoleSlave {
			r.send(p, a)
		}
	}
}
