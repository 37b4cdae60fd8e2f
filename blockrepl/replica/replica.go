package replica

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Replica is one volume on one server. It is not safe for concurrent use.
//
// Invariants: hard.Checkpoint <= applied <= applyTo <= min(commit, durable);
// durable <= last.Seq; commit never falls; hard.Following <= hard.Promised.
type Replica struct {
	cfg  Config
	now  Time
	wall int64 // ns since 1970, stamped on the server's own records
	out  *Effects

	hard    Hard
	first   record.Seq // lowest number kept
	last    record.Pos // the journal's end, being stored included
	durable record.Seq // fsynced here
	// followed is hard.Following as far as it is fsynced: what others may remember.
	followed record.Epoch
	commit   record.Seq
	applyTo  record.Seq // told to the shell
	applied  record.Seq
	sums     sums
	free     int64
	image    wire.Room

	role   wire.Role
	reason string     // of RoleFailed
	forgot string     // why this server's past is not believed; "" when it is
	unlike bool       // forgot is Saved.Unlike
	hole   record.Seq // this server failed since its image can never hold that; 0: it did not
	born   Time
	// filling: an init gives the image its content. Then elsewhere is the epoch of a
	// volume that this server was asked to join meanwhile, zero when it was not.
	filling   bool
	elsewhere record.Epoch
	// promisedAt is when the newest promise was given, for who may take it up again.
	promisedAt Time

	m *master    // when role is master
	c *candidate // when role is candidate
	s slave      // when role is slave
	g survey     // a promotion being looked into, on any role
	l lease      // granted to the master, as a slave

	peers []*peer // every other member, ascending by ID
	// strangers are the open links to servers that are no members as far as is known:
	// one that our configuration lacks may be a member by the volume's state.
	strangers []LinkUp

	// The journal.
	storeID uint64
	storing []storing
	synced  Time             // when one of storing was last durable, or the first of them was ordered
	batch   []*record.Record // numbered or received in this Step, not yet in a Store

	// The table of attachments: as applied, as of last, and the records between.
	table    Table // as of applied
	numbered Table // as of last
	marks    []*record.Record

	f     forwarding
	reads rounds
	redo  redo
	resy  resync

	lookups  []lookup
	counters map[string]uint64
	memory   []wire.Memory // ascending by Server
	memAt    Time
	memDirty int // acknowledgements since it was last stored
	splitBy  record.ServerID
	stopID   uint64          // the Stop command to be answered; 0: none
	vowing   uint64          // likewise, when the vow is durable
	vowed    record.Epoch    // hard.Vow, once it is
	stepped  Time            // when the last event was taken
	stopTo   record.ServerID // who was asked to take over then
	trimmed  record.Seq
	kept     keptBytes
	plain    keptBytes // likewise, of what records write into the image, uncompressed
}

