package replica

import (
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Reads see every write that completed anywhere before they began (promise 4).
// The master reads at once while every slave that is waited for has lately
// promised not to be promoted; a slave asks the master for its commit number,
// one question for all reads that wait, and reads when it has applied as much.

// lease is what this server, as a slave, has granted to its master.
type lease struct {
	until Time // not promoted before, unless the operator says that the master is dead
	// granting is how long one lasts that is granted now: this server's PeerTimeout, 0
	// before it is durable in Hard.Lease.
	granting time.Duration
}

// noteLease brings Hard.Lease up to date. peer_timeout may have been changed since the
// last run, and a shorter one binds nobody who trusts what was granted before.
func (r *Replica) noteLease() {
	if r.hard.Lease < r.cfg.PeerTimeout || r.now >= r.born.Add(r.hard.Lease) {
		r.hard.Lease = r.cfg.PeerTimeout
	}
}

// rounds are the read rounds of a slave, and the reads that wait on any role.
type rounds struct {
	id      uint64   // of the newest round
	asked   []uint64 // reads of the round that was sent
	sentAt  Time
	next    []uint64 // reads that wait for the next round
	granted []grant  // ascending by commit: may read when it is applied
}

type grant struct {
	commit record.Seq
	reads  []uint64
}

// read takes in a read that found no fast way.
func (r *Replica) read(id uint64) {
	r.reads.next = append(r.reads.next, id)
	r.askRound()
}

// lost makes the reads of an unanswered round wait for another master.
func (q *rounds) lost() {
	q.next = append(q.asked, q.next...)
	q.asked = nil
	q.id++
}

// anew makes also those reads ask again that wait for a number to be applied: it may
// be given up by whoever is master next, and would hold up all that come after.
func (q *rounds) anew() {
	for _, g := range q.granted {
		q.next = append(q.next, g.reads...)
	}
	q.granted = nil
	q.lost()
}

// again asks once more when the master's answer does not come.
func (q *rounds) again(r *Replica) {
	if len(q.asked) > 0 && r.now.Sub(q.sentAt) >= roundAgain {
		q.lost()
	}
	r.askRound()
}

// askRound begins a round, or lets the reads go on the master.
func (r *Replica) askRound() {
	q := &r.reads
	if len(q.next) == 0 {
		return
	}
	if mutated("read on a slave without asking") && r.role == wire.RoleSlave {
		r.out.Reads = append(r.out.Reads, q.next...)
		q.next = nil
		return
	}
	if r.role == wire.RoleMaster {
		// A write may have completed at a slave that applied it before this server.
		if r.now < r.Lease() {
			q.granted = append(q.granted, grant{r.commit, q.next})
			q.next = nil
			r.readsApplied()
		}
		return
	}
	p := r.peer(r.s.master)
	if r.role != wire.RoleSlave || !r.s.joined || p == nil || p.session == 0 || len(q.asked) > 0 {
		return
	}
	q.id++
	q.asked, q.next, q.sentAt = q.next, nil, r.now
	r.wake(r.now.Add(roundAgain))
	r.send(p, &wire.ReadIndex{Epoch: r.hard.Following, ID: q.id})
}

// onReadIndex answers a slave's round, under the lease.
func (r *Replica) onReadIndex(p *peer, m *wire.ReadIndex) {
	if r.role != wire.RoleMaster || !p.joined || m.Epoch != r.epoch() {
		return
	}
	p.wants = true
	for i := range r.m.asks {
		if r.m.asks[i].peer == p.id {
			r.m.asks[i] = ask{p.id, p.session, m.ID}
			r.serveAsks()
			return
		}
	}
	r.m.asks = append(r.m.asks, ask{p.id, p.session, m.ID})
	r.serveAsks()
}

// serveAsks answers what waits for the master's lease.
func (r *Replica) serveAsks() {
	if r.now >= r.Lease() {
		return
	}
	for _, a := range r.m.asks {
		if p := r.peer(a.peer); p != nil && p.session == a.session && p.joined {
			r.send(p, &wire.ReadIndexOK{Epoch: r.epoch(), ID: a.id, Commit: r.commit})
		}
	}
	r.m.asks = r.m.asks[:0]
	r.askRound()
}

// onReadIndexOK lets a round's reads go once its commit number is applied.
func (r *Replica) onReadIndexOK(p *peer, m *wire.ReadIndexOK) {
	q := &r.reads
	if r.role != wire.RoleSlave || !r.s.joined || p.id != r.s.master || m.Epoch != r.hard.Following || m.ID != q.id || len(q.asked) == 0 {
		return
	}
	r.heardCommit(m.Commit)
	q.granted = append(q.granted, grant{m.Commit, q.asked})
	q.asked = nil
	r.readsApplied()
	r.askRound()
}

// readsApplied lets the reads go that waited for a number to be applied.
func (r *Replica) readsApplied() {
	q := &r.reads
	for len(q.granted) > 0 && q.granted[0].commit <= r.applied && r.hard.Resync == nil {
		r.out.Reads = append(r.out.Reads, q.granted[0].reads...)
		q.granted = q.granted[1:]
	}
}

// onHeartbeatAck renews a slave's lease, counted from when the master asked. It lasts as
// long as the slave says, whose peer_timeout may be another one while it is changed.
func (r *Replica) onHeartbeatAck(p *peer, m *wire.HeartbeatAck) {
	if r.role != wire.RoleMaster || !p.joined || m.Epoch != r.epoch() || m.Incarnation != p.incarnation || !m.OK {
		return
	}
	if Time(m.SentAt) <= r.now && Time(m.SentAt) >= r.m.leaseFrom {
		p.granted = min(max(0, time.Duration(m.Lease)), r.cfg.PeerTimeout)
		if mutated("believe that a lease lasts as long as ours") {
			p.granted = r.cfg.PeerTimeout
		}
		p.lease = max(p.lease, Time(m.SentAt).Add(p.granted-p.granted/leaseMargin))
	}
	if Time(m.SentAt) <= r.now {
		p.answered = max(p.answered, Time(m.SentAt))
	}
	r.onAck(p, &m.Ack)
}

// beatEvery is how long the master waits between heartbeats: a part of the shortest
// lease that it is granted, so that none runs out meanwhile.
func (r *Replica) beatEvery() time.Duration {
	least := r.cfg.PeerTimeout
	for _, p := range r.peers {
		if p.granted > 0 && r.waited(p.id) {
			least = min(least, p.granted)
		}
	}
	return max(least/4, min(beatLeast, r.cfg.PeerTimeout/4))
}

// Lease is until when the master may read its image without asking anyone; zero
// when it may not. Whoever reads compares it with the clock after the read.
func (r *Replica) Lease() Time {
	if r.role != wire.RoleMaster || !r.m.serving || r.m.leaving != nil {
		return 0
	}
	until := r.now.Add(time.Hour)
	if mutated("read without a lease") {
		return until
	}
	for _, p := range r.peers {
		if r.waited(p.id) && !p.vowed {
			until = min(until, p.lease)
		}
	}
	return until
}

// Alone reports whether no other server could answer a read: this master is the
// whole in-sync set, and nobody is being admitted to it.
func (r *Replica) Alone() bool {
	if r.role != wire.RoleMaster || !r.m.serving {
		return false
	}
	for _, p := range r.peers {
		if r.waited(p.id) {
			return false
		}
	}
	return true
}

// StaleReadable reports whether the image is the state after some prefix, so
// that an export with stale=ok may be read.
func (r *Replica) StaleReadable() bool {
	return !r.blank() && r.role != wire.RoleFailed && r.hard.Resync == nil && (!r.redo.pending || mutated("skip redo"))
}

// redo is the stretch after a restart in which the image may be between two
// states: it holds records that will be applied again (rule 7).
type redo struct {
	pending bool
	held    record.Seq // the journal's end at the start of this run
	to      record.Seq // the first commit number heard from the master of this epoch
}

func (d *redo) heard(r *Replica) {
	if d.pending && d.to == 0 {
		d.to = r.commit
		d.applied(r)
	}
}

func (d *redo) applied(r *Replica) {
	if r.role == wire.RoleMaster && r.m.serving {
		d.pending = false
	}
	if d.pending && d.to != 0 && r.applied >= d.to {
		d.pending = false
	}
}
