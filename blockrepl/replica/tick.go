package replica

import "github.com/blockrepl/blockrepl/blockrepl/wire"

// tick looks at the clock on every role.
func (r *Replica) tick() {
	r.meet()
	r.tickSurvey()
	switch r.role {
	case wire.RoleSlave:
		r.tickSlave()
	case wire.RoleMaster:
		r.tickMaster()
	case wire.RoleCandidate:
		r.tickCandidate()
	}
	if r.memDirty > 0 && r.now.Sub(r.memAt) >= r.cfg.PeerTimeout {
		r.memAt = r.now
		r.store(Store{Memory: r.memoryCopy()}, nil)
	}
}

// tickCandidate asks again: a promise may have been lost on its way.
func (r *Replica) tickCandidate() {
	c := r.c
	if c.late(r.now) {
		r.stepDown("the creation took too long")
		return
	}
	if c.retry != 0 && r.now >= c.retry {
		again := *c
		again.pledges, again.own, again.retry = nil, false, 0
		r.candidate(&again)
		return
	}
	if r.now.Sub(c.asked) < r.cfg.PeerTimeout/4 {
		return
	}
	c.asked = r.now
	for _, p := range r.peers {
		if p.greeting != nil && c.pledge(p.id) == nil {
			r.askPromise(p)
		}
	}
}

// woke is called when no event was taken for so long that the process was paused
// itself: a machine was suspended, a guest migrated, somebody sent SIGSTOP. Then
// it was not the peers who were silent, and what they sent meanwhile waits to be
// read; it may be that this mastership is over. A master that judged them first
// would, with on_degraded = continue, go on alone beside its successor.
func (r *Replica) woke() {
	for _, p := range r.peers {
		p.lastHeard = r.now
	}
}
