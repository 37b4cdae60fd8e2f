package replica

import (
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// mayCreate makes the volume when every member is there and says that it has
// never seen it and that its image is empty (rule 1).
func (r *Replica) mayCreate() {
	if !r.blank() || r.role != wire.RoleSlave || r.cfg.First != r.cfg.Self || r.forgot != "" ||
		!r.hard.Promised.IsZero() && r.hard.Promised.Server != r.cfg.Self {
		return
	}
	for _, p := range r.peers {
		if p.greeting == nil && mutated("create without all members") {
			continue
		}
		if g := p.greeting; g == nil || !g.UUID.IsZero() || g.Forgot || g.Size != r.cfg.Create.Size {
			return
		}
	}
	r.candidate(&candidate{kind: creating, base: r.unborn()})
}

// unborn is the state before the first.
func (r *Replica) unborn() wire.State {
	base := r.cfg.Create
	base.Number, base.Epoch, base.InSync = 0, record.Epoch{}, nil
	return base
}

// initialize makes the volume with this server alone, from what its image holds:
// the other way of rule 1. The other members come in by a resync, which compares
// their whole images.
func (r *Replica) initialize(ev Init) {
	switch {
	case !r.blank():
		r.refuse(ev.ID, "the volume exists here, in epoch %v", r.hard.State.Epoch)
		return
	case r.role != wire.RoleSlave:
		r.refuse(ev.ID, "the volume is just being created")
		return
	}
	for _, p := range r.peers {
		if g := p.greeting; g != nil && !g.UUID.IsZero() {
			r.refuse(ev.ID, "the volume exists on server %v, in epoch %v; this server joins it by itself", p.id, g.State.Epoch)
			return
		}
	}
	r.forgot, r.hard.Forgot = "", ""
	r.candidate(&candidate{kind: creating, alone: true, base: r.unborn(), command: ev.ID})
}

// createSet is every member, blank, or nil while one is missing; with Init it is
// this server alone.
func (r *Replica) createSet() []wire.Member {
	set := []wire.Member{{ID: r.cfg.Self, Incarnation: r.cfg.Incarnation}}
	if r.c.alone {
		return set
	}
	for _, p := range r.peers {
		g := r.c.pledge(p.id)
		if g == nil && mutated("create without all members") {
			continue
		}
		if g == nil || !g.UUID.IsZero() || g.Forgot || p.session == 0 {
			return nil
		}
		set = append(set, wire.Member{ID: p.id, Incarnation: g.Incarnation})
	}
	sortMembers(set)
	return set
}
