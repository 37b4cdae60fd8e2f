package replica

import (
	"fmt"
	"slices"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// PeerState is how far another server is.
type PeerState uint8

// The states of a peer. Zero is invalid.
const (
	Down    PeerState = 1 // no link, or silent for peer_timeout
	Probe   PeerState = 2 // linked; its journal's place is being found
	CatchUp PeerState = 3 // receives kept records
	Live    PeerState = 4 // receives records as they are numbered
	Resync  PeerState = 5 // its image is being copied
)

func (s PeerState) String() string {
	return [...]string{"", "down", "probe", "catch-up", "live", "resync"}[s]
}

// past is that nobody could tell the sum which a peer is compared by.
type past struct {
	asked Time       // when, over this link; 0: it was told
	at    record.Seq // of which number
	end   record.Pos // of the peer's journal
	hole  record.Seq // the damaged record that our own image lacks; 0: it has it
}

// peer is what this server knows of another one.
type peer struct {
	id          record.ServerID
	session     uint64 // 0: no link
	incarnation record.Incarnation
	greeting    *wire.Greeting // newest of this session; nil before
	asked       bool           // a Query is unanswered
	// stale: the greeting is older than the epoch that this server leads. The peer
	// may have gone far since, so it is asked again (askedAt) before it is joined.
	stale     bool
	askedAt   Time
	lastHeard Time
	// known is what was remembered of it when the link opened; nil: nothing. Its
	// greetings are compared with that, since what it acknowledges over this link
	// it cannot have forgotten, and a greeting may be older than that.
	known *wire.Memory

	// split: it stands on the other side of a split brain, as far as is known.
	split bool

	state  PeerState
	reason string
	since  Time

	// As its master. durable survives a lost link: what was fsynced stays so.
	//
	// Invariant: durable > 0 only if ackEpoch is the present epoch and the peer's
	// journal equalled ours up to durable when it said so.
	joined    bool // it answered Join in this session and epoch
	joining   bool // Join is sent or being prepared
	copies    bool // the last Join began a resync
	refused   Time // when it refused to join, over this link; 0: it did not, or joined since
	past      past
	ackEpoch  record.Epoch
	durable   record.Seq
	applied   record.Seq
	state0    uint64     // State.Number in the Join
	streamed  record.Seq // the sender's cursor may go up to here
	moved     Time       // when durable last grew, or it was last given more than it had, or first waited for
	resyncing bool
	admitting bool          // waited for already, not yet in the in-sync set
	lease     Time          // it will not be promoted before
	granted   time.Duration // how long its newest lease lasts, at most PeerTimeout; 0: there was none over this link
	answered  Time          // when the newest heartbeat was sent that it has answered
	out       Time          // when it was forgotten, or gone on without, over this link; 0: it was not
	// owes: it was forgotten over this link, or let go while it was being admitted, and
	// must acknowledge so far before it is waited for again. One whose disk hangs answers
	// heartbeats, too.
	owes     record.Seq
	vowed    bool // it stopped in order: it will not be promoted before it was joined again
	free     int64
	image    wire.Room
	forwards uint64 // Forwards taken in this session
	told     record.Seq
	wants    bool // has clients or reads waiting: tell it commit numbers at once

	lastRefusal Time // rate of greetings sent back to a sender of an old epoch
}

// peer finds a member, nil for a stranger.
func (r *Replica) peer(id record.ServerID) *peer {
	for _, p := range r.peers {
		if p.id == id {
			return p
		}
	}
	return nil
}

// setPeers follows the list of members.
func (r *Replica) setPeers(members []record.ServerID) {
	var peers []*peer
	for _, id := range members {
		if id == r.cfg.Self {
			continue
		}
		p := r.peer(id)
		if p == nil {
			p = &peer{id: id, state: Down, reason: "no link yet", since: r.now}
		}
		peers = append(peers, p)
	}
	slices.SortFunc(peers, func(a, b *peer) int { return a.id.Compare(b.id) })
	r.peers = peers
}

func (r *Replica) setState(p *peer, s PeerState, reason string) {
	if p.state == s {
		p.reason = reason
		return
	}
	p.state, p.reason, p.since = s, reason, r.now
	if r.role == wire.RoleMaster || s == Down {
		r.note("peer is "+s.String(), "peer", p.id.String(), "reason", reason, "seq", uint64(p.durable))
	}
}

func (r *Replica) send(p *peer, m wire.Message) {
	if p.session == 0 {
		return
	}
	r.out.Sends = append(r.out.Sends, Send{p.id, p.session, m})
}

func (r *Replica) closeLink(p *peer, reason string) {
	if p.session == 0 {
		return
	}
	r.out.CloseLinks = append(r.out.CloseLinks, CloseLink{p.id, p.session, reason})
	r.unlink(p, reason)
}

func (r *Replica) linkUp(ev LinkUp) {
	r.strangers = slices.DeleteFunc(r.strangers, func(s LinkUp) bool { return s.Peer == ev.Peer })
	p := r.peer(ev.Peer)
	if p == nil {
		r.strangers = append(r.strangers, ev)
		if r.blank() { // it may count us in: it can tell people then that its list is another
			r.out.Sends = append(r.out.Sends, Send{ev.Peer, ev.Session, r.greeting()})
		}
		return
	}
	if p.session != 0 {
		r.unlink(p, "a newer link")
	}
	p.session, p.incarnation, p.lastHeard = ev.Session, ev.Incarnation, r.now
	p.greeting, p.forwards, p.told, p.wants = nil, 0, 0, false
	p.stale, p.askedAt, p.vowed, p.moved = false, 0, false, r.now
	p.known = nil
	if i, ok := r.findMemory(p.id); ok {
		m := r.memory[i]
		p.known = &m
	}
	r.setState(p, Probe, "")
	r.send(p, r.greeting())
}

func (r *Replica) linkDown(ev LinkDown) {
	r.strangers = slices.DeleteFunc(r.strangers, func(s LinkUp) bool { return s.Session == ev.Session })
	if p := r.peer(ev.Peer); p != nil && p.session == ev.Session {
		r.unlink(p, ev.Reason)
	}
}

// meet uses the links to servers that turned out to be members after they were linked.
// What those said meanwhile was dropped, so they are asked to begin anew.
func (r *Replica) meet() {
	for _, ev := range slices.Clone(r.strangers) {
		if p := r.peer(ev.Peer); p != nil {
			r.linkUp(ev)
			r.send(p, &wire.Query{})
		}
	}
}

// unlink forgets what holds for a session only.
func (r *Replica) unlink(p *peer, reason string) {
	p.session, p.greeting = 0, nil
	p.joined, p.joining, p.admitting = false, false, false
	p.streamed, p.lease, p.granted, p.out, p.owes, p.refused, p.past = 0, 0, 0, 0, 0, 0, past{}
	if reason == "" {
		reason = "link closed"
	}
	r.setState(p, Down, reason)
	if r.role == wire.RoleSlave && r.s.master == p.id {
		r.s.joined = false
		r.reads.lost()
		r.stopResync()
	}
	if r.stopID != 0 && r.stopTo == p.id {
		id := r.stopID // it stops too, or is gone: another one, or nobody, takes over
		r.stopID = 0
		r.stop(Stop{ID: id, Handover: true})
	}
}

// greeting says what this server holds.
func (r *Replica) greeting() *wire.Greeting {
	return &wire.Greeting{
		Name: r.cfg.Create.Name, UUID: r.hard.State.UUID, Incarnation: r.cfg.Incarnation,
		State: r.hard.State, Promised: r.hard.Promised, Rivals: slices.Clone(r.hard.Rivals), Following: r.followed,
		History: slices.Clone(r.hard.History), Last: r.durablePos(), First: r.first,
		Checkpoint: r.hard.Checkpoint, Applied: r.applied, Committed: r.commit, Role: r.role,
		Resyncing: r.resyncing(), Forgot: r.forgot != "", SplitBrain: !r.splitBy.IsZero(),
		Size: r.cfg.Create.Size, Memory: slices.Clone(r.memory), Free: r.free,
		Servers: creatorFirst(r.cfg.First, r.cfg.Create.Members),
	}
}

// durablePos is the end of what is fsynced here.
func (r *Replica) durablePos() record.Pos {
	sum, ok := r.sums.at(r.durable)
	if !ok {
		panic(fmt.Sprintf("blockrepl: bug: sum of number %d is forgotten; last is %d", r.durable, r.last.Seq))
	}
	return record.Pos{Seq: r.durable, Sum: sum}
}

// onGreeting compares the other server's past with ours and does what our role
// asks for.
func (r *Replica) onGreeting(p *peer, g *wire.Greeting) {
	if why := r.stranger(g); why != "" {
		r.setState(p, Down, why)
		return
	}
	p.greeting, p.incarnation, p.asked, p.stale = g, g.Incarnation, false, false
	r.hearMemory(p, g)
	r.hearAnnounced(p, g)
	if r.split(p, g) {
		return
	}
	r.survey(p)
	switch r.role {
	case wire.RoleMaster:
		r.greetedMaster(p, g)
	case wire.RoleCandidate:
		r.greetedCandidate(p, g)
	case wire.RoleSlave:
		r.setState(p, Live, "")
		r.mayCreate()
	}
}

// stranger says why g is of another volume, or "".
func (r *Replica) stranger(g *wire.Greeting) string {
	if g.Name != r.cfg.Create.Name {
		return fmt.Sprintf("it calls the volume %q", g.Name)
	}
	if !r.blank() && !g.UUID.IsZero() && g.UUID != r.hard.State.UUID {
		return fmt.Sprintf("it holds another volume of this name, %v; ours is %v", g.UUID, r.hard.State.UUID)
	}
	if len(g.History) > HistoryMax {
		return fmt.Sprintf("it claims %d epochs", len(g.History))
	}
	return ""
}

// hearMemory takes in what the peer remembers of us and of others (rule 10).
func (r *Replica) hearMemory(p *peer, g *wire.Greeting) {
	for _, m := range g.Memory {
		if m.Server != r.cfg.Self || m.Incarnation != r.cfg.Incarnation || m.Epoch.Less(r.hard.Following) {
			continue
		}
		if r.hard.Following.Less(m.Epoch) {
			r.forgets(fmt.Sprintf("server %v remembers this one in epoch %v; the journal follows %v", p.id, m.Epoch, r.hard.Following))
		} else if m.Durable.Seq > r.last.Seq {
			r.forgets(fmt.Sprintf("server %v remembers number %d of this server in epoch %v; the journal ends at %d",
				p.id, m.Durable.Seq, m.Epoch, r.last.Seq))
		}
	}
	// An epoch of ours is followed here before anyone else hears of it. A candidate
	// may just be taking it for the second time.
	if own := g.State.Epoch; own.Server == r.cfg.Self && r.hard.Following.Less(own) {
		r.forgets(fmt.Sprintf("server %v knows epoch %v of this server; the journal follows %v", p.id, own, r.hard.Following))
	}
	if r.lacks(g) {
		r.forgets(fmt.Sprintf("number %d is committed at server %v, with this server in the in-sync set; the journal ends at %d",
			g.Committed, p.id, r.last.Seq))
	}
}

// lacks reports whether the peer knows of commits that this server must have
// acknowledged and does not hold: both count it in sync, and no loss that the
// operator accepted lies between.
func (r *Replica) lacks(g *wire.Greeting) bool {
	if r.blank() || g.Committed <= r.last.Seq || r.hard.Resync != nil || !inSync(&g.State, r.cfg.Self) {
		return false
	}
	if m, ok := member(&r.hard.State, r.cfg.Self); !ok || m.Incarnation != r.cfg.Incarnation {
		return false
	}
	if beforeAll(r.hard.History, g.Following) {
		return false // an old copy: what was lost since is not known any more
	}
	for i := range r.hard.History {
		// Which records an epoch of another server began without was for that server to know.
		h := &r.hard.History[i]
		given := h.Loss || h.First.Seq <= g.Committed && h.Epoch.Server != r.cfg.Self
		if given && g.Following.Less(h.Epoch) {
			return false
		}
	}
	return true
}

// lost says why the small state itself proves that the journal of server self once
// went beyond last: the image holds more, or an epoch of its own begins above,
// whose record was in the same batch as its name. "" when it proves nothing.
func (h *Hard) lost(self record.ServerID, last record.Seq) string {
	if h.Match > last {
		return fmt.Sprintf("the journal ends at %d; it held %d when epoch %v began", last, h.Match, h.Following)
	}
	if h.Checkpoint > last {
		return fmt.Sprintf("the image holds number %d; the journal ends at %d", h.Checkpoint, last)
	}
	if n := len(h.History); n > 0 && h.Following.Server == self && h.History[n-1].Epoch == h.Following && h.History[n-1].First.Seq > last {
		return fmt.Sprintf("epoch %v of this server begins at number %d; the journal ends at %d", h.Following, h.History[n-1].First.Seq, last)
	}
	return ""
}

// forgets takes in that this server's past is not to be believed.
func (r *Replica) forgets(why string) {
	if r.forgot != "" && !r.unlike || mutated("believe a server that forgot") {
		return
	}
	r.forgot, r.unlike = why, false
	r.warn("this server lost records that it had acknowledged; it must be resynced", "reason", why)
	if r.g.open && r.g.handing { // it was judged before
		r.endSurvey(fmt.Errorf("%w: this server's past is not believed: %s", ErrRefused, why))
	}
	if r.role != wire.RoleSlave {
		r.stepDown("its own past is not believed")
		return
	}
	if p := r.peer(r.s.master); p != nil && r.s.joined {
		// A greeting that was under way since before the Join tells it now.
		r.leaveMaster()
		r.send(p, r.greeting())
	}
}

// hearAnnounced remembers what a peer says that it holds, unless it is less than
// we remember.
func (r *Replica) hearAnnounced(p *peer, g *wire.Greeting) {
	if g.UUID.IsZero() || g.Resyncing || g.Following.IsZero() || r.amnesia(g, p.id) != "" {
		return
	}
	if i, ok := r.findMemory(p.id); ok && r.memory[i].Incarnation == g.Incarnation && !r.memory[i].Epoch.Less(g.Following) {
		return // a later acknowledgement came before the greeting
	}
	r.rememberAt(p.id, wire.Memory{Server: p.id, Incarnation: g.Incarnation, Epoch: g.Following, Durable: g.Last})
}

// amnesia says why a peer's past is not what we remember of it, or "".
func (r *Replica) amnesia(g *wire.Greeting, id record.ServerID) string {
	if mutated("believe another incarnation") || mutated("believe a server that forgot") {
		return ""
	}
	if why := r.contradicts(g, id); why != "" || !g.Forgot {
		return why
	}
	return "its own marks say that it held more"
}

// contradicts says where a greeting differs from what we remember of a peer, or "".
func (r *Replica) contradicts(g *wire.Greeting, id record.ServerID) string {
	p := r.peer(id)
	if p == nil || p.known == nil {
		return ""
	}
	m := p.known
	switch {
	case m.Incarnation != g.Incarnation && r.admitted(id, g.Incarnation):
		return "" // what is remembered is of the data directory before
	case m.Incarnation != g.Incarnation:
		return fmt.Sprintf("it is incarnation %v; %v acknowledged number %d: its data directory was replaced", g.Incarnation, m.Incarnation, m.Durable.Seq)
	case g.Following.Less(m.Epoch):
		return fmt.Sprintf("it follows epoch %v; it acknowledged in %v: its data directory is an older copy", g.Following, m.Epoch)
	case g.Following == m.Epoch && g.Last.Seq < m.Durable.Seq:
		return fmt.Sprintf("its journal ends at %d; it acknowledged %d: it lost records", g.Last.Seq, m.Durable.Seq)
	}
	return ""
}

// admitted reports whether a server is in sync as this incarnation: it was found
// equal since its data directory was replaced.
func (r *Replica) admitted(id record.ServerID, i record.Incarnation) bool {
	m, ok := member(&r.hard.State, id)
	return ok && m.Incarnation == i
}

func (r *Replica) findMemory(id record.ServerID) (int, bool) {
	return slices.BinarySearchFunc(r.memory, id, func(m wire.Memory, id record.ServerID) int { return m.Server.Compare(id) })
}

// remember notes the highest durable position that a peer acknowledged. It is
// stored with batches that are written anyway.
func (r *Replica) remember(p *peer, at record.Pos) {
	r.rememberAt(p.id, wire.Memory{Server: p.id, Incarnation: p.incarnation, Epoch: r.epoch(), Durable: at})
}

// rememberMaster notes, as a slave, what the master must have durable: everything
// committed. A master that comes back with less is not believed either.
func (r *Replica) rememberMaster() {
	p := r.peer(r.s.master)
	at := min(r.commit, r.last.Seq)
	if sum, ok := r.sums.at(at); ok && p != nil {
		r.remember(p, record.Pos{Seq: at, Sum: sum})
	}
}

func (r *Replica) rememberAt(id record.ServerID, m wire.Memory) {
	i, ok := r.findMemory(id)
	if !ok {
		r.memory = slices.Insert(r.memory, i, m)
	} else {
		r.memory[i] = m
	}
	r.memDirty++
}

// onLeaving hears that a server stops taking part.
func (r *Replica) onLeaving(p *peer, m *wire.Leaving) {
	reason := m.Reason
	if m.Restart {
		reason = "stopping: " + m.Reason
	}
	r.note("peer leaves", "peer", p.id.String(), "reason", reason, "failed", m.Failed)
	p.vowed = p.vowed || p.joined && r.role == wire.RoleMaster && m.Vow == r.epoch()
	p.joined, p.joining, p.admitting, p.lease = false, false, false, 0
	p.greeting = nil
	r.setState(p, Down, reason)
	if m.Failed {
		p.lastHeard = r.now.Add(-r.cfg.PeerTimeout - time.Nanosecond)
	}
}
