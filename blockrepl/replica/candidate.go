package replica

import (
	"fmt"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// candidate is a server that asks for promises (rules 2 and 3).
type candidate struct {
	kind    candidacy
	epoch   record.Epoch
	base    wire.State // the newest state known to anyone who answered
	own     bool       // our own promise is durable
	pledges []pledge   // ascending by server
	exclude []record.ServerID
	forced  bool           // some were excluded by force: nobody else needs to be asked
	command uint64         // the Promote or Resolve to answer
	report  *PromoteReport // of the Promote

	asserted bool // the operator says that the old master is dead
	handover bool // the old master steps down for us: begun only with its promise, for it may have given up waiting
	loss     bool
	alone    bool // creating: by Init, without asking anyone
	resolve  bool
	wait     Time // not before: our own lease to the old master
	until    Time // promoting: who has not promised by then is left out
	asked    Time // when promises were last asked for
	give     Time // then the candidacy of a command fails
	retry    Time // ask for a higher epoch then; 0: no

	// adopt.go: whose longer journal end is being fetched, when it is asked for again.
	tail    record.ServerID
	tailAt  Time
	tailing Time              // since when it has sent nothing
	mute    []record.ServerID // excluded, and did not send theirs: their promises count for nothing
	ownTail bool              // none is fetched any more
}

// pledge is a promise that was given to us.
type pledge struct {
	id       record.ServerID
	greeting wire.Greeting
}

type candidacy uint8

const (
	creating   candidacy = iota + 1 // the volume comes into being
	restarting                      // the state's master started again, or was fenced by an unused promise
	promoting                       // the operator asked for it
)

func (k candidacy) String() string {
	return [...]string{"", "creating", "restarting", "promoting"}[k]
}

// mayRestart takes a new epoch when the state names this server master.
func (r *Replica) mayRestart() {
	base := r.hard.State
	if p := r.hard.Proposed; p != nil && newer(p, &base) {
		base = *p // its outcome is not known; every commit waited for both sets
	}
	m, ok := member(&base, r.cfg.Self)
	if r.role != wire.RoleSlave || r.blank() || base.Master != r.cfg.Self || !ok || m.Incarnation != r.cfg.Incarnation ||
		r.forgot != "" || r.hard.Resync != nil || r.crowded() || r.deposed(&base) || !r.splitBy.IsZero() {
		return
	}
	if !r.allGreeted() && r.now < r.born.Add(r.cfg.PeerTimeout/4) {
		r.wake(r.born.Add(r.cfg.PeerTimeout / 4))
		return // someone may know that the mastership has passed on
	}
	if r.hard.Promised.Server != r.cfg.Self && r.now < r.promisedAt.Add(2*r.cfg.PeerTimeout) {
		return // whoever holds our promise may be using it
	}
	r.candidate(&candidate{kind: restarting, base: base, wait: r.born.Add(r.cfg.PeerTimeout / 2)})
}

// deposed reports whether a peer knows a newer state than base.
func (r *Replica) deposed(base *wire.State) bool {
	for _, p := range r.peers {
		if p.greeting != nil && newer(&p.greeting.State, base) && base.Epoch.Less(p.greeting.State.Epoch) {
			return true
		}
	}
	return false
}

// restart takes a new epoch for a mastership that cannot go on in its own.
func (r *Replica) restart() {
	base := r.hard.State
	if r.m != nil && r.m.change != nil {
		base = r.m.change.state
		if id := r.m.change.command; id != 0 {
			r.result(Result{ID: id, Err: fmt.Errorf("%w: the master takes a new epoch; try again", ErrRefused)})
		}
	}
	r.m = nil
	r.role = wire.RoleSlave
	r.candidate(&candidate{kind: restarting, base: base})
}

// candidate begins a candidacy: first our own promise, durable.
func (r *Replica) candidate(c *candidate) {
	counter := max(r.hard.Promised.Counter, r.hard.State.Epoch.Counter, c.base.Epoch.Counter)
	for _, p := range r.peers {
		if p.greeting != nil {
			counter = max(counter, p.greeting.Promised.Counter, p.greeting.State.Epoch.Counter)
		}
	}
	c.epoch = record.Epoch{Counter: counter + 1, Server: r.cfg.Self}
	c.until = r.now.Add(r.cfg.PeerTimeout)
	if c.give == 0 { // else it asks for another epoch, for the same command
		c.give = r.now.Add(5 * r.cfg.PeerTimeout)
	}
	r.role, r.c, r.m = wire.RoleCandidate, c, nil
	r.s = slave{}
	r.reads.anew()
	r.stopResync()
	for _, p := range r.peers {
		p.joined, p.joining, p.admitting, p.lease = false, false, false, 0
	}
	r.promiseTo(c.epoch)
	r.note("asking for promises", "epoch", c.epoch.String(), "why", c.kind.String())
	epoch := c.epoch
	r.saveHard(func() {
		if r.c != nil && r.c.epoch == epoch {
			r.c.own = true
		}
	})
	for _, p := range r.peers {
		if p.greeting != nil {
			r.askPromise(p)
		}
	}
}

func (c *candidate) pledge(id record.ServerID) *wire.Greeting {
	for i := range c.pledges {
		if c.pledges[i].id == id {
			return &c.pledges[i].greeting
		}
	}
	return nil
}
