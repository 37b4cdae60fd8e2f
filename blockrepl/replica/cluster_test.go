package replica

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// cluster runs replicas against perfect disks and links: every effect is carried
// out before the next event, in a fixed order. Faults are the script's to make.
type cluster struct {
	t       *testing.T
	now     Time
	nodes   []*node
	queue   []func() // effects under way
	session uint64
	// mangle gives what arrives instead of a message; nil: the message.
	mangle func(to record.ServerID, m wire.Message) []wire.Message
	// show is told what each step wants done; nil: nobody looks.
	show func(n *node, e *Effects)
}

type node struct {
	c        *cluster
	id       record.ServerID
	cfg      Config
	r        *Replica
	up       bool
	links    map[record.ServerID]uint64
	log      []*record.Record // durable; log[i].Seq == first+i
	base     record.Pos
	hard     Hard
	table    Table
	memory   []wire.Memory
	image    record.Seq // applied
	done     map[uint64]error
	reads    map[uint64]bool
	aborted  map[uint64]string
	results  map[uint64]Result
	notes    []string
	orders   []ResyncOrder // that were not carried out, with
	slowCopy bool
	frozen   bool // journal writes are not durable yet
	still    bool // the image takes nothing; what it should hold is
	target   record.Seq
	waiting  []uint64
	forgot   string
	unlike   string
	aside    []*record.Record
	cursors  map[uint64]record.Seq // of the senders, by session
	bad      []record.Seq          // records of log that cannot be read, and that nobody else has
	lent     bool                  // another server has them after all, for who asks
	asking   record.Seq            // the others are asked for it, to be sent; 0: none
	askedAt  Time
	unread   []record.Seq // at the start
}

func newCluster(t *testing.T, n int, policy wire.OnDegraded) *cluster {
	c := &cluster{t: t, now: Time(time.Hour)}
	var members []record.ServerID
	for i := range n {
		members = append(members, record.MustServerID(string(rune('a'+i))))
	}
	for i, id := range members {
		nd := &node{c: c, id: id, cfg: Config{
			Self: id, Incarnation: record.Incarnation{byte(i + 1)}, PeerTimeout: 2 * time.Second, First: members[0], OpBase: uint64(i+1) << 32,
			Create: wire.State{Members: members, Size: 1 << 20, OnDegraded: policy, Keep: 1 << 30, Name: "vol0", UUID: record.VolumeID{9, byte(i)}},
		}, done: map[uint64]error{}, reads: map[uint64]bool{}, aborted: map[uint64]string{}, results: map[uint64]Result{}}
		c.nodes = append(c.nodes, nd)
	}
	return c
}

func (c *cluster) node(id string) *node {
	for _, n := range c.nodes {
		if n.id.String() == id {
			return n
		}
	}
	c.t.Fatalf("no node %s", id)
	return nil
}

func (c *cluster) start(ids ...string) {
	for _, id := range ids {
		n := c.node(id)
		n.up = true
		n.links = map[record.ServerID]uint64{}
		s := Saved{Hard: n.hard, First: n.base.Seq + 1, Last: n.base, Table: n.table, Memory: n.memory, Free: 1 << 40, Forgot: n.forgot, Unlike: n.unlike}
		for _, rec := range n.log {
			s.Last = rec.Pos()
			if slices.Contains(n.bad, rec.Seq) && slices.Contains(n.bad, rec.Seq-1) {
				s.Sums = nil // of the one before
			}
			s.Sums = append(s.Sums, rec.Sum)
			if slices.Contains(n.bad, rec.Seq) {
				s.Missed = append(s.Missed, rec.Seq)
				continue
			}
			if changesTable(rec.Kind) && rec.Seq > n.table.AsOf {
				s.Marks = append(s.Marks, rec)
			}
		}
		n.image, n.unread = n.hard.Checkpoint, s.Missed
		n.r = New(n.cfg, s, c.now)
		for _, m := range c.nodes {
			if m != n && m.up {
				c.link(n, m)
			}
		}
	}
	c.run()
}

func (c *cluster) link(a, b *node) {
	c.session++
	a.links[b.id], b.links[a.id] = c.session, c.session
	a.step(LinkUp{b.id, c.session, b.cfg.Incarnation})
	b.step(LinkUp{a.id, c.session, a.cfg.Incarnation})
}

func (c *cluster) unlink(a, b *node) {
	s := a.links[b.id]
	if s == 0 {
		return
	}
	delete(a.links, b.id)
	delete(b.links, a.id)
	if a.up {
		a.step(LinkDown{b.id, s, "cut"})
	}
	if b.up {
		b.step(LinkDown{a.id, s, "cut"})
	}
}

