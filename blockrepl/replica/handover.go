package replica

import (
	"fmt"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: a promotion whose old master answers, and Stop. Does: lets the old master
// finish what it has numbered, and step down. Goes to: stand, at the new one.

// askHandover asks the old master to step down.
func (r *Replica) askHandover(base wire.State) {
	r.g.handing = true
	r.g.until = r.now.Add(3 * r.cfg.PeerTimeout)
	r.g.epoch = base.Epoch
	r.wake(r.g.until)
	r.send(r.peer(base.Master), &wire.Handover{Epoch: base.Epoch})
}

// onHandover begins to step down: no more numbers; when everything numbered is
// committed the other may go on.
func (r *Replica) onHandover(p *peer, m *wire.Handover) {
	no := func(format string, args ...any) {
		r.send(p, &wire.HandoverReady{Epoch: m.Epoch, Reason: fmt.Sprintf(format, args...)})
	}
	switch {
	case r.role != wire.RoleMaster || m.Epoch != r.epoch():
		no("this server is not the master of epoch %v", m.Epoch)
	case !r.m.serving:
		no("the epoch %v has not begun to serve", m.Epoch)
	case r.m.leaving != nil:
		no("it hands over to %v already", r.m.leaving.to)
	case !inSync(&r.hard.State, p.id):
		no("%v is not in the in-sync set (%v)", p.id, names(ids(r.hard.State.InSync)))
	default:
		r.note("handing over", "to", p.id.String(), "epoch", m.Epoch.String(), "seq", uint64(r.last.Seq))
		r.m.leaving = &handover{to: p.id, until: r.now.Add(2 * r.cfg.PeerTimeout)}
		r.wake(r.m.leaving.until)
	}
}

// handOver answers when everything is committed.
func (r *Replica) handOver() {
	h := r.m.leaving
	if h == nil || h.ready || r.commit < r.last.Seq || r.m.change != nil {
		return
	}
	p := r.peer(h.to)
	if p == nil || p.session == 0 {
		return
	}
	h.ready = true
	p.told = r.commit
	r.send(p, &wire.Append{Epoch: r.epoch(), Commit: r.commit, Floor: r.floor()})
	r.send(p, &wire.HandoverReady{Epoch: r.epoch(), OK: true, Last: r.last, State: r.hard.State})
}

// onHandoverReady goes on with the promotion.
func (r *Replica) onHandoverReady(p *peer, m *wire.HandoverReady) {
	if !r.g.open || !r.g.handing || m.Epoch != r.g.epoch {
		return
	}
	if !m.OK {
		r.endSurvey(fmt.Errorf("%w: the master %v does not hand over: %s; see its status; %s", ErrRefused, p.id, m.Reason, r.insteadOfHandover()))
		return
	}
	base := r.hard.State
	if newer(&m.State, &base) {
		base = m.State
	}
	r.stand(base, false)
}

// notHandedOver: the old master answers and has not stepped down in time. Its disk
// hangs, or somebody's whom it waits for.
//
// By the operator's word that it is dead it counts then as one that does not answer, and
// no more than that: a majority must promise, which fences it, and the lease that was
// granted to it is waited for. That word alone is not believed of one that answers.
func (r *Replica) notHandedOver() {
	h, rep := r.hear(), r.g.report
	base := &h.base
	if r.g.ask.OldMasterDead && base.Epoch == r.g.epoch && base.OnDegraded == wire.Suspend && len(base.Members) > 2 && inSync(base, r.cfg.Self) {
		rep.Graceful, rep.Reason = false, fmt.Sprintf("the master %v answers, but did not hand over", base.Master)
		r.warn("the master answers, but did not hand over; it is taken for silent by the operator's word", "master", base.Master.String(), "epoch", r.g.epoch.String())
		r.g.handing = false
		r.stand(*base, false)
		return
	}
	r.endSurvey(fmt.Errorf("%w: the master %v answers, but did not hand over within %v: its disk hangs, or that of a server which its status names; %s",
		ErrTimeout, r.g.epoch.Server, 3*r.cfg.PeerTimeout, r.insteadOfHandover()))
}

// insteadOfHandover is what to do about a master that answers and does not hand over.
func (r *Replica) insteadOfHandover() string {
	return fmt.Sprintf("if it is the master, stop it or cut it off from the other servers and the clients, then: blockrepl promote %s --old-master-dead", r.cfg.Create.Name)
}

// onTakeOver is asked by a master that stops: the operator's command counts as given.
func (r *Replica) onTakeOver(p *peer, m *wire.TakeOver) {
	if r.role != wire.RoleSlave || !r.s.joined || r.s.master != p.id || m.Epoch != r.hard.Following || r.g.open {
		return
	}
	r.promote(Promote{})
}

// stop prepares an orderly end: with Handover a master asks a live in-sync slave
// to take over, and is done when it follows.
func (r *Replica) stop(ev Stop) {
	if r.role == wire.RoleMaster && r.m.serving && ev.Handover {
		for _, p := range r.peers {
			if p.joined && p.state == Live && inSync(&r.hard.State, p.id) {
				r.stopID, r.stopTo = ev.ID, p.id
				r.send(p, &wire.TakeOver{Epoch: r.epoch()})
				return
			}
		}
	}
	r.vow(ev.ID)
}

// vow answers a Stop. A slave first makes durable that it will not be promoted
// behind the back of the master that it follows now: then the shell may say so in
// its last words, and the master's reads need not wait for its lease.
func (r *Replica) vow(command uint64) {
	if r.role != wire.RoleSlave || !r.s.joined || !inSync(&r.hard.State, r.cfg.Self) || r.vowing != 0 {
		r.result(Result{ID: command})
		return
	}
	epoch := r.hard.Following
	r.hard.Vow, r.vowing = epoch, command
	r.saveHard(func() {
		if r.hard.Vow == epoch {
			r.vowed = epoch
		}
		r.result(Result{ID: r.vowing})
		r.vowing = 0
	})
}

// Vow is for the last words of a server that stops in order: the epoch under whose
// master it has vowed not to be promoted, zero when it has not.
func (r *Replica) Vow() record.Epoch { return r.vowed }
