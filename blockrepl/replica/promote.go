package replica

import (
	"fmt"
	"slices"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Promotion by the operator (rule 4): first a survey of who answers and what
// they hold, then a judgement, then, if it is allowed, the candidacy.

// survey is a promotion that is being looked into.
type survey struct {
	ask     Promote
	open    bool
	asked   []record.ServerID // who has been asked and has not answered
	until   Time
	leads   bool // this server was the master when it was asked
	handing bool // the old master was asked to step down
	epoch   record.Epoch
	report  *PromoteReport
}

// PromoteReport is what the operator is shown.
type PromoteReport struct {
	Graceful bool
	Already  bool // this server is the master, as it was before the command: nothing changes
	Allowed  bool
	Split    bool   // refused: a side of a split brain is to be chosen first
	Needs    string // the flag without which it is refused
	Reason   string
	Servers  []PromoteLine
	// Missing are the numbers that could be lost as far as anyone who answers
	// knows: MissingFirst..MissingLast, zero for none.
	MissingFirst, MissingLast record.Seq
	// SilentFor is how long the old master has not been heard.
	SilentFor int64 // ns
	// Epoch has begun with the servers InSync, or goes on with them (Already); zero
	// where none does.
	Epoch  record.Epoch
	InSync []record.ServerID
}

// PromoteLine is one server in the report.
type PromoteLine struct {
	Server  record.ServerID
	Answers bool
	Role    wire.Role
	Last    record.Seq
	Epoch   record.Epoch
	InSync  bool
}

// promote begins a survey. A master is told how it stands.
func (r *Replica) promote(ev Promote) {
	leads := r.role == wire.RoleMaster
	switch {
	case r.g.open:
		r.refuse(ev.ID, "another promotion is being looked into")
		return
	case r.c != nil && r.c.command != 0 && !ev.DryRun:
		r.refuse(ev.ID, "another promotion is under way")
		return
	case leads:
	case len(r.hard.History) >= HistoryMax:
		r.refuse(ev.ID, "the epoch history is full, with %d masterships since all members were in sync; copy the volume to a new one", len(r.hard.History))
		return
	case r.blank():
		r.refuse(ev.ID, "this server has never seen the volume; a blank server never becomes master")
		return
	}
	r.g = survey{ask: ev, open: true, leads: leads, until: r.now.Add(r.cfg.PeerTimeout / 4)}
	for _, p := range r.peers {
		if p.session != 0 {
			r.g.asked = append(r.g.asked, p.id)
			p.asked = true
			r.send(p, &wire.Query{})
		}
	}
	r.wake(r.g.until)
	r.judgeWhenDone()
}

// survey notes an answer.
func (r *Replica) survey(p *peer) {
	if !r.g.open {
		return
	}
	for i, id := range r.g.asked {
		if id == p.id {
			r.g.asked = append(r.g.asked[:i:i], r.g.asked[i+1:]...)
			break
		}
	}
	r.judgeWhenDone()
}

func (r *Replica) judgeWhenDone() {
	if !r.g.open || r.g.handing || len(r.g.asked) > 0 && r.now < r.g.until {
		return
	}
	rep, base := r.judge(r.g.ask)
	r.g.report = rep
	switch {
	case r.g.ask.DryRun, rep.Already:
		r.endSurvey(nil)
	case !rep.Allowed:
		r.endSurvey(fmt.Errorf("%w: %s", ErrRefused, rep.Reason))
	case rep.Graceful:
		r.askHandover(base)
	default:
		// Asserted only where it is needed: where others' answers suffice, the lease
		// that the old master may still read under is waited for.
		r.stand(base, r.g.ask.OldMasterDead && rep.Needs != "")
	}
}

func (r *Replica) endSurvey(err error) {
	res := Result{ID: r.g.ask.ID, Err: err, Report: r.g.report}
	if res.Report.Already { // the answer that told it may not have come
		res.Note = warnPromoted(outOf(&r.hard.State)...)
	}
	r.result(res)
	r.g = survey{}
}

// heard is what a survey learned from this server and everyone who answers.
type heard struct {
	base     wire.State        // the newest state
	past     []wire.EpochStart // the history that led to it
	answers  int               // members that would know of a change which they noted
	promised record.Epoch      // the newest promise that another server was given
	master   *wire.Greeting    // of the base's master, when it answers as such
	other    record.ServerID   // one that answers from the other side of a split brain
}

func (h *heard) hearPromises(self record.ServerID, promised record.Epoch, rivals []record.Epoch) {
	for _, e := range append(rivals[:len(rivals):len(rivals)], promised) {
		if h.promised.Less(e) && e.Server != self {
			h.promised = e
		}
	}
}

// hear puts together what the answers say.
func (r *Replica) hear() *heard {
	h := &heard{base: r.hard.State, past: r.hard.History, answers: 1}
	h.hearPromises(r.cfg.Self, r.hard.Promised, r.hard.Rivals)
	for _, p := range r.peers {
		g := p.answer()
		if g == nil {
			continue
		}
		if r.knows(&h.base, g, p.id) {
			h.answers++
		}
		if newer(&g.State, &h.base) {
			h.base, h.past = g.State, g.History
		}
		h.hearPromises(r.cfg.Self, g.Promised, g.Rivals)
	}
	for _, p := range r.peers {
		g := p.answer()
		if g == nil {
			continue
		}
		if p.id == h.base.Master && g.Role == wire.RoleMaster {
			h.master = g
		}
		if !g.UUID.IsZero() && splitBrain(h.past, &h.base, g.History, &g.State) {
			h.other = p.id
		}
	}
	return h
}

// answer is what the peer said since it was asked, nil when it has not.
func (p *peer) answer() *wire.Greeting {
	if p.asked {
		return nil
	}
	return p.greeting
}

// judge decides whether this server may be promoted, from what everyone who
// answers knows. It returns the newest state known.
func (r *Replica) judge(ask Promote) (*PromoteReport, wire.State) {
	h := r.hear()
	rep := &PromoteReport{}
	rep.Servers = append(rep.Servers, PromoteLine{r.cfg.Self, true, r.role, r.last.Seq, r.hard.Following, inSync(&h.base, r.cfg.Self)})
	known, parted := max(r.s.line, r.commit), record.Seq(0)
	same := r.last.Seq
	if r.s.beat != nil {
		known = max(known, r.s.beat.Last)
	}
	for _, p := range r.peers {
		line := PromoteLine{Server: p.id, InSync: inSync(&h.base, p.id)}
		if g := p.answer(); g != nil {
			line.Answers, line.Role, line.Last, line.Epoch = true, g.Role, g.Last.Seq, g.Following
			known = max(known, g.Last.Seq)
			at := common(r.hard.History, r.last.Seq, g.History, g.Last.Seq)
			switch {
			case !r.hasFollowed(g.Following):
				// A mastership of which nothing is here: from where it parts from ours,
				// numbers name its records, and ours of those numbers are others.
				same, parted = min(same, at), max(parted, g.Last.Seq, r.last.Seq)
			case at < g.Last.Seq:
				// Ours may have gone on without them by force, and another server with them.
				same, parted = min(same, at), max(parted, g.Last.Seq)
			}
		}
		if p.id == h.base.Master && p.lastHeard > 0 {
			rep.SilentFor = int64(r.now.Sub(p.lastHeard))
		}
		rep.Servers = append(rep.Servers, line)
	}
	r.verdict(ask, rep, h)
	if r.g.leads {
		return rep, h.base // it loses nothing by going on
	}
	if rep.Needs == "" || mutated("miss only what is longer") {
		same, parted = r.last.Seq, 0 // by the rules nothing that others hold there was committed
	}
	if known > r.last.Seq {
		parted = max(parted, known)
	}
	if parted > same {
		rep.MissingFirst, rep.MissingLast = same+1, parted
	}
	return rep, h.base
}

// hasFollowed reports whether epoch e is of this server's past.
func (r *Replica) hasFollowed(e record.Epoch) bool {
	return e.IsZero() || beforeAll(r.hard.History, e) || slices.ContainsFunc(r.hard.History, func(h wire.EpochStart) bool { return h.Epoch == e })
}

// verdict fills in whether, and with which flag, the promotion is allowed.
func (r *Replica) verdict(ask Promote, rep *PromoteReport, h *heard) {
	needs := func(flag, format string, args ...any) {
		rep.Needs, rep.Reason = flag, fmt.Sprintf(format, args...)
	}
	rep.Allowed = true
	base, n := &h.base, len(h.base.Members)
	switch {
	case !r.splitBy.IsZero():
		rep.Allowed, rep.Split = false, true
		rep.Reason = fmt.Sprintf("split brain with %v: choose a side with blockrepl resolve %s --keep SERVER", r.splitBy, r.cfg.Create.Name)
		return
	case r.g.leads:
		r.standing(rep, h)
		return
	case r.hard.Resync != nil:
		rep.Allowed = false
		rep.Reason = "this server is being resynced; its image is not the state after any number"
		return
	case r.forgot != "":
		needs("accept-loss", "this server's past is not believed: %s", r.forgot)
	case !inSync(base, r.cfg.Self) && !mutated("promote a server that is not in sync"):
		needs("accept-loss", "state %d of epoch %v has %s in sync, not this server", base.Number, base.Epoch, names(ids(base.InSync)))
	case h.master != nil:
		rep.Graceful = true
		rep.Reason = fmt.Sprintf("the master %v answers and steps down itself", base.Master)
	case !h.other.IsZero() && !mutated("take a side of others' split brain"):
		// This server may have seen neither side's epoch, and so be split from nobody itself.
		needs("accept-loss", "split brain: epoch %v and what server %v holds both went on; choose a side first, on a server that has one: blockrepl resolve %s --keep SERVER", base.Epoch, h.other, r.cfg.Create.Name)
	case !r.hard.Vow.IsZero() && r.hard.Vow == base.Epoch && !mutated("break the vow of an orderly stop"):
		needs("old-master-dead", "this server stopped in order under the master %v, which may be answering reads since without asking it", base.Master)
	case base.Master == r.cfg.Self:
		rep.Reason = "this server was the master; nobody knows a newer state"
		if h.answers < majority(n) || base.OnDegraded != wire.Suspend || n < 3 || base.Epoch.Less(h.promised) {
			needs("old-master-dead", "a newer mastership can have begun without this server: %d of %d members answer", h.answers, n)
		}
	case base.Epoch.Less(h.promised):
		needs("old-master-dead", "epoch %v is promised to %v, of which nobody who answers knows the outcome", h.promised, h.promised.Server)
	case base.OnDegraded != wire.Suspend:
		needs("old-master-dead", "the master %v does not answer, and with on_degraded = continue it may have gone on without this server", base.Master)
	case n < 3:
		needs("old-master-dead", "the master %v does not answer, and no third server can tell whether it went on without this one", base.Master)
	case h.answers < majority(n) && !mutated("promote without a majority"):
		needs("old-master-dead", "the master %v does not answer, and only %d of %d members do", base.Master, h.answers, n)
	default:
		rep.Reason = fmt.Sprintf("the master %v does not answer; %d of %d members do, and a change of the in-sync set would be known to one", base.Master, h.answers, n)
	}
	switch rep.Needs {
	case "accept-loss":
		rep.Allowed = ask.AcceptLoss
	case "old-master-dead":
		rep.Allowed = ask.OldMasterDead // to accept a loss does not say so
	}
}

// standing says how a server stands that was the master when it was asked: whether it
// serves, will go on to, and clients' writes do not wait. Else something is to be done,
// and the command must not look as if it were.
func (r *Replica) standing(rep *PromoteReport, h *heard) {
	no := func(format string, args ...any) {
		rep.Allowed, rep.Reason = false, fmt.Sprintf(format, args...)
	}
	if r.role != wire.RoleMaster {
		no("this server was the master when it was asked, and is not any more; look at the status and ask again")
		return
	}
	state, why, next := r.condition()
	switch {
	case !r.m.serving:
		no("this server is becoming the master in epoch %v; it waits for %s", r.epoch(), r.awaited())
	case r.m.leaving != nil:
		no("this server is the master, and hands over to %v", r.m.leaving.to)
	case r.epoch().Less(h.base.Epoch), r.epoch().Less(h.promised), r.m.again != 0:
		no("this server is the master in epoch %v, which a newer promise ends; look at the status and ask again", r.epoch())
	case state == Healthy, state == Degraded:
		rep.Already, rep.Epoch, rep.InSync = true, r.epoch(), ids(r.hard.State.InSync)
		rep.Reason = fmt.Sprintf("this server is the master already, in epoch %v", r.epoch())
	default:
		no("this server is the master already, in epoch %v, and the volume is %s: %s", r.epoch(), state, why)
		if next != "" {
			rep.Reason += "; " + next
		}
	}
}

// stand begins the candidacy. A lease that this server has granted is waited
// for, unless the old master is dead or steps down with its promise: it may still be reading.
func (r *Replica) stand(base wire.State, asserted bool) {
	c := &candidate{kind: promoting, base: base, command: r.g.ask.ID, asserted: asserted, loss: r.g.ask.AcceptLoss && r.g.report.Needs == "accept-loss"}
	c.handover, c.report = r.g.handing, r.g.report
	if r.c != nil && r.c.command != 0 {
		r.endSurvey(fmt.Errorf("%w: another promotion is under way", ErrRefused))
		return
	}
	if !asserted && !c.loss && !c.handover {
		c.wait = r.l.until
		if mutated("promote under a lease") {
			c.wait = 0
		}
	}
	r.g = survey{}
	r.candidate(c)
}

// promoted answers a promotion whose epoch has begun without the servers in out. One
// that nobody commanded here, as when the master stops, tells only the log of them.
func (r *Replica) promoted(c *candidate, out []record.ServerID) {
	if len(out) > 0 {
		r.warn("the promotion left servers out; they must not be promoted until in sync again", "servers", names(out), "epoch", c.epoch.String())
	}
	if c.command == 0 {
		return
	}
	rep := c.report
	if rep == nil {
		rep = &PromoteReport{Allowed: true} // of Resolve
	}
	rep.Epoch, rep.InSync = c.epoch, ids(r.hard.State.InSync)
	r.result(Result{ID: c.command, Report: rep, Note: warnPromoted(out...)})
}

// tickSurvey looks at the clock.
func (r *Replica) tickSurvey() {
	if !r.g.open {
		return
	}
	if r.g.handing && r.now >= r.g.until {
		r.notHandedOver()
		return
	}
	r.judgeWhenDone()
}

// unmatched are the servers that a new master's epoch record waits for.
func (r *Replica) unmatched() []record.ServerID {
	var out []record.ServerID
	for _, p := range r.peers {
		if r.waited(p.id) && (p.ackEpoch != r.epoch() || p.durable < r.m.start) {
			out = append(out, p.id)
		}
	}
	return out
}

// awaited names who keeps a new master from serving.
func (r *Replica) awaited() string {
	if list := r.unmatched(); len(list) > 0 {
		return names(list)
	}
	return r.cfg.Self.String() // its own journal or image
}
