package replica

import (
	"fmt"
	"slices"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Changes of the in-sync set through the operator's authority: every server
// keeps the last state it learned, durable. From proposal until the outcome is
// known a write waits for the union of the sets (rule 6).

// change is a proposed state whose outcome is not known yet.
type change struct {
	state   wire.State
	noted   []record.ServerID // it is durable there
	grow    wire.Member       // zero: a shrink
	command uint64            // the Forget to answer
	settled bool              // its outcome is known; being made durable here
	note    string            // for the operator, when it is in force
}

// waited reports whether writes wait for id.
func (r *Replica) waited(id record.ServerID) bool {
	if mutated("grow without the union") {
		return inSync(&r.hard.State, id)
	}
	if inSync(&r.hard.State, id) || r.m != nil && contains(r.m.union, id) {
		return true
	}
	p := r.peer(id)
	return p != nil && p.admitting
}

// shrinking is the state that a further shrink builds on: of several servers that
// went silent together each would bring back the one before it otherwise.
func (r *Replica) shrinking() wire.State {
	if c := r.m.change; c != nil && c.grow.ID.IsZero() {
		return c.state
	}
	return r.hard.State
}

// propose orders a new state. A shrink replaces a pending change (its number is
// higher, so it wins wherever the other was noted); the union stays.
func (r *Replica) propose(st wire.State, command uint64, shrink bool) {
	if c := r.m.change; c != nil {
		st.Number = max(st.Number, c.state.Number+1)
		if c.command != 0 {
			why := "replaced by a newer change; look at the in-sync set"
			if out := dropped(&r.hard.State, &c.state); len(out) > 0 && !inSync(&st, out[0]) {
				why = "replaced by a newer change, which leaves out the same; " + warnPromoted(out...)
			}
			r.result(Result{ID: c.command, Err: fmt.Errorf("%w: %s", ErrRefused, why)})
		}
	}
	c := &change{state: st, command: command}
	for _, m := range append(slices.Clone(r.hard.State.InSync), st.InSync...) {
		if !contains(r.m.union, m.ID) {
			r.m.union = append(r.m.union, m.ID)
		}
	}
	if i := slices.IndexFunc(st.InSync, func(m wire.Member) bool { return !inSync(&r.hard.State, m.ID) }); i >= 0 && !shrink {
		c.grow = st.InSync[i]
	}
	r.m.change = c
	hard := r.hardCopy()
	hard.Proposed = &st
	r.hard.Proposed = &st
	r.store(Store{Hard: hard}, func() {
		r.noted(st.Epoch, st.Number, r.cfg.Self)
		if r.m != nil && r.m.change == c && !c.grow.ID.IsZero() {
			r.tellChange(c)
		}
	})
	if c.grow.ID.IsZero() {
		r.tellChange(c)
	}
}

// tellChange lets the others note a proposal. A grow is durable here first: whoever
// notes it may help to promote the server that it admits, and this one must not
// begin alone after a restart because its own disk knows only the smaller set.
func (r *Replica) tellChange(c *change) {
	for _, p := range r.peers {
		if p.id != c.grow.ID && (p.joined || inSync(&c.state, p.id)) {
			r.send(p, &wire.StateUpdate{State: c.state})
		}
	}
}

// tellable reports whether others may know of the pending change already.
func (r *Replica) tellable(c *change) bool {
	return c.grow.ID.IsZero() || contains(c.noted, r.cfg.Self)
}

// onStateUpdate notes a change decided by the epoch's master.
func (r *Replica) onStateUpdate(p *peer, u *wire.StateUpdate) {
	st := u.State
	if st.Epoch != r.hard.Following || st.Master != p.id || st.Epoch.Less(r.hard.Promised) || r.role != wire.RoleSlave {
		return
	}
	if newer(&st, &r.hard.State) {
		old := r.hard.State
		r.hard.State = st
		r.setPeers(st.Members)
		r.noteState(&old, &st)
		r.unresolved()
	}
	session := p.session
	r.saveHard(func() {
		if p.session == session {
			r.send(p, &wire.StateAck{Epoch: st.Epoch, Number: st.Number})
		}
	})
}

func (r *Replica) onStateAck(p *peer, a *wire.StateAck) {
	if p.joined {
		r.noted(a.Epoch, a.Number, p.id)
	}
}

// noted counts a server where the pending change is durable.
func (r *Replica) noted(e record.Epoch, number uint64, id record.ServerID) {
	if r.m == nil || r.m.change == nil {
		return
	}
	c := r.m.change
	if e == c.state.Epoch && number >= c.state.Number && !contains(c.noted, id) {
		c.noted = append(c.noted, id)
	}
}

// settleChange puts the pending change into force once its outcome is durable at
// the authority: on every server of the new set but the one that is admitted
// (it must not believe itself in before all others know), and for a shrink that
// the operator did not force on a majority of the members.
func (r *Replica) settleChange() {
	c := r.m.change
	if c == nil {
		return
	}
	for _, m := range c.state.InSync {
		if m.ID != c.grow.ID && !contains(c.noted, m.ID) && !mutated("change the set before others note it") {
			return
		}
	}
	if c.grow.ID.IsZero() && !c.state.Forced && !mutated("change the set before others note it") && len(c.noted) < majority(len(c.state.Members)) {
		return
	}
	if c.settled {
		return
	}
	// Durable here before the first commit that relies on it: after a restart
	// nobody may take this server's state for the older one.
	c.settled = true
	old := r.hard.State
	r.hard.State, r.hard.Proposed = c.state, nil
	r.saveHard(func() {
		if r.m != nil && r.m.change == c {
			r.noteState(&old, &c.state)
			r.inForce(c)
		}
	})
}

// noteState tells people what became of the volume's state.
func (r *Replica) noteState(old, st *wire.State) {
	if old.OnDegraded != st.OnDegraded || old.Keep != st.Keep {
		r.note("options changed", "epoch", st.Epoch.String(), "number", st.Number, "on_degraded", st.OnDegraded.String(), "keep", st.Keep)
	}
	if !slices.Equal(old.InSync, st.InSync) {
		r.note("in-sync set changed", "epoch", st.Epoch.String(), "number", st.Number, "in_sync", names(ids(st.InSync)))
	}
}

// inForce lets writes wait for the new set only.
func (r *Replica) inForce(c *change) {
	r.m.change, r.m.union = nil, nil
	for _, p := range r.peers {
		p.admitting = false
		if p.joined {
			r.send(p, &wire.StateUpdate{State: c.state})
		}
	}
	if r.m.serving {
		rec := record.NewState(record.KindMembers, encodeState(&c.state))
		rec.Origin = r.cfg.Self
		r.number(rec)
	}
	r.result(Result{ID: c.command, Note: c.note})
}

// admit takes caught-up slaves back. A slave is first waited for, and proposed
// at a moment when it holds everything committed: from then on it holds every
// later commit too, so it is a true member before anyone calls it one.
func (r *Replica) admit() {
	if !r.m.serving || r.m.change != nil || r.m.leaving != nil {
		return
	}
	for _, p := range r.peers {
		if !p.joined || p.state != Live || p.resyncing || inSync(&r.hard.State, p.id) {
			continue
		}
		if p.out != 0 && p.answered <= p.out {
			continue // its link may only look alive: it was forgotten, or silent, just now
		}
		if p.durable < p.owes {
			continue
		}
		if !p.admitting {
			p.admitting, p.moved = true, r.now
		}
		if p.durable >= r.commit && p.durable >= r.m.start {
			m := wire.Member{ID: p.id, Incarnation: p.incarnation}
			r.note("slave has everything; admitting it to the in-sync set", "peer", p.id.String(), "seq", uint64(p.durable), "incarnation", p.incarnation.String())
			st := with(r.hard.State, m)
			st.Forced = st.Forced && len(st.InSync) < majority(len(st.Members))
			r.propose(st, 0, false)
			return
		}
	}
}

// letGo ends the waiting for a slave that was about to be admitted and acknowledges
// nothing: nobody has called it in sync, so that no authority is needed. Once the grow
// is proposed, it is.
func (r *Replica) letGo(p *peer) {
	c := r.m.change
	if !p.admitting || c != nil && c.grow.ID == p.id || p.durable >= r.last.Seq || r.now.Sub(p.moved) <= r.cfg.PeerTimeout {
		return
	}
	p.admitting, p.owes = false, r.last.Seq
	r.setState(p, CatchUp, fmt.Sprintf("it has acknowledged nothing above %d for %v", p.durable, r.cfg.PeerTimeout))
}

// takeGrow takes a grow, which the last run proposed and whose outcome it did not
// learn, for in force: since it was proposed here every commit has waited for the
// server that it admits, and others may call that one in sync already. Were it
// promoted, this server would stand for a past that went on without it.
func (h *Hard) takeGrow() {
	p := h.Proposed
	if p != nil && p.Epoch == h.State.Epoch && newer(p, &h.State) && len(dropped(&h.State, p)) == 0 {
		h.State, h.Proposed = *p, nil
	}
}

// forget is the operator's shrink.
func (r *Replica) forget(ev Forget) {
	if r.role == wire.RoleCandidate && r.c.kind == restarting && ev.Server != r.cfg.Self &&
		(inSync(&r.c.base, ev.Server) || contains(r.rivals(), ev.Server)) {
		// One whose past is not believed cannot be promoted anyway.
		unbelieved := r.c.pledge(ev.Server) != nil && !r.counts(ev.Server)
		if !ev.Force && !unbelieved {
			r.refuse(ev.ID, "no epoch is held yet, so no majority can note it; add --force if %v will not be promoted", ev.Server)
			return
		}
		r.c.exclude = append(r.c.exclude, ev.Server)
		r.c.forced = r.c.forced || ev.Force
		r.result(Result{ID: ev.ID, Note: warnPromoted(ev.Server)})
		return
	}
	switch {
	case r.role != wire.RoleMaster:
		r.refuseElsewhere(ev.ID)
	case ev.Server == r.cfg.Self:
		r.refuse(ev.ID, "the master cannot forget itself; promote another server first")
	case !r.waited(ev.Server):
		r.refuse(ev.ID, "%v is not in the in-sync set (%v)", ev.Server, names(ids(r.hard.State.InSync)))
	case !inSync(&r.hard.State, ev.Server):
		r.refuse(ev.ID, "%v is just being admitted; try again", ev.Server)
	default:
		st := without(r.shrinking(), ev.Server)
		reach, force := r.forgetting(ev.Server)
		if force && !ev.Force {
			r.refuse(ev.ID, "only %d of %d members can note it, so %v could not know that it is out; add --force if it will not be promoted", reach, len(st.Members), ev.Server)
			return
		}
		// Also where the set was forced before: with a majority there, one has to note it.
		st.Forced = reach < majority(len(st.Members))
		r.propose(st, ev.ID, true)
		if p := r.peer(ev.Server); p != nil && p.session != 0 {
			p.out, p.owes = r.now, r.last.Seq
		}
		r.m.change.note = warnPromoted(ev.Server)
		if st.Forced {
			// No majority knows: whoever is out of the set could be promoted by the others.
			r.m.change.note = warnPromoted(outOf(&st)...)
		}
	}
}

// forgetting is how many members can note that id is out of the in-sync set, and
// whether the operator has to force that.
func (r *Replica) forgetting(id record.ServerID) (reach int, force bool) {
	reach = 1
	for _, p := range r.peers {
		if p.id != id && p.joined && p.state != Down {
			reach++
		}
	}
	if p := r.peer(id); p != nil && p.greeting != nil && !p.joined && (p.greeting.Resyncing || r.lostPast(p, p.greeting) != "") {
		// One whose past is not believed, or whose image is not whole, cannot be promoted
		// anyway. What one that has joined said before that tells nothing: a resync may
		// have mended it.
		return reach, false
	}
	return reach, reach < majority(len(r.hard.State.Members))
}

// warnPromoted is what the operator is told of servers that lack, or are going to
// lack, what is acknowledged; "" of none.
func warnPromoted(list ...record.ServerID) string {
	if len(list) == 0 {
		return ""
	}
	return fmt.Sprintf("%s must not be promoted from now on until in sync again", names(list))
}

// refuseElsewhere refuses what only a master can do.
func (r *Replica) refuseElsewhere(command uint64) {
	if m := r.hard.State.Master; !m.IsZero() {
		r.refuse(command, "this server is not the master; ask %v, which is, with --admin and its address", m)
		return
	}
	r.refuse(command, "this server is not the master and knows none")
}

func (r *Replica) refuse(command uint64, format string, args ...any) {
	r.result(Result{ID: command, Err: fmt.Errorf("%w: "+format, append([]any{ErrRefused}, args...)...)})
}

// commitMore moves the commit number: durable here and on every server that is
// waited for, and covering the epoch record.
func (r *Replica) commitMore() {
	to := r.durable
	for _, p := range r.peers {
		if !r.waited(p.id) || mutated("commit without one in-sync server") && p == r.peers[len(r.peers)-1] {
			continue
		}
		if p.ackEpoch != r.epoch() {
			return
		}
		to = min(to, p.durable)
	}
	if to < r.m.start && !mutated("commit before the epoch record") || to <= r.commit {
		return
	}
	r.commit = to
	r.complete()
}
