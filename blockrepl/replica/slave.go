package replica

import (
	"fmt"
	"slices"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: the master's Join and Append frames. Does: makes this journal agree
// with the master's, takes records in strict sequence, requests what is missing.
// Goes to: Store, then Ack; Apply when the commit number says so.

// slave is what only a slave has.
type slave struct {
	master record.ServerID
	joined bool       // our journal equals the master's up to last
	begin  record.Seq // number of the epoch record: commit numbers count from there
	line   record.Seq // forwards of older links are found up to here, or never
	lined  bool       // the line was reached and drawn
	window window
	acked  record.Seq // told to the master
	asked  record.Seq // requested up to here
	askAt  Time
	beat   *wire.Heartbeat // the newest, for status
	index  uint64          // Forwards sent on this link
	link   uint64          // counts links to masters
	floor  record.Seq
	// stalled: at the last heartbeat records were missing behind stalledAt. If
	// nothing came until the next, the end of the stream was lost.
	stalled   bool
	stalledAt record.Seq
}

// onJoin makes this server follow an epoch: what the journal holds above the
// last common record is set aside, in one batch with the promise.
func (r *Replica) onJoin(p *peer, j *wire.Join) {
	if r.notWhileFilling(p, j) || r.refuseJoin(p, j) {
		return
	}
	if r.beyondMatch(p, j) {
		return
	}
	if !j.Resync && (j.Match.Seq > r.last.Seq || r.forgot != "") {
		r.send(p, &wire.Joined{Epoch: j.Epoch, OK: true, Resync: true, Last: r.last,
			Reason: fmt.Sprintf("its journal ends at %d, not at %d", r.last.Seq, j.Match.Seq)})
		return
	}
	if j.Resync {
		if _, err := decodeTable(j.Table); err != nil {
			r.send(p, &wire.Joined{Epoch: j.Epoch, Reason: err.Error(), Last: r.last})
			return
		}
		r.followAnew(p, j)
		return
	}
	session, last := p.session, r.last
	r.sumAt(j.Match.Seq, true, func(pos record.Pos, ok bool) {
		if r.joinOutdated(p, j, session, last) || r.beyondMatch(p, j) {
			return
		}
		why := r.forgot
		if (!ok || pos.Sum != j.Match.Sum) && j.Match.Seq+1 != r.first {
			why = fmt.Sprintf("its record %d has another sum", j.Match.Seq)
		}
		if why != "" {
			r.send(p, &wire.Joined{Epoch: j.Epoch, OK: true, Resync: true, Last: r.last, Reason: why})
			return
		}
		r.follow(p, r.keeping(j), nil)
	})
}

// beyondMatch asks for a resync when the image may hold what the master's line lacks.
func (r *Replica) beyondMatch(p *peer, j *wire.Join) bool {
	held := r.maybeApplied(j.History)
	if j.Resync || j.Match.Seq >= held {
		return false
	}
	r.send(p, &wire.Joined{Epoch: j.Epoch, OK: true, Resync: true, Last: r.last,
		Reason: fmt.Sprintf("its image may hold records up to %d, the last common one is %d", held, j.Match.Seq)})
	return true
}

// keeping moves the place from which an epoch is followed to the end of this
// journal, when the epoch is followed already: all of its tail came from that
// master, only what was not yet fsynced when the link opened is missing in our
// greeting. To set it aside would be for nothing, and a crash right after it would
// look like a loss to the marks, which remember those records as durable.
func (r *Replica) keeping(j *wire.Join) *wire.Join {
	if j.Epoch != r.hard.Following || twice(r.hard.History, j.History, j.Epoch) || j.Match.Seq >= r.last.Seq || r.last.Seq > j.Last {
		return j
	}
	k := *j
	k.Match = r.last
	return &k
}

// followAnew follows an epoch by a resync. Records that the master's history does
// not have are set aside before the journal begins anew: somebody may miss them.
func (r *Replica) followAnew(p *peer, j *wire.Join) {
	at := max(records(r.hard.History, r.last.Seq, j.History, j.Last), r.first-1)
	if r.blank() || r.hard.Resync != nil || at >= r.last.Seq || mutated("drop a tail at a resync") {
		r.follow(p, j, nil)
		return
	}
	r.setAside(p, j, at, p.session, r.last)
}

// setAside follows an epoch by a resync, and sets aside what is above number at, or
// above the next one below it whose sum is known: of two damaged records in a row
// nothing tells the first one's.
func (r *Replica) setAside(p *peer, j *wire.Join, at record.Seq, session uint64, last record.Pos) {
	r.sumAt(at, false, func(pos record.Pos, ok bool) {
		switch {
		case r.joinOutdated(p, j, session, last):
		case !ok && at >= r.first:
			r.setAside(p, j, at-1, session, last)
		case !ok:
			r.warn("records that the master does not have cannot be set aside: the journal's first ones are damaged", "first", uint64(r.first), "last", uint64(last.Seq), "epoch", j.Epoch.String())
			r.follow(p, j, nil)
		default:
			r.warn("records that the master does not have are set aside", "first", uint64(at+1), "last", uint64(last.Seq), "epoch", j.Epoch.String())
			r.follow(p, j, &pos)
		}
	})
}

// refuseJoin answers a Join that cannot be followed.
func (r *Replica) refuseJoin(p *peer, j *wire.Join) bool {
	why := r.joinRefusal(p, j)
	if why != "" {
		r.send(p, &wire.Joined{Epoch: j.Epoch, Reason: why, Last: r.last})
		r.send(p, r.greeting())
	}
	return why != ""
}

// joinOutdated reports whether a Join, for which a sum was looked up meanwhile, can no
// longer be followed. It is answered all the same: the master waits for that.
func (r *Replica) joinOutdated(p *peer, j *wire.Join, session uint64, last record.Pos) bool {
	if p.session != session || r.refuseJoin(p, j) {
		return true
	}
	if r.last != last { // the master of before still sends
		r.send(p, &wire.Joined{Epoch: j.Epoch, Reason: "its journal changed meanwhile; it is asked again", Last: r.last})
		return true
	}
	return false
}

// joinRefusal says why an epoch cannot be followed, or "".
func (r *Replica) joinRefusal(p *peer, j *wire.Join) string {
	switch {
	case j.Epoch.Server != p.id:
		return fmt.Sprintf("epoch %v is not %v's", j.Epoch, p.id)
	case j.Epoch.Less(r.hard.Promised):
		return fmt.Sprintf("epoch %v is promised", r.hard.Promised)
	case j.State.Epoch != j.Epoch || len(j.History) == 0 || j.History[len(j.History)-1].Epoch != j.Epoch:
		return "its state or history does not belong to its epoch"
	case !r.blank() && j.State.UUID != r.hard.State.UUID:
		return fmt.Sprintf("the volume here is %v", r.hard.State.UUID)
	case !r.blank() && splitBrain(r.hard.History, &r.hard.State, j.History, &j.State):
		return "split brain: resolve it first"
	case !contains(j.State.Members, r.cfg.Self):
		return "this server is not a member"
	case r.filling: // since it was asked
		return "an init is preparing its image"
	}
	return ""
}

// maybeApplied is the highest number that the image can hold and that the
// epochs of history h may lack. A mastership that began by the rules lacks
// nothing that was committed anywhere; one that accepted loss may, and one that began
// by the operator's word that the old master is dead, when it was not. Then this image may
// hold whatever its journal held at the start of this run.
func (r *Replica) maybeApplied(h []wire.EpochStart) record.Seq {
	if m := r.hard.Resync; m != nil && m.Target == 0 {
		return r.applyTo // the mark says that the image is a mixture anyway
	}
	ours, h := aligned(r.hard.History, h)
	theirs := h[parting(ours, h):]
	if len(theirs) == 0 || r.committedWith(theirs[0].Epoch.Server) && !slices.ContainsFunc(theirs, func(s wire.EpochStart) bool { return s.Loss }) {
		return r.applyTo
	}
	return max(r.applyTo, r.redo.held)
}

// committedWith reports whether nothing that this journal holds above id's was committed
// without it. Only who was the master knows: each set that it committed with is durable
// here before it counts, whereas a slave may have heard of the numbers alone.
func (r *Replica) committedWith(id record.ServerID) bool {
	st := &r.hard.State
	return st.Epoch == r.hard.Following && st.Master == r.cfg.Self && inSync(st, id)
}

// follow carries out a Join. aside is where the tail begins that is set aside
// before a resync, nil when there is none.
func (r *Replica) follow(p *peer, j *wire.Join, aside *record.Pos) {
	if r.role != wire.RoleSlave {
		r.stepDown(fmt.Sprintf("server %v leads epoch %v", p.id, j.Epoch))
	}
	r.stopResync() // from another master, or over another link; it goes on when this Join is durable
	newEpoch := r.hard.Following != j.Epoch
	if m := r.hard.Resync; m != nil && !j.Resync && m.High > common(r.hard.History, max(r.last.Seq, m.High), j.History, j.Last) {
		r.warn("extents that were copied hold records which were given up; copying anew", "high", uint64(m.High), "epoch", j.Epoch.String())
		m.Offset, m.High, m.Target = 0, m.Base, 0
		r.resy.ending = false
	}
	r.hard.Promised, r.hard.Following = j.Epoch, j.Epoch
	r.hard.Vow, r.vowed = record.Epoch{}, record.Epoch{}
	if newer(&j.State, &r.hard.State) {
		r.hard.State = j.State
	}
	r.hard.Proposed = nil
	r.hard.History = j.History
	r.setPeers(r.hard.State.Members)
	r.unresolved() // whichever server the mark names, it is of this epoch now or will be
	p = r.peer(p.id)
	r.s = slave{master: p.id, joined: true, begin: j.History[len(j.History)-1].First.Seq, line: j.Last, floor: r.s.floor}
	r.reads.anew()
	if newEpoch {
		r.redo.to = 0 // what the master before had committed may never come
		r.note("following", "epoch", j.Epoch.String(), "master", p.id.String(), "seq", uint64(j.Match.Seq))
	}
	var s Store
	switch {
	case j.Resync:
		t, _ := decodeTable(j.Table) // checked by onJoin
		r.beginResync(j.Match, t)
		s.Cut, s.Reset = aside, &j.Match
		t = r.table.clone()
		s.Table = &t
	case r.last.Seq > j.Match.Seq:
		r.warn("records above the last common one are set aside", "first", uint64(j.Match.Seq+1), "last", uint64(r.last.Seq), "epoch", j.Epoch.String())
		r.cutTo(j.Match)
		s.Cut = &j.Match
	}
	// What was committed above in the epochs before was given up, or is told again.
	r.commit = max(r.applyTo, min(r.commit, j.Match.Seq))
	r.hard.Match = j.Match.Seq
	r.noteLease()
	s.Hard = r.hardCopy()
	r.s.acked = j.Match.Seq
	session := p.session
	r.store(s, nil)
	r.storing[len(r.storing)-1].seq = j.Match.Seq
	r.storing[len(r.storing)-1].act = func() {
		r.l.granting = r.cfg.PeerTimeout
		if p.session != session || r.hard.Following != j.Epoch {
			return
		}
		if r.forgot != "" {
			r.send(p, &wire.Joined{Epoch: j.Epoch, OK: true, Resync: true, Last: r.last, Reason: r.forgot})
			return
		}
		r.send(p, &wire.Joined{Epoch: j.Epoch, OK: true, Last: j.Match})
		r.continueResync()
	}
	r.heardCommit(j.Commit)
	r.forwardAgain()
	r.drawLine()
}

// onAppend takes records of the stream.
func (r *Replica) onAppend(p *peer, a *wire.Append) {
	if r.adopt(p, a) {
		return
	}
	if r.hard.Following != a.Epoch || a.Epoch != r.hard.Promised && !mutated("accept records after a newer promise") || r.role != wire.RoleSlave || r.s.master != p.id {
		if r.now.Sub(p.lastRefusal) >= r.cfg.PeerTimeout/4 || p.lastRefusal == 0 {
			p.lastRefusal = r.now
			r.send(p, r.greeting()) // fences a master of an older epoch
		}
		return
	}
	if !r.s.joined {
		return
	}
	for _, rec := range a.Records {
		if !r.offer(p, rec) {
			return
		}
	}
	r.askMissing(p)
	r.s.floor = max(r.s.floor, a.Floor)
	r.heardCommit(a.Commit)
	r.drawLine()
}

// offer takes one record: next, duplicate or early. False: the link was closed.
func (r *Replica) offer(p *peer, rec *record.Record) bool {
	switch {
	case rec.Seq <= r.last.Seq:
		r.count("records_duplicate", 1)
		if sum, ok := r.sums.at(rec.Seq); ok && sum != rec.Sum {
			r.warn("master sends another record under a known number", "peer", p.id.String(), "seq", uint64(rec.Seq))
			r.closeLink(p, fmt.Sprintf("record %d has sum %016x, ours %016x", rec.Seq, rec.Sum, sum))
			return false
		}
		return true
	case rec.Seq > r.last.Seq+1:
		r.count("records_early", 1)
		r.s.window.hold(rec)
		return true
	}
	if !r.accept(p, rec) {
		return false
	}
	for {
		next := r.s.window.take(r.last.Seq + 1)
		if next == nil {
			return true
		}
		if !r.accept(p, next) {
			return false
		}
	}
}

// accept appends the next record if it continues our past.
func (r *Replica) accept(p *peer, rec *record.Record) bool {
	if why := r.strays(rec); why != "" {
		r.warn("master sends a record that does not continue ours", "peer", p.id.String(), "seq", uint64(rec.Seq), "epoch", rec.Epoch.String(), "reason", why)
		r.s.window.clear()
		r.closeLink(p, why)
		return false
	}
	r.push(rec)
	if rec.Origin == r.cfg.Self {
		r.found(rec)
	}
	return true
}

// strays says why the next record does not continue our past, or "".
func (r *Replica) strays(rec *record.Record) string {
	switch {
	case rec.Volume != r.hard.State.UUID:
		return fmt.Sprintf("record %d is of volume %v; ours is %v", rec.Seq, rec.Volume, r.hard.State.UUID)
	case rec.Epoch.Compare(r.hard.Following) > 0:
		return fmt.Sprintf("record %d is of epoch %v; %v is followed here", rec.Seq, rec.Epoch, r.hard.Following)
	case rec.Prev != r.last.Sum:
		return fmt.Sprintf("record %d of epoch %v follows %016x; ours ends at %v", rec.Seq, rec.Epoch, rec.Prev, r.last)
	}
	return ""
}

// askMissing requests the gap before the lowest early record.
func (r *Replica) askMissing(p *peer) {
	first, ok := r.s.window.first()
	if !ok {
		r.s.asked = 0
		return
	}
	if r.s.asked >= first-1 && r.now < r.s.askAt {
		r.wake(r.s.askAt)
		return
	}
	r.s.asked, r.s.askAt = first-1, r.now.Add(requestAgain)
	r.count("requests_sent", 1)
	r.send(p, &wire.Request{Epoch: r.hard.Following, From: r.last.Seq + 1, To: first - 1})
	r.wake(r.s.askAt)
}

// heardCommit takes in the master's commit number. It counts from the epoch
// record on: a master that has only begun does not know yet what was committed.
func (r *Replica) heardCommit(c record.Seq) {
	if !r.s.joined || c < r.s.begin && !mutated("end the redo at any commit number") {
		return
	}
	if c > r.commit {
		r.commit = c
		r.rememberMaster()
	}
	r.redo.heard(r)
	if r.stopID != 0 {
		// A master that handed over may go when the next one serves: its epoch
		// record is durable on the whole set, of which this server still is one.
		id := r.stopID
		r.stopID = 0
		r.vow(id)
	}
}

// ackDurable tells the master what is durable here.
func (r *Replica) ackDurable() {
	if r.role != wire.RoleSlave || !r.s.joined || r.ackable() <= r.s.acked {
		return
	}
	p := r.peer(r.s.master)
	if a := r.ack(); p != nil && a != nil {
		r.s.acked = r.ackable()
		r.send(p, a)
	}
}

// ackable is the number through which may be acknowledged: what is fsynced here.
func (r *Replica) ackable() record.Seq {
	if mutated("ack before sync") {
		return r.last.Seq
	}
	return r.durable
}

// ack says what is durable; nil while the journal does not agree with the master's.
func (r *Replica) ack() *wire.Ack {
	sum, ok := r.sums.at(r.ackable())
	if !ok || !r.s.joined {
		return nil
	}
	return &wire.Ack{
		Epoch: r.hard.Following, Incarnation: r.cfg.Incarnation,
		Durable: record.Pos{Seq: r.ackable(), Sum: sum}, Applied: r.applied,
		Free: r.free, Image: r.image, Resyncing: r.resyncing(),
	}
}

// onHeartbeat answers the master. The answer is a lease: no promotion here for the
// time that it says (rule 9).
func (r *Replica) onHeartbeat(p *peer, h *wire.Heartbeat) {
	a := r.ack()
	if r.role != wire.RoleSlave || r.s.master != p.id || h.Epoch != r.hard.Following || h.Epoch != r.hard.Promised || a == nil {
		switch {
		case h.Epoch.IsZero():
		case r.hard.Following != h.Epoch && r.hard.Promised != h.Epoch, h.Epoch.Less(r.hard.Promised), r.forgot != "":
			r.send(p, r.greeting()) // a master without writes under way hears it, too
		default: // alive, but not joined: a server that says nothing would be taken for dead and never be joined
			r.send(p, &wire.HeartbeatAck{Ack: wire.Ack{Epoch: h.Epoch, Incarnation: r.cfg.Incarnation}, SentAt: h.SentAt})
		}
		return
	}
	if h.Commit > h.Last {
		r.closeLink(p, fmt.Sprintf("it calls number %d committed; by its own word its last is %d", h.Commit, h.Last))
		return
	}
	r.s.beat = h
	r.l.until = max(r.l.until, r.now.Add(r.l.granting))
	r.s.acked = max(r.s.acked, r.durable)
	r.send(p, &wire.HeartbeatAck{Ack: *a, SentAt: h.SentAt, OK: true, Lease: int64(r.l.granting)})
	r.s.floor = max(r.s.floor, h.Floor)
	r.heardCommit(h.Commit)
	if h.Last > r.last.Seq && r.s.window.empty() && r.s.stalled && r.s.stalledAt == r.last.Seq {
		r.count("requests_sent", 1)
		r.send(p, &wire.Request{Epoch: r.hard.Following, From: r.last.Seq + 1, To: h.Last})
	}
	r.s.stalled, r.s.stalledAt = h.Last > r.last.Seq, r.last.Seq
}

// tickSlave looks at the clock.
func (r *Replica) tickSlave() {
	r.mayCreate()
	r.mayRestart()
	if r.role != wire.RoleSlave || !r.s.joined {
		return
	}
	p := r.peer(r.s.master)
	if p == nil || p.session == 0 {
		return
	}
	r.askMissing(p)
	if r.now.Sub(p.lastHeard) > r.cfg.PeerTimeout && p.state != Down {
		r.setState(p, Down, fmt.Sprintf("the master has been silent for %v", r.cfg.PeerTimeout))
	} else if p.state == Down && r.now.Sub(p.lastHeard) <= r.cfg.PeerTimeout {
		r.setState(p, Live, "")
	}
	r.reads.again(r)
}
