package replica

import (
	"fmt"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Split brain: two masterships that both went on alone. It is named at the first
// contact, and nothing is merged until the operator chooses a side.

// split notices two masterships that both went on, and then keeps apart from
// the peer until the operator resolves it.
func (r *Replica) split(p *peer, g *wire.Greeting) bool {
	if r.blank() || g.UUID.IsZero() || !splitBrain(r.hard.History, &r.hard.State, g.History, &g.State) {
		if p.split {
			p.split = false
			r.splitBy = r.splitPeer()
			r.note("split brain is resolved", "peer", p.id.String())
		}
		return false
	}
	reason := fmt.Sprintf("split brain: epoch %v there and epoch %v here both went on", g.State.Epoch, r.hard.State.Epoch)
	if !p.split {
		r.warn("split brain: choose a side with: blockrepl resolve "+r.cfg.Create.Name+" --keep SERVER",
			"peer", p.id.String(), "ours", r.hard.State.Epoch.String(), "theirs", g.State.Epoch.String())
	}
	p.split = true
	r.splitBy = r.splitPeer()
	r.setState(p, Down, reason)
	return true
}

// splitPeer is a server on the other side of a split brain, zero when there is none.
func (r *Replica) splitPeer() record.ServerID {
	for _, p := range r.peers {
		if p.split {
			return p.id
		}
	}
	return record.ServerID{}
}

// unresolved re-reads the split brain mark after our own state changed. As a
// slave, whoever stood on the other side is an ordinary peer again; a master
// joins them.
func (r *Replica) unresolved() {
	if r.splitBy.IsZero() {
		return
	}
	for _, p := range r.peers {
		if !p.split || p.greeting != nil && p.session != 0 && splitBrain(r.hard.History, &r.hard.State, p.greeting.History, &p.greeting.State) {
			continue
		}
		p.split = false
		if r.role == wire.RoleSlave && p.session != 0 && p.greeting != nil {
			r.setState(p, Live, "")
		}
	}
	if r.splitBy = r.splitPeer(); r.splitBy.IsZero() {
		r.note("split brain is resolved", "epoch", r.hard.Following.String())
	}
}

// resolve keeps this server's side of a split brain: a new epoch that overrules
// every older state. The losers' own records are set aside when they join.
func (r *Replica) resolve(ev Resolve) {
	if r.splitBy.IsZero() {
		r.refuse(ev.ID, "there is no split brain here")
		return
	}
	base := r.hard.State
	switch {
	case r.role == wire.RoleCandidate && r.c.command != 0:
		r.refuse(ev.ID, "a promotion is under way")
		return
	case len(r.hard.History) >= HistoryMax:
		r.refuse(ev.ID, "the epoch history is full, with %d masterships since all members were in sync", len(r.hard.History))
		return
	case r.hard.Resync != nil:
		r.refuse(ev.ID, "this server is being resynced; its image is not the state after any number")
		return
	case (!inSync(&base, r.cfg.Self) || r.forgot != "") && !mutated("resolve at any server"):
		// It may lack what its own side acknowledged.
		r.refuse(ev.ID, "this server does not surely hold everything of its side; keep one of %s", names(ids(base.InSync)))
		return
	}
	r.m = nil
	r.splitBy = record.ServerID{}
	for _, p := range r.peers {
		p.split = false
	}
	r.candidate(&candidate{kind: promoting, base: base, command: ev.ID, asserted: true, loss: true, resolve: true})
}