// New makes the replica of a server that has just started.
func New(cfg Config, saved Saved, now Time) *Replica {
	r := &Replica{
		cfg: cfg, now: now, born: now,
		hard: saved.Hard, first: saved.First, last: saved.Last, durable: saved.Last.Seq,
		free: saved.Free, image: saved.Image, forgot: saved.Forgot, role: wire.RoleSlave,
		sums: newSums(saved.Last, saved.Sums), memory: saved.Memory,
		counters: map[string]uint64{}, trimmed: max(saved.First, 1) - 1,
	}
	if r.first == 0 {
		r.first = 1
	}
	r.hard.takeGrow()
	r.commit, r.applied, r.applyTo = r.hard.Checkpoint, r.hard.Checkpoint, r.hard.Checkpoint
	if mutated("redo past the commit number") {
		r.commit = r.last.Seq
	}
	r.table = saved.Table
	if r.table.AsOf == 0 && r.table.Size == 0 {
		r.table.Size = r.size0()
	}
	r.numbered = r.table.clone()
	for _, m := range saved.Marks {
		r.marks = append(r.marks, m)
		r.numbered.apply(m, r.hard.State.Shared)
	}
	r.followed = r.hard.Following
	if r.cfg.History == 0 {
		r.cfg.History = historyKeep
	}
	if mutated("believe a server that forgot") {
		r.forgot = ""
	}
	if r.forgot == "" {
		r.forgot = r.hard.lost(cfg.Self, saved.Last.Seq)
	}
	if r.forgot == "" {
		r.forgot = r.hard.Forgot
	}
	if r.forgot == "" {
		r.forgot, r.unlike = saved.Unlike, saved.Unlike != ""
	}
	r.f.next = cfg.OpBase
	r.l.until = now.Add(max(cfg.PeerTimeout, r.hard.Lease)) // the last run may have granted it
	if mutated("forget the leases of an earlier run") {
		r.l.until = now.Add(cfg.PeerTimeout)
	}
	r.promisedAt = now
	r.setPeers(r.members())
	r.redo = redo{pending: !r.blank(), held: saved.Last.Seq}
	r.kept.reset(r.first - 1)
	r.kept.found(r.last.Seq, saved.Bytes)
	r.plain.reset(r.last.Seq) // what is above the checkpoint is applied before this server serves
	return r
}

// SetWall tells the wall clock for the records this server makes itself.
func (r *Replica) SetWall(ns int64) { r.wall = ns }

// Step takes in one event and appends to out what is to be done.
func (r *Replica) Step(now Time, ev Event, out *Effects) {
	r.now, r.out = max(now, r.now), out
	if r.stepped != 0 && r.now.Sub(r.stepped) > r.cfg.PeerTimeout/2 {
		r.woke()
	}
	r.stepped = r.now
	if r.role != wire.RoleFailed {
		if r.forgot != r.hard.Forgot && !r.unlike {
			r.hard.Forgot = r.forgot
			r.saveHard(nil)
		}
		r.take(ev)
		r.advance()
	} else {
		r.takeFailed(ev)
	}
	r.flush()
	r.out = nil
}

func (r *Replica) take(ev Event) {
	switch ev := ev.(type) {
	case Tick:
		r.tick()
	case Submit:
		r.submit(ev.Ops)
	case Received:
		r.received(ev)
	case Stored:
		r.stored(ev.ID)
	case Applied:
		r.notMissed(ev.Missed)
		r.onApplied(ev.Seq)
	case Read:
		r.read(ev.ID)
	case Open:
		r.open(ev)
	case Gone:
		r.gone(ev.Conn)
	case ImageSynced:
		r.imageSynced(ev.Seq, ev.Image)
	case Looked:
		r.looked(ev)
	case Unreadable:
		r.unreadable(ev)
	case Space:
		r.free, r.image = ev.Free, ev.Image
		r.trimPlain()
	case LinkUp:
		r.linkUp(ev)
	case LinkDown:
		r.linkDown(ev)
	case ResyncProgress:
		r.resyncProgress(ev)
	case Failed:
		r.fail(ev)
	case Promote:
		r.promote(ev)
	case Forget:
		r.forget(ev)
	case Resolve:
		r.resolve(ev)
	case Resize:
		r.resize(ev)
	case SetOptions:
		r.setOptions(ev)
	case InitStart:
		r.initStart(ev)
	case Init:
		r.initialize(ev)
	case InitEnd:
		r.initEnd()
	case Stop:
		r.stop(ev)
	default:
		panic(fmt.Sprintf("blockrepl: bug: event %T", ev))
	}
}

