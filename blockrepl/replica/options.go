package replica

import (
	"fmt"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
)

// Options of a volume that exists are part of its state, so they change as the in-sync
// set does: proposed by the master, in force once every in-sync server and a majority
// of the members have noted them (settleChange).
//
// on_degraded decides who may be promoted without the operator's word. From suspend to
// continue the master shrinks the set by itself only when the change is in force: then
// whoever hears a majority knows that this may have happened. From continue to suspend
// it stops at once, before anyone can have noted it: a candidate that knows of suspend
// already relies on it.

// setOptions begins the change, if it can come into force.
func (r *Replica) setOptions(ev SetOptions) {
	switch {
	case r.role != wire.RoleMaster:
		r.refuseElsewhere(ev.ID)
		return
	case !r.m.serving:
		r.refuse(ev.ID, "epoch %v has not begun to serve yet; it waits for %s", r.epoch(), r.awaited())
		return
	case r.m.leaving != nil:
		r.refuse(ev.ID, "the mastership is being handed over to %v; ask that server", r.m.leaving.to)
		return
	case r.m.change != nil:
		r.refuse(ev.ID, "the in-sync set is just being changed; try again")
		return
	}
	st := r.hard.State
	st.Number++
	if ev.OnDegraded != 0 {
		st.OnDegraded = ev.OnDegraded
	}
	if ev.Keep != 0 {
		st.Keep = ev.Keep
	}
	if st.OnDegraded == r.hard.State.OnDegraded && st.Keep == r.hard.State.Keep {
		r.result(Result{ID: ev.ID, Note: "nothing changes: the volume has these options already"})
		return
	}
	reach := 1
	for _, p := range r.peers {
		switch {
		case p.joined && p.state != Down:
			reach++
		case inSync(&st, p.id):
			r.refuse(ev.ID, "%v is in sync and does not answer: bring it back, or forget it first", p.id)
			return
		}
	}
	if reach < majority(len(st.Members)) && !st.Forced {
		r.refuse(ev.ID, "only %d of %d members can note it", reach, len(st.Members))
		return
	}
	r.propose(st, ev.ID, false)
	r.m.change.note = fmt.Sprintf("on_degraded %v, keep %d bytes", st.OnDegraded, st.Keep)
}

// continues reports whether the operator has allowed that the master goes on alone:
// in the state in force, and in the one that may come into force behind its back.
func (r *Replica) continues() bool {
	c := r.m.change
	return r.hard.State.OnDegraded == wire.Continue && (c == nil || c.state.OnDegraded == wire.Continue)
}