// kill ends a process: what was not durable is gone.
func (c *cluster) kill(id string) {
	n := c.node(id)
	n.up = false
	n.waiting = nil
	for _, m := range c.nodes {
		if m != n && m.up {
			c.unlink(n, m)
		}
	}
	c.run()
}

func (c *cluster) run() {
	for steps := 0; len(c.queue) > 0; steps++ {
		if steps > 200000 {
			c.t.Fatal("the cluster does not come to rest")
		}
		f := c.queue[0]
		c.queue = c.queue[1:]
		f()
	}
}

// pass lets d go by in small steps.
func (c *cluster) pass(d time.Duration) {
	for end := c.now.Add(d); c.now < end; {
		c.now = c.now.Add(10 * time.Millisecond)
		for _, n := range c.nodes {
			if n.up && n.asking != 0 && c.now.Sub(n.askedAt) > time.Second/2 {
				seq := n.asking
				n.asking = 0
				n.step(Unreadable{Seq: seq})
			}
			if n.up {
				n.step(Tick{})
			}
		}
		c.run()
	}
}

func (n *node) step(ev Event) {
	var e Effects
	n.r.Step(n.c.now, ev, &e)
	if n.c.show != nil {
		n.c.show(n, &e)
	}
	n.carryOut(&e)
}

func (n *node) later(f func()) {
	r := n.r
	n.c.queue = append(n.c.queue, func() {
		if n.up && n.r == r {
			f()
		}
	})
}

func (n *node) carryOut(e *Effects) {
	for _, s := range e.Stores {
		n.storeOne(s)
	}
	for _, m := range e.Sends {
		n.deliver(m.To, m.Session, m.Msg)
	}
	for _, s := range e.Streams {
		n.stream(s)
	}
	if e.Apply != 0 {
		to := e.Apply
		n.target = to
		n.later(func() {
			if n.still {
				return
			}
			for seq := n.image + 1; seq <= to; seq++ {
				if slices.Contains(n.bad, seq) {
					n.step(Unreadable{Seq: seq, Apply: true})
					return
				}
			}
			n.image = to
			n.step(Applied{Seq: to, Missed: n.missed(to)})
		})
	}
	if e.SyncImage != 0 {
		to := e.SyncImage
		n.later(func() { n.step(ImageSynced{Seq: to}) })
	}
	for _, d := range e.Complete {
		n.done[d.Op.Rec.Operation] = d.Err
	}
	for _, id := range e.Reads {
		n.reads[id] = true
	}
	for _, a := range e.Abort {
		n.aborted[a.Conn] = a.Reason
	}
	for _, l := range e.CloseLinks {
		if other := n.c.node(l.Peer.String()); n.links[l.Peer] == l.Session {
			n.c.queue = append(n.c.queue, func() { n.c.unlink(n, other); n.c.link(n, other) })
		}
	}
	for _, l := range e.Lookups {
		n.later(func() { n.step(n.look(l)) })
	}
	for _, res := range e.Results {
		n.results[res.ID] = res
	}
	for _, note := range e.Notes {
		n.notes = append(n.notes, fmt.Sprint(note.Text, note.Args))
	}
	if o := e.Resync; o != nil && !o.Stop {
		n.later(func() {
			m := n.c.node(o.To.String())
			if n.slowCopy {
				n.orders = append(n.orders, *o)
				return
			}
			n.step(ResyncProgress{Order: o.ID, Offset: o.Size, Applied: m.r.applied, Done: true})
		})
	}
	if e.Trim != 0 {
		n.trim(e.Trim)
	}
	if e.Fail != nil {
		f := *e.Fail
		n.later(func() { n.step(f) })
	}
}

// missed are the records through to that the start could not read.
func (n *node) missed(to record.Seq) (recs []*record.Record) {
	for _, rec := range n.log {
		if slices.Contains(n.unread, rec.Seq) && rec.Seq <= to {
			recs = append(recs, rec)
		}
	}
	return recs
}

func (n *node) storeOne(s Store) {
	n.later(func() {
		if s.Cut != nil {
			n.aside = append(n.aside, n.log[s.Cut.Seq-n.base.Seq:]...)
			n.log = n.log[:s.Cut.Seq-n.base.Seq]
			n.bad = slices.DeleteFunc(n.bad, func(q record.Seq) bool { return q > s.Cut.Seq })
		}
		if s.Reset != nil {
			n.log, n.base, n.image, n.bad = nil, *s.Reset, s.Reset.Seq, nil
		}
		n.log = append(n.log, s.Records...)
		if s.Hard != nil {
			n.hard = *s.Hard
		}
		if s.Table != nil {
			n.table = *s.Table
		}
		if s.Memory != nil {
			n.memory = s.Memory
		}
		if n.frozen {
			n.waiting = append(n.waiting, s.ID)
			return
		}
		n.step(Stored{s.ID})
	})
}

