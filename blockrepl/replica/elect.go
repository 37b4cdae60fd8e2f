package replica

import (
	"fmt"
	"slices"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: promises. Does: decides whether they are enough, and with which in-sync
// set the epoch begins. Goes to: master.go (beginEpoch).

// tryElect begins the epoch when enough promises are there.
func (r *Replica) tryElect() {
	c := r.c
	if !c.own || c.late(r.now) {
		return
	}
	var set []wire.Member
	switch c.kind {
	case creating:
		set = r.createSet()
	case restarting:
		set = r.restartSet()
	case promoting:
		set = r.promoteSet()
	}
	if r.c != c {
		return
	}
	if set == nil {
		if c.kind == promoting && r.now >= c.give {
			r.giveUp()
		}
		return
	}
	if r.adopting(set) {
		return
	}
	base := c.base
	st := base
	st.Number++
	st.InSync = set
	st.Forced = len(set) < majority(len(st.Members)) && len(st.Members) > 1
	if c.resolve {
		st.Overruled = c.epoch
	}
	var out []record.ServerID
	if c.kind == promoting {
		out = leftOut(&base, &st, c.report)
	}
	r.hard.Proposed = nil
	if c.alone {
		r.believe() // what the image holds is the volume
	}
	r.beginEpoch(c.epoch, st, r.baseNumber(), c.loss)
	r.promoted(c, out)
}

// leftOut are the servers that a promotion begins its epoch without although the state
// before, or the report that the operator saw, has them in sync: they lack what it is
// going to acknowledge. Where no majority knows it, these are all that are out of sync,
// as with forget.
func leftOut(base, st *wire.State, rep *PromoteReport) []record.ServerID {
	was := func(id record.ServerID) bool {
		return inSync(base, id) || rep != nil && slices.ContainsFunc(rep.Servers, func(l PromoteLine) bool { return l.Server == id && l.InSync })
	}
	return slices.DeleteFunc(outOf(st), func(id record.ServerID) bool { return !st.Forced && !was(id) })
}

// restartSet is the whole in-sync set but what the operator excluded, or nil
// while one is missing: a restart gives the master no right to shrink the set.
func (r *Replica) restartSet() []wire.Member {
	c := r.c
	alone := len(c.base.InSync) == 1
	if alone && r.now < c.wait && !r.allGreeted() {
		r.wake(c.wait)
		return nil
	}
	var set []wire.Member
	pledged := 1
	for _, p := range r.peers {
		if g := c.pledge(p.id); g != nil && r.knows(&c.base, g, p.id) {
			pledged++
		}
	}
	for _, m := range c.base.InSync {
		switch {
		case m.ID == r.cfg.Self, r.counts(m.ID), mutated("restart without promises"):
			set = append(set, m)
		case !contains(c.exclude, m.ID):
			return nil
		}
	}
	if len(r.rivals()) > 0 {
		return nil
	}
	// Where everyone promised there is nobody left to ask, even if some have
	// forgotten. One that was excluded because it has forgotten may have been master
	// since: the others are asked all the same.
	all := len(c.pledges) == len(r.peers)
	if pledged < majority(len(c.base.Members)) && !all && !mutated("restart without promises") && !c.base.Forced && !c.forced {
		return nil
	}
	return set
}

func (r *Replica) allGreeted() bool {
	for _, p := range r.peers {
		if p.greeting == nil {
			return false
		}
	}
	return true
}

// promoteSet is those of the in-sync set that promised, once every one that has
// a link did, or the time is over.
func (r *Replica) promoteSet() []wire.Member {
	c := r.c
	if !inSync(&c.base, r.cfg.Self) && !c.loss && !c.resolve && !mutated("promote a server that is not in sync") {
		r.stepDown(fmt.Sprintf("state %d of epoch %v excludes this server", c.base.Number, c.base.Epoch))
		return nil
	}
	if c.handover && c.pledge(c.base.Master) == nil && !mutated("hand over without the old master's promise") {
		return nil
	}
	if r.now < c.wait {
		r.wake(c.wait)
		return nil
	}
	set, know := []wire.Member{{ID: r.cfg.Self, Incarnation: r.cfg.Incarnation}}, 1
	for _, p := range r.peers {
		if g := c.pledge(p.id); g != nil && r.knows(&c.base, g, p.id) {
			know++
		}
		if c.pledge(p.id) == nil && p.session != 0 && p.greeting != nil && p.state != Down && r.now < c.until {
			r.wake(c.until)
			return nil
		}
		if r.counts(p.id) && !c.loss {
			m, _ := member(&c.base, p.id)
			set = append(set, m)
		}
	}
	if e := r.rival(); !e.IsZero() && !c.asserted && !c.loss && !c.resolve {
		r.stepDown(fmt.Sprintf("epoch %v was promised to %v, of which nobody who answers knows the outcome; needs --old-master-dead", e, e.Server))
		return nil
	}
	// Without a majority that promised, the others could be promoted by the same
	// right and never learn of this epoch.
	if !c.asserted && !(c.handover && mutated("hand over without the old master's promise")) && !c.loss && !c.resolve && know < majority(len(c.base.Members)) && !mutated("promote without a majority") {
		return nil
	}
	sortMembers(set)
	return set
}

// counts reports whether a server's promise may stand for the journal that the
// state says it has.
func (r *Replica) counts(id record.ServerID) bool {
	g := r.c.pledge(id)
	if g == nil || contains(r.c.mute, id) {
		return false
	}
	m, ok := member(&r.c.base, id)
	return ok && (m.Incarnation == g.Incarnation || mutated("believe another incarnation")) && !g.Resyncing && r.amnesia(g, id) == ""
}

// knows reports whether a server that answers would know of every change that it
// noted: one that lost its past has forgotten them, and so has a blank one, unless
// it is blank because the volume has only just begun (base has it in sync as it is).
func (r *Replica) knows(base *wire.State, g *wire.Greeting, id record.ServerID) bool {
	if g.Forgot || r.amnesia(g, id) != "" {
		return false
	}
	m, ok := member(base, id)
	return !g.UUID.IsZero() || ok && m.Incarnation == g.Incarnation
}

// baseNumber is the number of the last state of our newest epoch on the way to
// the base: states of that epoch with a higher number are not our ancestors.
// When the base is of an epoch that never reached our journal, whoever told us
// of it knows on what it was built.
func (r *Replica) baseNumber() uint64 {
	base := &r.c.base
	if len(r.hard.History) == 0 {
		return base.Number
	}
	prev := r.hard.History[len(r.hard.History)-1].Epoch
	if base.Epoch == prev {
		return base.Number
	}
	for _, p := range r.c.pledges {
		for i, h := range p.greeting.History {
			if i > 0 && h.Epoch == base.Epoch && p.greeting.History[i-1].Epoch == prev {
				return h.BaseNumber
			}
		}
	}
	if r.hard.State.Epoch == prev {
		return r.hard.State.Number
	}
	return 0
}

func (r *Replica) giveUp() {
	c := r.c
	var silent []record.ServerID
	for _, m := range c.base.InSync {
		if m.ID != r.cfg.Self && !r.counts(m.ID) {
			silent = append(silent, m.ID)
		}
	}
	r.result(Result{ID: c.command, Err: fmt.Errorf("%w: promote to epoch %v: no promise from %s", ErrTimeout, c.epoch, names(silent))})
	c.command = 0
	r.stepDown("no promises in time")
}
