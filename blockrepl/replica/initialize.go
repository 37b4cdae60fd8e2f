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
		if g := p.greeting; g == nil || !g.UUID.IsZero() || g.Forgot || r.differs(p.id, g.Servers, g.Size) != "" {
			return // uncreated says why
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

// initStart keeps everyone from creating the volume while the operator's init fills
// this server's image: it counts as one with content of which nobody knows.
func (r *Replica) initStart(ev InitStart) {
	if !r.mayInit(ev.ID) {
		return
	}
	if !mutated("create while an init fills an image") {
		r.forgot, r.unlike = "init gives the image its content, or was interrupted while it did", false
	}
	r.hard.Forgot = r.forgot
	r.filling = !mutated("join while an init fills an image")
	r.saveHard(func() {
		for _, p := range r.peers {
			r.send(p, r.greeting())
		}
		r.result(Result{ID: ev.ID})
	})
}

// mayInit reports whether the volume may be created by command here, or refuses.
func (r *Replica) mayInit(command uint64) bool {
	switch by := r.hard.Promised.Server; {
	case !r.blank():
		r.refuse(command, "the volume exists here, in epoch %v", r.hard.State.Epoch)
		return false
	case r.role != wire.RoleSlave:
		r.refuse(command, "the volume is just being created")
		return false
	case !by.IsZero() && by != r.cfg.Self && r.now < r.promisedAt.Add(2*r.cfg.PeerTimeout):
		r.refuse(command, "server %v was just given a promise to create the volume; look whether it did, and try again", by)
		return false
	case !r.elsewhere.IsZero():
		r.refuseCreated(command, r.elsewhere.Server, r.elsewhere)
		return false
	}
	for _, p := range r.peers {
		if g := p.greeting; g != nil && !g.UUID.IsZero() {
			r.refuseCreated(command, p.id, g.State.Epoch)
			return false
		}
	}
	return true
}

func (r *Replica) refuseCreated(command uint64, by record.ServerID, e record.Epoch) {
	r.refuse(command, "the volume exists on server %v, in epoch %v; this server joins it by itself", by, e)
}

// notWhileFilling refuses to follow an epoch while an init writes to this image: the
// resync that would begin writes to the same bytes. No greeting goes with it, or each
// would call forth the next Join at once. The volume that this server hears of so is
// remembered: when the init ends its master may have no link here.
func (r *Replica) notWhileFilling(p *peer, j *wire.Join) bool {
	if !r.filling {
		return false
	}
	r.elsewhere = j.Epoch
	r.send(p, &wire.Joined{Epoch: j.Epoch, Reason: "an init is preparing its image", Last: r.last})
	return true
}

// initEnd lets the volume of another server be joined, which looks into it at once.
func (r *Replica) initEnd() {
	if !r.filling {
		return
	}
	r.filling = false
	for _, p := range r.peers {
		r.send(p, r.greeting())
	}
}

// late reports whether a creation took so long that promises which it counts on may
// have been taken back: whoever gave one waits for twice this time before it lets an
// init begin. It is tried anew. Where that server's peer_timeout is less than half of
// ours, only its greeting tells that an init has begun (createSet); if that is lost, the
// volume begins with a server that does not believe its own image, and waits for it.
func (c *candidate) late(now Time) bool { return c.kind == creating && !c.alone && now >= c.until }

// initialize makes the volume with this server alone, from what its image holds:
// the other way of rule 1. The other members come in by a resync, which compares
// their whole images.
func (r *Replica) initialize(ev Init) {
	if !r.mayInit(ev.ID) {
		r.initEnd()
		return
	}
	r.filling = false
	if r.forgot == "" { // without InitStart: nobody else may create it from now on either
		r.forgot = "init creates the volume"
	}
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
		if p.greeting == nil || p.greeting.Forgot {
			return nil // an init has begun there since
		}
		set = append(set, wire.Member{ID: p.id, Incarnation: g.Incarnation})
	}
	sortMembers(set)
	return set
}