func (n *node) trim(to record.Seq) {
	for len(n.log) > 0 && n.log[0].Seq <= to {
		n.base = n.log[0].Pos()
		n.log = n.log[1:]
	}
}

func (n *node) look(l Lookup) Looked {
	seq := l.Seq
	if l.Mend && n.lent {
		n.bad = nil
	}
	if seq == n.base.Seq {
		return Looked{seq, n.base, true}
	}
	if seq < n.base.Seq || seq > n.base.Seq+record.Seq(len(n.log)) {
		return Looked{Seq: seq}
	}
	if slices.Contains(n.bad, seq) && slices.Contains(n.bad, seq+1) {
		return Looked{Seq: seq} // nor does the next one tell
	}
	return Looked{seq, n.log[seq-n.base.Seq-1].Pos(), true}
}

func (n *node) deliver(to record.ServerID, session uint64, m wire.Message) {
	if n.c.mangle == nil {
		n.deliverOne(to, session, m)
		return
	}
	for _, m := range n.c.mangle(to, m) {
		n.deliverOne(to, session, m)
	}
}

func (n *node) deliverOne(to record.ServerID, session uint64, m wire.Message) {
	other := n.c.node(to.String())
	n.c.queue = append(n.c.queue, func() {
		if other.up && other.links[n.id] == session {
			if f, ok := m.(*wire.Forward); ok {
				m = copyForward(n.c.t, f)
			}
			other.step(Received{n.id, session, m})
		}
	})
}

func copyForward(t *testing.T, f *wire.Forward) *wire.Forward {
	c := *f
	c.Records = nil
	for _, rec := range f.Records {
		d, _, err := record.DecodeDraft(append([]byte(nil), rec.Raw...))
		if err != nil {
			t.Fatalf("decode draft: %v", err)
		}
		c.Records = append(c.Records, d)
	}
	return &c
}

// stream sends what the journal holds by the time it is carried out.
func (n *node) stream(s Stream) {
	n.later(func() {
		a := &wire.Append{Epoch: s.Epoch, Commit: n.r.Commit(), Floor: n.r.Floor()}
		if n.cursors == nil {
			n.cursors = map[uint64]record.Seq{}
		}
		if s.From != 0 {
			n.cursors[s.Session] = s.From
		}
		for _, rec := range n.log {
			if rec.Seq >= n.cursors[s.Session] && rec.Seq <= s.End {
				if slices.Contains(n.bad, rec.Seq) {
					n.asking, n.askedAt = rec.Seq, n.c.now
					return
				}
				a.Records = append(a.Records, rec)
			}
		}
		n.cursors[s.Session] = s.End + 1
		n.deliver(s.To, s.Session, a)
	})
}

var connID uint64

// open connects a client to a node.
func (n *node) open(identity string, token uint64) uint64 {
	connID++
	n.step(Open{Conn: connID, Identity: identity, Token: token})
	n.c.run()
	return connID
}

// write submits one write and gives its handle.
func (n *node) write(conn uint64, off int64, text string) *Op {
	op := &Op{Conn: conn, Rec: record.NewWrite(off, []byte(text))}
	n.step(Submit{[]*Op{op}})
	n.c.run()
	return op
}

// completed reports whether op was answered, and how.
func (n *node) completed(op *Op) (bool, error) {
	err, ok := n.done[op.Rec.Operation]
	return ok && op.stage == opDone, err
}

func (n *node) mustComplete(op *Op) {
	n.c.t.Helper()
	if ok, err := n.completed(op); !ok || err != nil {
		n.c.t.Fatalf("write on %v: completed %v, error %v; %+v", n.id, ok, err, n.r.View(n.c.now))
	}
}

func (n *node) mustWait(op *Op) {
	n.c.t.Helper()
	if ok, err := n.completed(op); ok {
		n.c.t.Fatalf("write on %v completed with %v, want it to wait", n.id, err)
	}
}

func (n *node) want(s Condition) {
	n.c.t.Helper()
	if v := n.r.View(n.c.now); v.State != s {
		n.c.t.Fatalf("%v is %s (%s), want %s\nnotes: %q", n.id, v.State, v.Reason, s, n.notes)
	}
}

var commandID uint64 = 1000

// command gives one command and returns its result, or nil while it waits.
func (n *node) command(make func(id uint64) Event) *Result {
	commandID++
	id := commandID
	n.step(make(id))
	n.c.run()
	n.c.pass(10 * time.Millisecond)
	if res, ok := n.results[id]; ok {
		return &res
	}
	n.c.pass(5 * time.Second)
	if res, ok := n.results[id]; ok {
		return &res
	}
	return nil
}

func draftWrite(off int64, text string) *record.Record { return record.NewWrite(off, []byte(text)) }
