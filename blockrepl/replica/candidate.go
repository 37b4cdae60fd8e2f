package replica

import (
	"fmt"
	"slices"
	"time"

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
	ownTail bool // none is fetched any more
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
	r.reads.lost()
	r.stopResync()
	for _, p := range r.peers {
		p.joined, p.joining, p.admitting, p.lease = false, false, false, 0
	}
	r.hard.Promised = c.epoch
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
		r.hard.Promised, r.promisedAt = q.Epoch, r.now
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
	case r.blank() && q.State.Epoch.IsZero() && q.State.Size != r.cfg.Create.Size:
		return fmt.Sprintf("the volume has %d bytes there, %d here: make the configurations equal", q.State.Size, r.cfg.Create.Size)
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

// leaveMaster stops following whoever is followed now.
func (r *Replica) leaveMaster() {
	r.s.joined = false
	r.reads.lost()
	r.stopResync()
}

func (c *candidate) pledge(id record.ServerID) *wire.Greeting {
	for i := range c.pledges {
		if c.pledges[i].id == id {
			return &c.pledges[i].greeting
		}
	}
	return nil
}

// counts reports whether a server's promise may stand for the journal that the
// state says it has.
func (r *Replica) counts(id record.ServerID) bool {
	g := r.c.pledge(id)
	if g == nil {
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
	command, epoch := c.command, c.epoch
	note := ""
	if out := dropped(&base, &st); st.Forced && len(out) > 0 {
		note = warnPromoted(out...)
	}
	r.hard.Proposed = nil
	if c.alone {
		r.forgot, r.hard.Forgot = "", "" // what the image holds is the volume
	}
	r.beginEpoch(epoch, st, r.baseNumber(), c.loss)
	if command != 0 {
		r.promoted(command, epoch, c.report, note)
	}
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
	// Without a majority that promised, the others could be promoted by the same
	// right and never learn of this epoch.
	if !c.asserted && !(c.handover && mutated("hand over without the old master's promise")) && !c.loss && !c.resolve && know < majority(len(c.base.Members)) && !mutated("promote without a majority") {
		return nil
	}
	sortMembers(set)
	return set
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
