package replica

import (
	"errors"
	"fmt"
	"slices"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: a peer's greeting, its answers and acknowledgements. Does: finds
// the last common record, brings the peer on from there.
// Goes to: members.go.

// join tells a slave where it has to begin following this epoch.
func (r *Replica) join(p *peer) {
	g := p.greeting
	if !r.m.begun || p.session == 0 || g == nil || p.joined || p.joining || p.split {
		return
	}
	if r.epoch().Less(g.Promised) {
		r.fenced(p, g.Promised)
		return
	}
	if p.stale {
		if p.askedAt == 0 || r.now.Sub(p.askedAt) >= r.cfg.PeerTimeout/4 {
			p.askedAt = r.now
			r.send(p, &wire.Query{})
		}
		return
	}
	if g.Resyncing && !r.m.serving {
		if r.waited(p.id) {
			// Each would wait for the other. It promised before it lost what it had.
			r.setState(p, Down, fmt.Sprintf("its image is still being copied; to resync it: blockrepl forget %s %v", r.cfg.Create.Name, p.id))
			return
		}
		// It would read extents that this server's redo has not reached yet.
		r.setState(p, Probe, "its resync goes on when the master serves")
		return
	}
	if why := r.lostPast(p, g); why != "" {
		r.joinResync(p, why)
		return
	}
	at := common(r.hard.History, r.last.Seq, g.History, g.Last.Seq)
	fresh := g.UUID.IsZero() // joins at the volume's creation only
	switch {
	case fresh && (r.first > 1 || !inSync(&r.hard.State, p.id)):
		r.joinResync(p, "it is blank")
		return
	case at+1 < r.first:
		r.joinResync(p, fmt.Sprintf("records from %d are no longer kept", at+1))
		return
	case at < r.m.unreadable:
		r.joinResync(p, fmt.Sprintf("record %d cannot be read in this server's journal, and no other server has it", r.m.unreadable))
		return
	case g.First > at+1 && g.Last.Seq > at:
		r.joinResync(p, fmt.Sprintf("its journal begins at %d, above the last common number %d", g.First, at))
		return
	}
	if p.past.asked != 0 && p.past.at == at && p.past.end == g.Last && r.now.Sub(p.past.asked) < pastAgain*r.cfg.PeerTimeout {
		r.withoutPast(p)
		return
	}
	p.joining = true
	session, epoch := p.session, r.epoch()
	r.sumAt(at, true, func(pos record.Pos, ok bool) {
		if p.session != session || !p.joining || r.role != wire.RoleMaster || r.epoch() != epoch {
			return
		}
		if !ok || at+1 < r.first {
			p.joining = false
			r.unknownPast(p, at)
			return
		}
		p.past = past{}
		if at == g.Last.Seq && pos.Sum != g.Last.Sum && at > 0 {
			p.joining = false
			r.joinResync(p, fmt.Sprintf("its record %d has sum %016x, ours %016x: its past is another", at, g.Last.Sum, pos.Sum))
			return
		}
		r.sendJoin(p, pos, false)
	})
}

// unknownPast is what becomes of a peer when nothing tells the sum of the last common
// number: it and the next record are damaged here, and no other server has them. While
// our own image lacks one of them, the damage is ours: to forget the peer would be the
// end of this server, which can apply nothing any more, and of who can go on without.
func (r *Replica) unknownPast(p *peer, at record.Seq) {
	if at+1 < r.first {
		r.joinResync(p, fmt.Sprintf("record %d is no longer kept", at))
		return
	}
	p.past = past{asked: r.now, at: at, end: p.greeting.Last}
	r.withoutPast(p)
}

// withoutPast goes on with what unknownPast found.
func (r *Replica) withoutPast(p *peer) {
	if at := p.past.at; at >= r.applied {
		p.past.hole = at + 1
		r.setState(p, Probe, fmt.Sprintf("record %d, which this server's image lacks, is damaged in its journal", at+1))
		return
	}
	p.past.hole = 0
	r.joinResync(p, fmt.Sprintf("record %d cannot be read in this server's journal, and no other server has it", p.past.at))
}

// lostPast says why the peer cannot simply catch up although it is no newcomer.
func (r *Replica) lostPast(p *peer, g *wire.Greeting) string {
	if why := r.amnesia(g, p.id); why != "" {
		return why
	}
	if m, ok := member(&r.hard.State, p.id); ok && m.Incarnation != g.Incarnation && !mutated("believe another incarnation") {
		return fmt.Sprintf("it is incarnation %v; in the in-sync set is %v: its data directory was replaced", g.Incarnation, m.Incarnation)
	}
	return ""
}

// joinResync begins the copying of the image: the slave's journal starts anew
// behind what our image holds now, and our records from there are kept for it
// (its durable number is the floor). Not behind our journal's end: an extent that
// is read before those records are applied lacks them, and nobody would send
// them; and what is not committed may yet be taken back.
//
// Not while the slave counts as in sync: its acknowledgements were relied on, also to
// let records go here that it turns out to miss, so only the authority lets it go
// (rule 10).
func (r *Replica) joinResync(p *peer, why string) {
	if r.waited(p.id) {
		r.setState(p, Down, fmt.Sprintf("%s; to resync it: blockrepl forget %s %v", why, r.cfg.Create.Name, p.id))
		return
	}
	if !r.m.serving {
		r.setState(p, Probe, why+"; resync begins when the master serves")
		return
	}
	p.joining = true
	if p.refused == 0 { // else it is called so when it joins, not in turn with what keeps it from that
		r.setState(p, Resync, why)
	}
	session, epoch := p.session, r.epoch()
	begin := r.applied
	if mutated("resync behind the journal's end") {
		begin = r.last.Seq
	}
	r.sumAt(begin, true, func(base record.Pos, ok bool) {
		if p.session != session || !p.joining || r.role != wire.RoleMaster || r.epoch() != epoch {
			return
		}
		if !ok || base.Seq != r.table.AsOf && !mutated("resync behind the journal's end") {
			p.joining = false // looked up too slowly; the next tick tries again
			return
		}
		r.sendJoin(p, base, true)
	})
}

func (r *Replica) sendJoin(p *peer, match record.Pos, resync bool) {
	p.joining, p.vowed, p.copies = true, false, resync
	// They are above the line that this Join draws: the slave forwards them anew.
	r.m.early = slices.DeleteFunc(r.m.early, func(e early) bool { return e.peer == p.id })
	p.forwards, p.state0 = 0, r.hard.State.Number
	j := &wire.Join{
		Epoch: r.epoch(), State: r.hard.State, History: slices.Clone(r.hard.History),
		Match: match, Resync: resync, Last: r.last.Seq, Commit: r.commit,
	}
	if resync {
		t := r.table.clone() // as applied, which is at match
		j.Table = encodeTable(&t)
	}
	r.send(p, j)
}

// onJoined starts the stream.
func (r *Replica) onJoined(p *peer, j *wire.Joined) {
	if r.role != wire.RoleMaster || j.Epoch != r.epoch() || !p.joining {
		return
	}
	p.joining = false
	switch {
	case !j.OK:
		p.refused = r.now
		r.setState(p, Probe, "it does not join: "+j.Reason)
		return
	case j.Resync:
		r.joinResync(p, j.Reason)
		return
	case j.Last.Seq > r.last.Seq:
		r.closeLink(p, fmt.Sprintf("it joined at number %d, above our last %d", j.Last.Seq, r.last.Seq))
		return
	case j.Last.Seq+1 < r.first:
		r.closeLink(p, fmt.Sprintf("records from %d are no longer kept", j.Last.Seq+1))
		return
	}
	p.joined, p.refused, p.ackEpoch, p.durable = true, 0, r.epoch(), j.Last.Seq
	p.free, p.image = p.greeting.Free, wire.Room{} // until its first answer
	p.greeting.Promised = r.epoch()
	p.streamed, p.told, p.moved = r.last.Seq, r.commit, r.now
	// Not by its state: one that was silent before it answered is Down.
	p.resyncing = p.copies || p.greeting.Resyncing
	if mutated("forget a silent slave's resync") {
		p.resyncing = p.state == Resync || p.greeting.Resyncing
	}
	r.remember(p, j.Last)
	switch {
	case !p.resyncing:
		r.setState(p, CatchUp, "")
	case p.state != Resync:
		r.setState(p, Resync, "its image is being copied")
	}
	r.out.Streams = append(r.out.Streams, Stream{To: p.id, Session: p.session, Epoch: r.epoch(), From: j.Last.Seq + 1, End: r.last.Seq})
	if p.state0 != r.hard.State.Number {
		r.send(p, &wire.StateUpdate{State: r.hard.State}) // it changed since the Join
	}
	if c := r.m.change; c != nil && p.id != c.grow.ID && r.tellable(c) {
		r.send(p, &wire.StateUpdate{State: c.state}) // the link before may have lost it, or its answer
	}
	r.progressed(p)
}

// onAck counts an acknowledgement, if epoch, incarnation, number and sum are
// those of our own past (rule 5).
func (r *Replica) onAck(p *peer, a *wire.Ack) {
	if r.role != wire.RoleMaster || !p.joined || a.Epoch != r.epoch() || a.Incarnation != p.incarnation {
		r.count("acks_ignored", 1)
		return
	}
	if a.Durable.Seq > r.last.Seq {
		r.closeLink(p, fmt.Sprintf("it acknowledges number %d; the last is %d", a.Durable.Seq, r.last.Seq))
		return
	}
	if sum, ok := r.sums.at(a.Durable.Seq); ok && sum != a.Durable.Sum {
		r.warn("peer acknowledges a record that is not ours", "peer", p.id.String(), "seq", uint64(a.Durable.Seq))
		r.closeLink(p, fmt.Sprintf("its record %d has sum %016x, ours %016x", a.Durable.Seq, a.Durable.Sum, sum))
		return
	}
	p.free, p.image, p.resyncing = a.Free, a.Image, a.Resyncing
	p.applied = max(p.applied, a.Applied)
	if a.Durable.Seq > p.durable {
		p.durable, p.moved = a.Durable.Seq, r.now
		r.remember(p, a.Durable)
	}
	r.progressed(p)
}

// progressed names the peer's state after news of it.
func (r *Replica) progressed(p *peer) {
	switch {
	case !p.joined:
	case p.resyncing:
		if p.state != Resync {
			r.setState(p, Resync, "its image is being copied")
		}
	case p.durable >= p.owes && p.durable+liveLag >= r.last.Seq && r.kept.above(p.durable) <= liveLagBytes && p.state != Live:
		r.setState(p, Live, "")
	case p.state == Down || p.state == Resync:
		r.setState(p, CatchUp, "")
	}
}

// onRequest sends records again that a slave misses.
func (r *Replica) onRequest(p *peer, q *wire.Request) {
	if r.role == wire.RoleSlave && q.Epoch.Server == p.id && q.Epoch == r.hard.Promised && q.Epoch != r.hard.Following {
		r.lendTail(p, q)
		return
	}
	if r.role != wire.RoleMaster || !p.joined || q.Epoch != r.epoch() {
		return
	}
	if q.From < r.first || q.From > q.To || q.From > r.last.Seq {
		r.warn("peer requests records that are not kept", "peer", p.id.String(), "from", uint64(q.From), "to", uint64(q.To), "first", uint64(r.first))
		r.closeLink(p, fmt.Sprintf("it requests %d..%d; kept are %d..%d", q.From, q.To, r.first, r.last.Seq))
		return
	}
	r.count("requests_served", 1)
	r.out.Streams = append(r.out.Streams, Stream{To: p.id, Session: p.session, Epoch: r.epoch(), From: q.From, End: r.last.Seq})
}

// unreadable ends the streams that would need the record. What the image holds is
// taken for no longer kept by who joins, so that those who lack it get it with the
// image. A record above that is all there is of it: whoever needs it waits, and it is
// tried again with a later link.
func (r *Replica) unreadable(ev Unreadable) {
	seq := ev.Seq
	if ev.Apply {
		r.unappliable(seq)
		return
	}
	why := fmt.Sprintf("record %d cannot be read in the journal of %v, and no other server has it", seq, r.cfg.Self)
	if r.role != wire.RoleMaster {
		if p := r.peer(r.hard.Promised.Server); p != nil && r.hard.Promised != r.hard.Following {
			r.closeLink(p, why) // a tail was lent
		}
		return
	}
	if seq <= r.applied {
		r.m.unreadable = max(r.m.unreadable, seq)
	} else {
		r.m.hole = seq
	}
	for _, p := range r.peers {
		if p.joined && p.durable < seq {
			r.warn("the stream to a server ends at a record that cannot be read", "peer", p.id.String(), "seq", uint64(seq), "applied", uint64(r.applied))
			r.closeLink(p, why)
		}
	}
}

// unappliable: this server's image can never hold record seq from its own journal, nor
// anything above. A slave's master has an image that does, so that this one's past is
// given up for it; until then it is not believed, since it lacks what it has
// acknowledged. Any other server may have the only copy of what is above: it fails, and
// whoever has the record may be there at its next start.
func (r *Replica) unappliable(seq record.Seq) {
	if seq <= r.applied || seq > r.applyTo {
		return // the journal began anew since
	}
	why := fmt.Sprintf("record %d, which its image lacks, is damaged in its journal, and no other server has it", seq)
	if r.role == wire.RoleSlave && r.s.joined {
		r.forgets(why)
		return
	}
	r.hole = seq
	r.out.Fail = &Failed{What: "journal", Err: errors.New(why)}
}

// missing: a peer has no link or is silent. What that means for the in-sync set
// is the authority's: with "continue" the operator has allowed the shrink.
func (r *Replica) missing(p *peer, silent bool) {
	if mutated("shrink without the authority") && silent && inSync(&r.hard.State, p.id) {
		r.hard.State = without(r.hard.State, p.id)
		return
	}
	if !silent || !r.waited(p.id) || !r.continues() || r.m.change != nil && !inSync(&r.m.change.state, p.id) {
		return
	}
	if len(r.hard.State.InSync) > 1 && inSync(&r.hard.State, p.id) {
		st := without(r.shrinking(), p.id)
		st.Forced = true
		// A change that was asked for before, and is not in force yet, goes on in this one.
		out := names(dropped(&r.hard.State, &st))
		r.warn("on_degraded = continue: going on without a server; it must not be promoted now", "server", out, "reason", p.reason)
		r.propose(st, 0, true)
		if p.session != 0 {
			// What is under way since before over its link, which may come when the network
			// lets it, does not bring it back: it may have promised since.
			p.out = r.now
		}
	}
}
