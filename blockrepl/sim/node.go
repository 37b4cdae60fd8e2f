package sim

import (
	"slices"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// node is one server: its disks, which outlive a crash, and one run of its process.
//
// The process is the shell's volume loop: what happens while the loop is busy
// waits in the inbox, and is taken in the shell's order, disks first.
type node struct {
	s           *Sim
	i           int8
	id          record.ServerID
	incarnation record.Incarnation
	clock       clock
	timeout     time.Duration // replica.Config.PeerTimeout of this run
	journal     journal
	image       image
	mark        mark // in memory
	markFile    mark // on disk

	// One run.
	up        bool
	run       uint32
	rep       *replica.Replica
	eff       replica.Effects
	in        inbox
	taken     []replica.Event // of the last round, for reuse
	queued    bool            // in Sim.ready
	scheduled bool            // an evRound is on the heap
	busyUntil int64
	paused    bool
	pausedTo  int64
	nextTick  replica.Time
	tickAt    int64    // the earliest evTick on the heap
	sickDisk  bool     // the next fsync fails
	dead      bool     // the journal failed
	sick      sickness // of the image's disk
	ill       bool     // the image failed
	slowTo    int64    // the disk is slow until then
	hungTo    int64    // no fsync ends before
	app       applier
	sync      syncing
	copying   copying
	filling   *filling   // an init under way
	ring      record.Seq // records from it on are in memory, too
	mends     []*mending
	mendID    uint64
	cursors   [nodesMax]cursor
	rounds    map[uint64][]uint64 // read rounds: requests
	roundID   uint64
	mixed     int // counts the beginnings of mixtures
	stops     map[uint64]bool

	// Published at the end of a round, as the shell does for readers and senders.
	commit, floor record.Seq
	lease         replica.Time
	stale         bool
	epoch         record.Epoch

	// The oracle's.
	line    *line        // of what it commits
	seen    record.Seq   // commit number looked at
	damaged bool         // a fault took away what it had acknowledged
	warned  bool         // the operator was told not to promote it
	leftBy  record.Epoch // the promotion that left it out, when that was it
	without wire.State   // the change of which that was told, when it was not commanded
	out     bool         // it knows that it is not in sync, and is told to keep its side
	rash    bool         // as a candidate it was told to go on without others
	held    bool         // the operator keeps it down
	doubt   wire.State   // the newest when it was told to be forgotten
	looks   int          // rounds, for holding
	opened  int          // connections that its state machine was told of and that are not gone
	ailed   int          // how often status had named its disk then
	failed  int          // how often it had failed when the operator looked
	tidy    bool         // stopping in order
	copyOf  *backup
	spared  int64 // the only one who knows what another has lost: no crash before
}

// inbox is what waits for the loop.
type inbox struct {
	stored  uint64
	applied record.Seq
	missed  []*record.Record // with applied
	synced  record.Seq
	events  []replica.Event
	ops     []arrival
	reads   []uint64
}

// mark is the second local file (rule 10): what was durable when it was noted.
type mark struct {
	durable   record.Pos
	following record.Epoch
	promised  record.Epoch
}

// clock is a node's boot-time clock: its own zero and its own rate.
type clock struct {
	zero int64
	ppm  int64
}

func (c *clock) at(t int64) replica.Time { return replica.Time(c.zero + t + t/1e6*c.ppm) }

// until is when the clock will have shown t.
func (c *clock) until(t replica.Time) int64 {
	d := int64(t) - c.zero
	return d - d/(1e6+c.ppm)*c.ppm + 2000
}

func newNode(s *Sim, i int) *node {
	n := &node{s: s, i: int8(i), id: serverIDs[i]}
	r := s.dice.node
	n.clock = clock{zero: r.Int64N(int64(time.Hour)), ppm: r.Int64N(20001) - 10000}
	n.newData()
	n.line = s.truth.lines[0]
	return n
}

// newData is an empty data directory.
func (n *node) newData() {
	r := n.s.dice.node
	for i := range n.incarnation {
		n.incarnation[i] = byte(r.Uint32())
	}
	n.incarnation[0] |= 1
	n.journal = newJournal()
	n.image.init(n.s.prof.sectors)
	n.mark, n.markFile = mark{}, mark{}
}

func (n *node) now() replica.Time { return n.clock.at(n.s.now) }

// after schedules an event of this run.
func (n *node) after(d int64, ev event) {
	ev.n, ev.run = n.i, n.run
	n.s.at(d, ev)
}

// config is the replica's.
func (n *node) config() replica.Config {
	p := &n.s.prof
	var uuid record.VolumeID
	for i := range uuid {
		uuid[i] = byte(n.s.dice.node.Uint32())
	}
	uuid[0] |= 1
	return replica.Config{
		Self: n.id, Incarnation: n.incarnation, PeerTimeout: n.timeout,
		First: serverIDs[0], History: p.clients, OpBase: n.s.dice.node.Uint64() >> 16,
		Create: wire.State{
			Members: slices.Clone(serverIDs[:p.nodes]), Size: int64(p.sectors) * sectorBytes,
			OnDegraded: p.policy, Shared: p.shared, Keep: p.keep, Name: "vol", UUID: uuid,
		},
	}
}

// start begins a run on what the disks hold.
func (n *node) start() {
	if n.up || n.held {
		return
	}
	n.drawTimeout()
	n.run++
	n.up, n.paused, n.dead, n.scheduled, n.queued, n.tidy = true, false, false, false, false, false
	n.in, n.app, n.sync, n.copying, n.cursors = inbox{}, applier{}, syncing{}, copying{}, [nodesMax]cursor{}
	n.rash, n.filling, n.mends, n.opened = false, nil, nil, 0
	n.ring = n.journal.os.last.Seq + 1
	n.rounds, n.stops = map[uint64][]uint64{}, map[uint64]bool{}
	n.eff = replica.Effects{}
	n.mark = n.markFile
	n.busyUntil, n.tickAt, n.nextTick = 0, 0, n.now()
	saved := n.journal.saved()
	saved.Free = n.s.prof.free
	saved.Forgot = n.markFile.forgot(&saved, &n.journal)
	if saved.Hard.State.Epoch.IsZero() && n.image.val != [sectorsMax]uint64{} && saved.Forgot == "" {
		saved.Unlike = "the image has content, and the journal knows nothing of it"
	}
	n.image.evict(n, false)
	if n.sick == sickFull {
		saved.Image = wire.Room{Bytes: 1, At: saved.Hard.Checkpoint}
	}
	n.rep = replica.New(n.config(), saved, n.now())
	n.app.missed = saved.Missed
	at := saved.Hard.Checkpoint
	if m := saved.Hard.Resync; m != nil {
		at = max(at, m.Base)
	}
	n.app.target, n.app.applied = at, at
	n.image.seq, n.image.sum = at, n.journal.os.sumAt(at)
	n.line = n.s.truth.lineOf(n)
	n.seen = saved.Hard.Checkpoint
	n.s.tell(n.i, "starts: journal %v..%v, checkpoint %v, forgot %q", saved.First, saved.Last.Seq, at, saved.Forgot)
	n.publish()
	n.kick()
}

// drawTimeout gives the next run its peer_timeout, which the operator may be changing
// server by server.
func (n *node) drawTimeout() {
	was := n.timeout
	n.timeout = peerTimeout
	if n.s.prof.uneven {
		n.timeout = pick(n.s.dice.time, peerTimeout/2, peerTimeout, 2*peerTimeout, 4*peerTimeout)
	}
	if was != 0 && n.timeout != was {
		n.s.hit(fUneven, n)
	}
}

// forgot compares the marks with the journal, as the shell does at a start.
func (k *mark) forgot(saved *replica.Saved, j *journal) string {
	h := &saved.Hard
	switch {
	case *k == mark{}:
		return ""
	case h.Promised.Less(k.promised):
		return "the journal promised less than the marks remember"
	case h.Following.Less(k.following):
		return "the journal follows an older epoch than the marks remember"
	case k.following.Less(h.Following) || h.Resync != nil:
		return ""
	case saved.Last.Seq < k.durable.Seq:
		return "the journal ends below what the marks remember"
	}
	if rec := j.os.get(k.durable.Seq); rec != nil && j.spotAt(k.durable.Seq) == nil && rec.Sum != k.durable.Sum {
		return "a record has another sum than the marks remember"
	}
	return ""
}

// writeMarks makes the marks durable.
func (n *node) writeMarks() {
	n.markFile = n.mark
	n.sync.marks = false
}

// kick lets the loop run when it is free.
func (n *node) kick() {
	if !n.up {
		return
	}
	until := n.busyUntil
	if n.paused {
		until = max(until, n.pausedTo)
	}
	if until <= n.s.now {
		if !n.queued {
			n.queued = true
			n.s.ready = append(n.s.ready, n)
		}
		return
	}
	if !n.scheduled {
		n.scheduled = true
		n.after(until-n.s.now, event{what: evRound})
	}
}

// wakes is when a paused node may be looked at again: a little after its pause, or
// a little later, when that is over and its loop is still busy.
func (n *node) wakes() int64 { return max(n.pausedTo-n.s.now, 0) + 1000 }

func (n *node) post(ev replica.Event) {
	n.in.events = append(n.in.events, ev)
	n.kick()
}

// round takes all that happened, in the shell's order.
func (n *node) round() {
	if !n.up || n.paused && n.s.now < n.pausedTo {
		return
	}
	if n.paused {
		n.paused = false
		n.s.tell(n.i, "wakes")
	}
	in := n.in
	n.in = inbox{events: n.taken[:0]}
	now := n.now()
	n.rep.SetWall(1<<60 + n.s.now)
	if in.stored > 0 {
		n.step(now, replica.Stored{ID: in.stored})
	}
	if in.applied > 0 {
		n.step(now, replica.Applied{Seq: in.applied, Missed: in.missed})
	}
	if in.synced > 0 {
		n.step(now, replica.ImageSynced{Seq: in.synced})
	}
	for _, ev := range in.events {
		n.step(now, ev)
	}
	n.admit(now, in.ops)
	if len(in.reads) > 0 {
		n.roundID++
		n.rounds[n.roundID] = in.reads
		n.step(now, replica.Read{ID: n.roundID})
	}
	if now >= n.nextTick {
		n.nextTick = now.Add(n.timeout / 8)
		n.step(now, replica.Tick{})
	}
	clear(in.events)
	n.taken = in.events
	n.finish()
	if n.up {
		n.s.holding(n)
	}
	if n.up && chance(n.s.dice.node, 0.5) {
		n.busyUntil = n.s.now + n.s.dice.node.Int64N(int64(200*time.Microsecond))
	}
	n.armTick()
}

// armTick has the loop woken in time.
func (n *node) armTick() {
	if !n.up {
		return
	}
	at := max(n.clock.until(n.nextTick), n.s.now+1)
	if n.tickAt <= n.s.now || at < n.tickAt {
		n.tickAt = at
		n.after(at-n.s.now, event{what: evTick})
	}
}

// step lets the state machine take in one event. What cuts or drops the journal
// is carried out at once: numbers mean other records after it.
func (n *node) step(now replica.Time, ev replica.Event) {
	if m, ok := ev.(replica.Received); ok && n.up {
		if _, join := m.Msg.(*wire.Join); join {
			n.finish() // which may stop it
		}
	}
	if !n.up {
		return
	}
	n.rep.Step(now, ev, &n.eff)
	n.s.watch(n)
	if k := len(n.eff.Stores); k > 0 && (n.eff.Stores[k-1].Cut != nil || n.eff.Stores[k-1].Reset != nil) || n.eff.Resync != nil {
		n.finish()
	}
}

// publish lets readers and senders see where the volume is.
func (n *node) publish() {
	n.commit, n.lease, n.floor = n.rep.Commit(), n.rep.Lease(), n.rep.Floor()
	n.stale, n.epoch = n.rep.StaleReadable(), n.rep.Epoch()
}

// finish publishes and carries out.
func (n *node) finish() {
	n.publish()
	if w := n.eff.Wake; w != 0 {
		n.nextTick = min(n.nextTick, w)
	}
	n.carryOut(&n.eff)
	n.eff.Reset()
}

// carryOut does what the effects say, in the order of effect.go.
func (n *node) carryOut(e *replica.Effects) {
	s := n.s
	for i := range e.Stores {
		n.store(&e.Stores[i])
	}
	for _, c := range e.CloseLinks {
		s.tell(n.i, "closes the link to %v: %s", c.Peer, c.Reason)
		s.closeSession(n, c.Session)
	}
	for i := range e.Sends {
		m := &e.Sends[i]
		s.send(n, m.Session, m.Msg)
	}
	for i := range e.Streams {
		n.stream(&e.Streams[i])
	}
	if e.Apply != 0 {
		n.applyTo(e.Apply)
	}
	if e.SyncImage != 0 {
		n.sync.want = e.SyncImage
		n.checkpoint(true)
	}
	for i := range e.Complete {
		n.complete(&e.Complete[i])
	}
	for _, round := range e.Reads {
		n.grant(round)
	}
	for _, a := range e.Abort {
		n.abort(a.Conn)
	}
	for _, l := range e.Lookups {
		if p := n.journal.spotAt(l.Seq); l.Mend && p != nil && n.journal.lookUp(l.Seq) == 0 {
			n.mend(p, p.Seq, forLookup)
			continue
		}
		n.looked(l.Seq)
	}
	if e.Resync != nil {
		n.order(e.Resync)
	}
	if e.Trim != 0 && !n.dead {
		s.trimmed(n, e.Trim)
		n.journal.trim(e.Trim)
	}
	if e.Fail != nil {
		n.failRead(e.Fail.Err)
	}
	for i := range e.Results {
		s.oper.result(s, n, &e.Results[i])
	}
	for i := range e.Notes {
		t := &e.Notes[i]
		s.tell(n.i, "%s %v", t.Text, t.Args)
		s.oper.noted(s, n, t)
	}
}

func (n *node) looked(seq record.Seq) {
	ev := replica.Looked{Seq: seq}
	if sum := n.journal.lookUp(seq); sum != 0 {
		ev.Pos, ev.OK = record.Pos{Seq: seq, Sum: sum}, true
	}
	n.post(ev)
}

// store hands one batch to the journal.
func (n *node) store(st *replica.Store) {
	if n.dead {
		return
	}
	n.s.storing(n, st)
	if st.Cut != nil || st.Reset != nil {
		n.cursors = [nodesMax]cursor{}
	}
	if st.Cut != nil {
		n.ring = min(n.ring, st.Cut.Seq+1)
	}
	if st.Reset != nil {
		n.ring = st.Reset.Seq + 1
		n.app.reset(st.Reset.Seq)
		n.image.seq, n.image.sum = st.Reset.Seq, st.Reset.Sum
		n.in.applied, n.in.missed, n.in.synced = 0, nil, 0
		n.sync.gen++
		n.mixed++
	}
	n.journal.write(*st)
	n.fsync()
}

// fsync begins one for everything that waits, unless one is under way.
func (n *node) fsync() {
	j := &n.journal
	if j.syncing || len(j.pending) == 0 || n.dead {
		return
	}
	j.syncing = true
	n.after(n.diskTime(), event{what: evFsynced, a: j.pending[len(j.pending)-1].ID})
}

// diskTime draws how long a disk takes.
func (n *node) diskTime() int64 {
	mean := n.s.prof.disk
	if n.slowTo > n.s.now {
		mean = peerTimeout / 2
	}
	return int64(50*time.Microsecond) + exp(n.s.dice.disk, mean)
}

func (n *node) fsynced(store uint64) {
	j := &n.journal
	if n.hungTo > n.s.now { // looked at again: the calm, or the operator, ends it
		n.after(min(n.hungTo-n.s.now, int64(peerTimeout)/4), event{what: evFsynced, a: store})
		return
	}
	j.syncing = false
	if n.sickDisk {
		n.sickDisk, n.dead = false, true
		n.s.tell(n.i, "journal fsync fails")
		n.post(replica.Failed{What: "journal", Err: errDisk})
		return
	}
	j.durableThrough(store)
	n.mark = mark{j.durable.last, j.durable.hard.Following, j.durable.hard.Promised}
	if !n.sync.marks {
		n.sync.marks = true
		n.after(exp(n.s.dice.disk, peerTimeout/4), event{what: evMarks})
	}
	n.in.stored = max(n.in.stored, store)
	n.kick()
	n.fsync()
}
