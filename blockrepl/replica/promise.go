package replica

import (
	"fmt"
	"slices"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: a candidacy. Does: asks every server for its promise, gives one or
// refuses it, learns from both. Goes to: elect.go.

func (r *Replica) askPromise(p *peer) {
	if r.c.alone {
		return // nobody's is needed
	}
	r.send(p, &wire.Prepare{Epoch: r.c.epoch, State: r.c.base, Resolve: r.c.resolve, Loss: r.c.loss})
}

// greetedCandidate asks a server for its promise, unless it knows a mastership
// that began after the one that would be restarted.
func (r *Replica) greetedCandidate(p *peer, g *wire.Greeting) {
	c := r.c
	if c.kind == restarting && c.base.Epoch.Less(g.State.Epoch) && g.State.Master != r.cfg.Self {
		r.stepDown(fmt.Sprintf("server %v knows epoch %v", p.id, g.State.Epoch))
		return
	}
	r.askPromise(p)
}

// onPrepare gives or refuses a promise. Once it is given nothing of an older
// epoch is accepted here; it is durable before it is said.
func (r *Replica) onPrepare(p *peer, q *wire.Prepare) {
	if why := r.refusal(p, q); why != "" {
		r.send(p, &wire.Promise{Epoch: q.Epoch, Reason: why, Greeting: *r.greeting()})
		return
	}
	if r.hard.Promised.Less(q.Epoch) || mutated("promise an older epoch") {
		if r.role != wire.RoleSlave {
			r.stepDown(fmt.Sprintf("server %v takes epoch %v", p.id, q.Epoch))
		}
		if !mutated("accept records after a newer promise") {
			r.leaveMaster()
		}
		r.promiseTo(q.Epoch)
		r.promisedAt = r.now
		r.note("promised", "epoch", q.Epoch.String(), "to", p.id.String())
	}
	session := p.session
	if mutated("promise before it is fsynced") {
		r.send(p, &wire.Promise{Epoch: q.Epoch, OK: true, Greeting: *r.greeting()})
		return
	}
	r.saveHard(func() {
		if p.session == session && (r.hard.Promised == q.Epoch || mutated("promise an older epoch")) {
			r.send(p, &wire.Promise{Epoch: q.Epoch, OK: true, Greeting: *r.greeting()})
		}
	})
}

// promiseTo promises e. A promise to another server that it takes the place of is
// remembered: that one may have begun its epoch with it, or begin it still.
func (r *Replica) promiseTo(e record.Epoch) {
	h := &r.hard
	rivals := slices.DeleteFunc(slices.Clone(h.Rivals), func(x record.Epoch) bool {
		return !h.State.Epoch.Less(x) || x.Server == h.Promised.Server || x.Server == e.Server
	})
	if p := h.Promised; p.Server != e.Server && p.Server != r.cfg.Self && h.State.Epoch.Less(p) && !mutated("forget an earlier promise") {
		rivals = append(rivals, p)
	}
	h.Rivals, h.Promised = rivals, e
}

// rival is an epoch that this server, or one that promised the candidate's, had
// promised to another server which did not: with that promise it may be master. Zero
// when there is none.
func (r *Replica) rival() record.Epoch {
	c := r.c
	open := func(e record.Epoch) bool {
		return c.base.Epoch.Less(e) && e.Server != r.cfg.Self && c.pledge(e.Server) == nil
	}
	for _, p := range c.pledges {
		if i := slices.IndexFunc(p.greeting.Rivals, open); i >= 0 {
			return p.greeting.Rivals[i]
		}
	}
	if i := slices.IndexFunc(r.hard.Rivals, open); i >= 0 {
		return r.hard.Rivals[i]
	}
	return record.Epoch{}
}

// rivals are the servers in sync by the state that is in force here, and left out by a
// newer one that the epoch is to be built on, which may have been promoted meanwhile:
// somebody who promised our epoch had promised theirs before it heard of that state. They
// are to be asked, too, unless the operator said that they will not be promoted.
func (r *Replica) rivals() []record.ServerID {
	c := r.c
	if c.kind != restarting || c.base.Forced || mutated("restart beside a rival") {
		return nil
	}
	of := func(id record.ServerID, list []record.Epoch) bool {
		return slices.ContainsFunc(list, func(e record.Epoch) bool { return e.Server == id && c.base.Epoch.Less(e) })
	}
	var out []record.ServerID
	for _, m := range r.hard.State.InSync {
		if inSync(&c.base, m.ID) || c.pledge(m.ID) != nil || contains(c.exclude, m.ID) {
			continue
		}
		if of(m.ID, r.hard.Rivals) || slices.ContainsFunc(c.pledges, func(p pledge) bool { return of(m.ID, p.greeting.Rivals) }) {
			out = append(out, m.ID)
		}
	}
	return out
}

// refusal says why a promise is not given, or "".
func (r *Replica) refusal(p *peer, q *wire.Prepare) string {
	switch {
	case q.Epoch.Server != p.id:
		return fmt.Sprintf("epoch %v is not %v's to take", q.Epoch, p.id)
	case mutated("promise an older epoch") && q.Epoch.Less(r.hard.Promised):
		return ""
	case q.Epoch.Less(r.hard.Promised):
		return fmt.Sprintf("epoch %v is promised already", r.hard.Promised)
	case q.Epoch.Counter == r.hard.Promised.Counter && q.Epoch != r.hard.Promised:
		return fmt.Sprintf("counter %d is taken by %v", q.Epoch.Counter, r.hard.Promised.Server)
	case r.blank() && q.State.Epoch.IsZero() && r.differs(p.id, creatorFirst(p.id, q.State.Members), q.State.Size) != "":
		return "the configurations differ: " + r.differs(p.id, creatorFirst(p.id, q.State.Members), q.State.Size)
	case r.blank() && q.State.Epoch.IsZero() && r.forgot != "":
		return "its image has content: " + r.forgot
	case !r.blank() && q.State.Epoch.IsZero():
		return fmt.Sprintf("the volume exists here, in epoch %v", r.hard.State.Epoch)
	case !r.blank() && q.State.UUID != r.hard.State.UUID:
		return fmt.Sprintf("the volume of this name here is %v, not %v", r.hard.State.UUID, q.State.UUID)
	case q.Resolve:
		return ""
	case p.split:
		return "split brain: resolve it first"
	case q.State.Epoch.Less(r.hard.State.Epoch) && !q.Loss:
		return fmt.Sprintf("epoch %v has begun since the candidate's %v", r.hard.State.Epoch, q.State.Epoch)
	case newer(&r.hard.State, &q.State) && !inSync(&r.hard.State, p.id) && !q.Loss && !mutated("promote a server that is not in sync"):
		return fmt.Sprintf("state %d of epoch %v excludes it", r.hard.State.Number, r.hard.State.Epoch)
	}
	return ""
}

// leaveMaster stops following whoever is followed now.
func (r *Replica) leaveMaster() {
	r.s.joined = false
	r.reads.lost()
	r.stopResync()
}

// onPromise counts a promise, or learns why there is none.
func (r *Replica) onPromise(p *peer, m *wire.Promise) {
	g := m.Greeting
	p.greeting, p.incarnation, p.stale = &g, g.Incarnation, false
	r.hearMemory(p, &g)
	c := r.c
	if c == nil || m.Epoch != c.epoch {
		return
	}
	if !m.OK {
		r.refused(p, m)
		return
	}
	i, found := slices.BinarySearchFunc(c.pledges, p.id, func(a pledge, id record.ServerID) int { return a.id.Compare(id) })
	if found {
		c.pledges[i].greeting = g
	} else {
		c.pledges = slices.Insert(c.pledges, i, pledge{p.id, g})
	}
	r.newBase(&g.State)
}

// newBase builds on the newest state that anyone knows. A server that it
// excludes may not become master.
func (r *Replica) newBase(st *wire.State) {
	c := r.c
	if c.resolve || !newer(st, &c.base) {
		return
	}
	if !inSync(st, r.cfg.Self) && !c.loss && !mutated("promote a server that is not in sync") {
		r.stepDown(fmt.Sprintf("state %d of epoch %v excludes this server", st.Number, st.Epoch))
		return
	}
	c.base = *st
}

// refused learns from a refusal: a higher counter is needed, or the candidacy is over.
func (r *Replica) refused(p *peer, m *wire.Promise) {
	c := r.c
	st := &m.Greeting.State
	switch {
	case newer(st, &c.base) && !inSync(st, r.cfg.Self) && !c.loss && !c.resolve:
		r.stepDown(fmt.Sprintf("server %v: %s", p.id, m.Reason))
	case c.kind == restarting && newer(st, &c.base) && st.Master != r.cfg.Self:
		r.stepDown(fmt.Sprintf("server %v knows epoch %v", p.id, st.Epoch))
	case newer(st, &c.base) && c.base.Epoch.Less(st.Epoch) && !c.loss:
		c.base = *st
		for _, p := range r.peers {
			if p.greeting != nil {
				r.askPromise(p)
			}
		}
	case c.epoch.Counter <= m.Greeting.Promised.Counter && c.epoch != m.Greeting.Promised:
		r.outbid()
	case c.command != 0:
		r.stepDown(fmt.Sprintf("server %v refuses: %s", p.id, m.Reason))
	default:
		r.setState(p, Probe, "it refuses the promise: "+m.Reason)
	}
}

// outbidParts: the candidate with the lowest id waits for this part of PeerTimeout,
// the next one for two, and so on.
const outbidParts = 16

// outbid takes a higher epoch a little later: of two candidates that refuse each
// other the one that is first to do so gets the other's promise, or they would go on
// for ever.
func (r *Replica) outbid() {
	rank := 1
	for _, p := range r.peers {
		if p.id.Compare(r.cfg.Self) < 0 {
			rank++
		}
	}
	if r.c.retry == 0 {
		r.c.retry = r.now.Add(time.Duration(rank) * r.cfg.PeerTimeout / outbidParts)
	}
	r.wake(r.c.retry)
}