// received hands a message to its room. What comes from a session that is no
// longer the peer's is dropped: its sender has been told by the link's end.
func (r *Replica) received(ev Received) {
	p := r.peer(ev.Peer)
	if p == nil || p.session == 0 || p.session != ev.Session {
		return
	}
	p.lastHeard = r.now
	switch m := ev.Msg.(type) {
	case *wire.Append:
		r.onAppend(p, m)
	case *wire.Ack:
		r.onAck(p, m)
	case *wire.Forward:
		r.onForward(p, m)
	case *wire.Heartbeat:
		r.onHeartbeat(p, m)
	case *wire.HeartbeatAck:
		r.onHeartbeatAck(p, m)
	case *wire.ReadIndex:
		r.onReadIndex(p, m)
	case *wire.ReadIndexOK:
		r.onReadIndexOK(p, m)
	case *wire.Request:
		r.onRequest(p, m)
	case *wire.Refuse:
		r.onRefuse(p, m)
	case *wire.Greeting:
		r.onGreeting(p, m)
	case *wire.Query:
		r.send(p, r.greeting())
	case *wire.Prepare:
		r.onPrepare(p, m)
	case *wire.Promise:
		r.onPromise(p, m)
	case *wire.Join:
		r.onJoin(p, m)
	case *wire.Joined:
		r.onJoined(p, m)
	case *wire.StateUpdate:
		r.onStateUpdate(p, m)
	case *wire.StateAck:
		r.onStateAck(p, m)
	case *wire.Handover:
		r.onHandover(p, m)
	case *wire.HandoverReady:
		r.onHandoverReady(p, m)
	case *wire.TakeOver:
		r.onTakeOver(p, m)
	case *wire.Leaving:
		r.onLeaving(p, m)
	}
}

// advance draws the conclusions that any event may have made possible.
func (r *Replica) advance() {
	switch r.role {
	case wire.RoleMaster:
		r.advanceMaster()
	case wire.RoleCandidate:
		r.tryElect()
	}
	r.advanceApply()
	r.advanceTrim()
}

// advanceApply lets records go to the image: committed, and durable here (promise
// 3). While extents are being copied nothing is applied (resync.go).
func (r *Replica) advanceApply() {
	to := min(r.commit, r.durable)
	if mutated("apply before commit") {
		to = r.durable
	}
	if r.hard.Resync != nil && r.hard.Resync.Target == 0 {
		return
	}
	if r.followed != r.hard.Following {
		return // after a crash nobody would know whose word the image was changed by
	}
	if to > r.applyTo {
		r.applyTo = to
		r.out.Apply = to
	}
}

// notMissed takes in records that the start could not read: without a mark the table would
// admit stale writes, and without a resize a resync compare too little. Nothing relies on
// the table before they are applied: this server serves nothing, and resyncs nobody.
func (r *Replica) notMissed(recs []*record.Record) {
	for _, rec := range recs {
		i, there := slices.BinarySearchFunc(r.marks, rec.Seq, func(m *record.Record, q record.Seq) int { return cmp.Compare(m.Seq, q) })
		if changesTable(rec.Kind) && !there && rec.Seq > r.applied && rec.Seq > r.table.AsOf {
			r.marks = slices.Insert(r.marks, i, rec)
			r.renumberTable()
		}
	}
}

// onApplied takes in that the image holds everything through seq.
func (r *Replica) onApplied(seq record.Seq) {
	if seq <= r.applied {
		return
	}
	r.applied = seq
	r.trimPlain()
	for len(r.marks) > 0 && r.marks[0].Seq <= seq {
		r.table.apply(r.marks[0], r.hard.State.Shared)
		r.marks = r.marks[1:]
	}
	r.table.AsOf = max(r.table.AsOf, seq)
	r.complete()
	r.redo.applied(r)
	r.readsApplied()
	r.resyncApplied()
}

