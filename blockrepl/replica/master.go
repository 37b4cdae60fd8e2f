package replica

import (
	"fmt"
	"slices"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// master is what only a master has.
type master struct {
	// start is the number of the epoch record. Nothing is served before it is
	// committed and applied (rule 3), and no commit counts that does not cover it.
	start   record.Seq
	serving bool
	begun   bool // the epoch record and the state are durable here
	since   Time // it began: who was not heard before was not silent before

	change *change           // of the in-sync set, outcome unknown
	union  []record.ServerID // proposed since the last outcome: waited for as well (rule 6)

	leaving *handover
	beat    Time // of the last round of heartbeats
	tellAt  Time // a commit number waits to be told; 0: none
	again   Time // take a new epoch then, because this one is fenced; 0: no
	asks    []ask
	early   []early
	// leaseFrom: answers to heartbeats sent before it give no lease (a handover that
	// was offered and not used: the other may have begun to serve).
	leaseFrom Time
	// unreadable is the highest number of which the journal could not give the record,
	// though the image holds it: to who joins, none through it is kept.
	unreadable record.Seq
	// hole is the newest such number that the image does not hold, either: nothing from it
	// on can reach who lacks it.
	hole record.Seq
}

// handover is a master that steps down for To.
type handover struct {
	to    record.ServerID
	ready bool
	until Time // go on as master then
}

// early is a Forward that came before the master could number it.
type early struct {
	peer    record.ServerID
	session uint64
	frame   *wire.Forward
}

// ask is a read round of a slave that waits for the master's lease.
type ask struct {
	peer    record.ServerID
	session uint64
	id      uint64
}

// beginEpoch makes this server the master of e: the journal's whole tail stays,
// an epoch record goes behind it, and state, history and record are one batch.
func (r *Replica) beginEpoch(e record.Epoch, st wire.State, base uint64, loss bool) {
	st.Epoch, st.Master = e, r.cfg.Self
	var s Store
	if loss && r.forgot != "" {
		s = r.takeWhole()
	}
	rec := record.NewState(record.KindEpoch, encodeState(&st))
	rec.Volume, rec.Origin = st.UUID, r.cfg.Self
	rec.Seal(e, r.last, r.wall)
	first := rec.Pos()
	r.hard.Vow, r.vowed = record.Epoch{}, record.Epoch{}
	for _, p := range r.peers {
		p.vowed, p.owes = false, 0
		p.stale = p.greeting != nil && r.c.pledge(p.id) == nil
	}
	r.hard.State = st
	r.hard.Following = e
	r.hard.Match = min(r.hard.Match, first.Seq) // what is lost above was accepted to be
	r.hard.History = append(reached(r.hard.History, first.Seq),
		wire.EpochStart{Epoch: e, First: first, BaseNumber: base, Loss: loss, Set: st.InSync})
	if n := len(r.hard.History) - setsMax; n > 0 {
		r.hard.History[n-1].Set = nil
	}
	r.role, r.c = wire.RoleMaster, nil
	r.m = &master{start: first.Seq, since: r.now}
	// After an accepted loss a number that was committed may be above our end: the
	// records that get those numbers now are not.
	if !mutated("keep a commit number that was given up") {
		r.commit = min(r.commit, first.Seq-1)
	}
	r.setPeers(st.Members)
	for _, p := range r.peers {
		p.joined, p.joining, p.admitting, p.lease, p.moved = false, false, false, 0, r.now
		if mutated("count acknowledgements of an old epoch") {
			p.ackEpoch, p.durable = e, max(p.durable, first.Seq)
			continue
		}
		p.ackEpoch, p.durable = record.Epoch{}, 0
	}
	r.flush()
	r.push(rec)
	s.Records, s.Hard = r.batch, r.hardCopy()
	r.batch = nil
	m := r.m
	r.storeSeq(s, first.Seq, func() {
		m.begun = true
		if r.m == m {
			r.joinAll()
		}
	})
	r.note("mastership begins", "epoch", e.String(), "seq", uint64(first.Seq), "in_sync", names(ids(st.InSync)))
	r.unresolved()
}

// joinAll tells everyone who has a link of this epoch.
func (r *Replica) joinAll() {
	for _, p := range r.peers {
		if p.greeting != nil {
			r.join(p)
		}
	}
}

// advanceMaster draws the master's conclusions after any event.
func (r *Replica) advanceMaster() {
	r.settleChange()
	r.commitMore()
	if !r.m.serving && (r.commit >= r.m.start && r.applied >= r.m.start || mutated("serve before the epoch record is committed") && r.m.begun) {
		r.m.serving = true
		r.redo.pending = false
		r.note("serving", "epoch", r.epoch().String(), "seq", uint64(r.m.start))
		r.routeHeld()
	}
	if r.numbering() && len(r.f.held)+len(r.m.early) > 0 {
		r.numberWaiting()
	}
	r.admit()
	r.stream()
	r.tellCommit()
	r.handOver()
	r.serveAsks()
}

// inService reports whether this master takes its clients' changes.
func (r *Replica) inService() bool {
	return r.role == wire.RoleMaster && r.m.serving && r.m.leaving == nil
}

// numbering reports whether a client's change may get a number now. What is not
// committed is bounded: while an in-sync server is away further changes wait, so
// that those which their clients give up do not fill the journals. So is what is not
// in the images, by their room.
func (r *Replica) numbering() bool {
	return r.inService() && (r.commit == r.last.Seq || r.kept.above(r.commit) < tailMax) && !r.imagesMayFill()
}

// number gives the next number to a draft. The caller has checked it.
func (r *Replica) number(rec *record.Record) {
	at := rec.Time
	if at == 0 {
		at = r.wall
	}
	rec.Volume = r.hard.State.UUID
	rec.Seal(r.epoch(), r.last, at)
	r.push(rec)
}

// stream lets every joined slave have what was numbered.
func (r *Replica) stream() {
	for _, p := range r.peers {
		if p.joined && p.streamed < r.last.Seq {
			if p.durable >= p.streamed {
				p.moved = r.now
			}
			p.streamed = r.last.Seq
			p.told = r.commit
			r.out.Streams = append(r.out.Streams, Stream{To: p.id, Session: p.session, Epoch: r.epoch(), End: r.last.Seq})
		}
	}
}

// tellCommit sends the commit number by itself where no record carries it soon.
func (r *Replica) tellCommit() {
	due := r.m.tellAt != 0 && r.now >= r.m.tellAt
	behind := false
	for _, p := range r.peers {
		if !p.joined || p.told >= r.commit {
			continue
		}
		if !due && !p.wants {
			behind = true
			continue
		}
		p.told = r.commit
		r.send(p, &wire.Append{Epoch: r.epoch(), Commit: r.commit, Floor: r.floor()})
	}
	switch {
	case !behind:
		r.m.tellAt = 0
	case r.m.tellAt == 0 || due:
		r.m.tellAt = r.now.Add(commitDelay)
	}
	if r.m.tellAt != 0 {
		r.wake(r.m.tellAt)
	}
}

// tickMaster looks at the clock: heartbeats, silent peers, a fenced epoch.
func (r *Replica) tickMaster() {
	r.shortenHistory()
	every := r.beatEvery()
	if r.now.Sub(r.m.beat) >= every {
		r.m.beat = r.now
		for _, p := range r.peers {
			r.send(p, &wire.Heartbeat{Epoch: r.epoch(), SentAt: int64(r.now), Last: r.last.Seq, Commit: r.commit, Floor: r.floor()})
		}
	}
	if every < r.cfg.PeerTimeout/4 { // sooner than the usual tick
		r.wake(r.m.beat.Add(every))
	}
	for _, p := range r.peers {
		silent := r.now.Sub(p.lastHeard) > r.cfg.PeerTimeout
		if p.session != 0 && silent && p.state != Down {
			p.admitting = false
			r.setState(p, Down, fmt.Sprintf("no answer for %v", r.cfg.PeerTimeout))
		}
		r.letGo(p)
		if silent || p.session == 0 && p.state == Down {
			r.missing(p, silent)
		}
		// One that refused to join is asked again, but not with every tick: a new
		// greeting says sooner when there is something new.
		waits := p.refused != 0 && r.now.Sub(p.refused) < r.cfg.PeerTimeout/4
		if p.session != 0 && p.greeting != nil && !p.joined && !p.joining && !silent && !waits {
			r.join(p)
		}
	}
	if r.m.again != 0 && r.now >= r.m.again {
		r.m.again = 0
		if r.crowded() {
			r.stepDown("its epoch is fenced, and the epoch history has no room for another")
			return
		}
		r.note("taking a new epoch: this one is fenced by a promise that nobody used", "epoch", r.epoch().String())
		r.restart()
		return
	}
	if h := r.m.leaving; h != nil && r.now >= h.until {
		r.warn("handover was not used; going on as master", "to", h.to.String())
		r.m.leaving, r.m.leaseFrom = nil, r.now
		for _, p := range r.peers {
			p.lease = 0
		}
		r.routeHeld()
	}
}

// greetedMaster hears a greeting as master: perhaps this mastership is over.
func (r *Replica) greetedMaster(p *peer, g *wire.Greeting) {
	if newer(&g.State, &r.hard.State) && r.hard.State.Epoch.Less(g.State.Epoch) {
		r.stepDown(fmt.Sprintf("server %v knows epoch %v", p.id, g.State.Epoch))
		return
	}
	if r.epoch().Less(g.Promised) {
		r.fenced(p, g.Promised)
		return
	}
	if g.Forgot && p.joined { // it learned that after it had joined
		p.joined, p.admitting, p.lease = false, false, 0
	}
	// While a Join is under way its answer is waited for: a second one would draw a
	// line below forwards of the first that are not numbered yet.
	r.join(p)
}

// fenced: a peer has promised a higher epoch, so this one cannot go on with it.
// If nobody uses that promise within peer_timeout, a new epoch is taken.
func (r *Replica) fenced(p *peer, by record.Epoch) {
	p.joined = false
	r.setState(p, Probe, fmt.Sprintf("it has promised epoch %v", by))
	if r.m.again == 0 {
		r.m.again = r.now.Add(r.cfg.PeerTimeout)
	}
}

// stepDown ends a mastership or a candidacy. Operations without a number wait
// for the next master; numbered ones are found in its log or asked for again.
func (r *Replica) stepDown(why string) {
	if r.role == wire.RoleMaster || r.role == wire.RoleCandidate {
		r.note("stepping down", "epoch", r.hard.Promised.String(), "reason", why)
	}
	if r.c != nil && r.c.command != 0 {
		r.result(Result{ID: r.c.command, Err: fmt.Errorf("%w: %s", ErrRefused, why)})
	}
	if m := r.m; m != nil && m.change != nil && m.change.command != 0 {
		r.result(Result{ID: m.change.command, Err: fmt.Errorf("%w: %s", ErrFenced, why)})
	}
	r.role, r.m, r.c = wire.RoleSlave, nil, nil
	r.s = slave{}
	for _, p := range r.peers {
		p.joined, p.joining, p.admitting, p.lease = false, false, false, 0
	}
}

// takeWhole takes what is left here for the whole volume, by the operator's word,
// although this server's past is not believed. Its image may hold records that the
// journal has lost, or none of what it should: no state is common with anyone else's
// any more, so whoever joins has its whole image compared. Where the image holds numbers
// above the journal's end, the journal begins anew behind them: records that got those
// numbers would count as applied and never reach the image.
func (r *Replica) takeWhole() Store {
	r.believe()
	r.hard.History, r.hard.Image = unlike(r.hard.History), nil
	at := record.Pos{Seq: max(r.hard.Checkpoint, r.table.AsOf)}
	if at.Seq <= r.last.Seq {
		return Store{}
	}
	t := r.table.clone()
	t.AsOf = at.Seq
	r.beginBehind(at, t)
	return Store{Reset: &at, Table: &t}
}

func names(list []record.ServerID) string {
	var out []byte
	for i, id := range list {
		if i > 0 {
			out = append(out, ' ')
		}
		out = append(out, id.String()...)
	}
	return string(out)
}

// encodeState is the payload of epoch and members records: for people and for
// `journal show`; decisions use Hard.State.
func encodeState(s *wire.State) []byte {
	return fmt.Appendf(nil, `{"number":%d,"epoch":%q,"master":%q,"in_sync":%q,"members":%q,"size":%d,"forced":%t}`,
		s.Number, s.Epoch, s.Master, names(ids(s.InSync)), names(s.Members), s.Size, s.Forced)
}

func (r *Replica) result(res Result) {
	if res.ID != 0 {
		r.out.Results = append(r.out.Results, res)
	}
}

func contains(list []record.ServerID, id record.ServerID) bool { return slices.Contains(list, id) }