// imageSynced moves the checkpoint: the table and the number are stored together.
func (r *Replica) imageSynced(seq record.Seq, image []Sample) {
	if r.unlike {
		return // the samples are the right image's
	}
	if mutated("checkpoint what is applied") {
		seq = max(seq, r.applied)
	}
	ends := r.resy.ending && seq >= r.hard.Resync.Target
	same := seq == r.hard.Checkpoint && (r.hard.Resync != nil || slices.Equal(image, r.hard.Image))
	if seq > r.applied || seq < r.hard.Checkpoint || same && !ends {
		return
	}
	r.hard.Checkpoint, r.hard.Image = seq, image
	ended := r.endResync()
	t := r.table.clone()
	r.store(Store{Table: &t, Hard: r.hardCopy(), Memory: r.memoryCopy()}, ended)
}

// believe takes what this server has for its past again: it is replaced, or the
// operator says so.
func (r *Replica) believe() { r.forgot, r.hard.Forgot, r.unlike = "", "", false }

// blank reports whether this server has never seen the volume.
func (r *Replica) blank() bool { return r.hard.State.Epoch.IsZero() }

// members are the volume's servers: the state's, else the configuration's.
func (r *Replica) members() []record.ServerID {
	if !r.blank() {
		return r.hard.State.Members
	}
	return r.cfg.Create.Members
}

func (r *Replica) size0() int64 {
	if !r.blank() {
		return r.hard.State.Size
	}
	return r.cfg.Create.Size
}

// epoch is the one whose stream this server follows or makes.
func (r *Replica) epoch() record.Epoch { return r.hard.Following }

func (r *Replica) note(text string, args ...any) {
	r.out.Notes = append(r.out.Notes, Note{Text: text, Args: args})
}

func (r *Replica) warn(text string, args ...any) {
	r.out.Notes = append(r.out.Notes, Note{Text: text, Args: args, Warn: true})
}

func (r *Replica) count(what string, n int) { r.counters[what] += uint64(n) }

// wake asks for a Tick at t.
func (r *Replica) wake(t Time) {
	if r.out.Wake == 0 || t < r.out.Wake {
		r.out.Wake = t
	}
}

// fail ends this server's part: it acknowledges nothing any more, says why, and
// its clients are sent away without a reply to find another server.
func (r *Replica) fail(ev Failed) {
	r.warn("volume failed on this server; it takes no further part until a restart", "what", ev.What, "err", ev.Err)
	r.reason = fmt.Sprintf("%s: %v", ev.What, ev.Err)
	for _, p := range r.peers {
		if p.session != 0 {
			r.send(p, &wire.Leaving{Reason: r.reason, Failed: true})
		}
	}
	r.role = wire.RoleFailed
	r.m, r.c = nil, nil
	r.result(Result{ID: r.vowing})
	r.batch = nil
	r.abortAll(r.reason)
}

// takeFailed handles the little that a failed replica still answers.
func (r *Replica) takeFailed(ev Event) {
	err := fmt.Errorf("%w: %s", ErrFailed, r.reason)
	switch ev := ev.(type) {
	case Submit:
		for _, op := range ev.Ops {
			r.out.Abort = append(r.out.Abort, Abort{op.Conn, r.reason})
		}
	case LinkUp:
		if p := r.peer(ev.Peer); p != nil {
			p.session = ev.Session
			r.send(p, &wire.Leaving{Reason: r.reason, Failed: true})
		}
	case Promote:
		r.out.Results = append(r.out.Results, Result{ID: ev.ID, Err: err})
	case Forget:
		r.out.Results = append(r.out.Results, Result{ID: ev.ID, Err: err})
	case Resolve:
		r.out.Results = append(r.out.Results, Result{ID: ev.ID, Err: err})
	case Resize:
		r.out.Results = append(r.out.Results, Result{ID: ev.ID, Err: err})
	case SetOptions:
		r.out.Results = append(r.out.Results, Result{ID: ev.ID, Err: err})
	case InitStart:
		r.out.Results = append(r.out.Results, Result{ID: ev.ID, Err: err})
	case Init:
		r.out.Results = append(r.out.Results, Result{ID: ev.ID, Err: err})
	case Stop:
		r.out.Results = append(r.out.Results, Result{ID: ev.ID})
	}
}
