package sim

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"slices"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/journal/record"
)

// reqKind is what a client asks for.
type reqKind uint8

const (
	reqWrite reqKind = iota + 1
	reqZero
	reqTrim
	reqRead
	reqStale // read with stale=ok
)

func (k reqKind) String() string {
	return [...]string{"", "write", "zero", "trim", "read", "stale read"}[k]
}

// request is one request of a client; its number is the value it writes.
type request struct {
	id     uint64
	kind   reqKind
	client int8
	lo, n  int
	inv    int64 // sent first
	res    int64 // answered; math.MaxInt64 before
	copies int
	failed bool // answered with an error

	seq    record.Seq   // lowest number that a copy got on the first line, 0: none
	line   *line        // on which it was done
	floors []record.Seq // reads: for each line, every write answered before has a number up to here
	before []int64      // reads: for each sector, when the newest write answered before began
	value  []uint64     // reads: what was seen
	mixed  int
}

func (q *request) changes() bool { return q.kind <= reqTrim }

// conn is one connection of a client to one server.
type conn struct {
	id     uint64
	client int8
	node   int8
	run    uint32
	token  uint64
	open   bool // the server knows it
	closed bool // by the client, or lost
	gone   bool // the server knows that it is closed
}

// client writes and reads, a few requests at a time, through one server; it moves
// to another one when it is sent away or waits too long, with a newer token, and
// sends again what was not answered.
type client struct {
	s        *Sim
	i        int8
	identity string
	takeover bool
	bare     bool // without a token: nobody can tell its connections apart
	conn     *conn
	token    uint64
	pending  []*request
	since    int64 // connected
	patience int64
}

func (s *Sim) addClient(i int) {
	c := &client{s: s, i: int8(i), identity: fmt.Sprintf("client%d", i), takeover: i > 0 && !s.prof.shared}
	c.bare = chance(s.dice.bits, s.prof.bare)
	s.clients = append(s.clients, c)
	s.at(s.dice.client.Int64N(int64(peerTimeout)), event{what: evClient, n: c.i})
}

// act is one moment of a client's life.
func (c *client) act() {
	s, r := c.s, c.s.dice.client
	if s.calm && s.now > s.calmAt+int64(s.prof.wind) && len(c.pending) == 0 {
		return // quiet at the end
	}
	s.at(exp(r, s.prof.think), event{what: evClient, n: c.i})
	switch {
	case c.conn == nil:
		c.connect()
	case len(c.pending) > 0 && s.now-max(c.since, c.pending[0].inv) > c.patience:
		c.leave("waited too long")
	case !s.calm && chance(r, s.prof.move):
		c.leave("moves")
	case len(c.pending) < s.prof.depth && (!s.calm || s.now <= s.calmAt+int64(s.prof.wind)):
		c.request()
	}
}

// connect looks for a server and sends again what was not answered.
func (c *client) connect() {
	s := c.s
	n := s.nodes[s.dice.client.IntN(len(s.nodes))]
	if !n.up || s.calm && n.broken() {
		return
	}
	if c.takeover && s.calm && s.now > s.calmAt+int64(s.prof.wind) {
		// Clients that take the volume from each other would do so for ever.
		for _, q := range c.pending {
			s.truth.open(q)
		}
		c.pending = nil
		return
	}
	if !c.bare {
		c.token++
	} else if len(c.pending) > 0 {
		s.hit(fBare, n)
	}
	c.since = s.now
	c.patience = int64(peerTimeout) + exp(s.dice.client, 3*peerTimeout)
	if s.prof.patient {
		c.patience = math.MaxInt64
	}
	k := &conn{id: uint64(len(s.conns)), client: c.i, node: n.i, run: n.run, token: c.token}
	s.conns = append(s.conns, k)
	c.conn = k
	s.tell(n.i, "client %d connects: connection %d, token %d, %d to send again", c.i, k.id, k.token, len(c.pending))
	n.after(s.latency(), event{what: evConn, a: k.id})
	slices.SortFunc(c.pending, func(a, b *request) int { return int(a.id) - int(b.id) })
	for _, q := range c.pending {
		c.send(q)
	}
}

// leave closes the connection; the server learns of it later.
func (c *client) leave(why string) {
	s, k := c.s, c.conn
	if k == nil {
		return
	}
	c.conn, k.closed = nil, true
	s.tell(k.node, "client %d leaves connection %d: %s, %d unanswered", c.i, k.id, why, len(c.pending))
	s.at(exp(s.dice.client, s.prof.fin), event{what: evGone, n: k.node, run: k.run, a: k.id})
	s.hit(fMove, s.nodes[k.node])
}

// request makes a new one.
func (c *client) request() {
	s, r := c.s, c.s.dice.client
	q := &request{id: uint64(len(s.reqs)), client: c.i, inv: s.now, res: math.MaxInt64}
	s.reqs = append(s.reqs, q)
	size := s.truth.top().size
	q.n = 1 + min(r.IntN(6), size-1)
	q.lo = r.IntN(size - q.n + 1)
	switch x := r.Float64(); {
	case x < s.prof.reads:
		q.kind = reqRead
		if chance(r, 0.2) {
			q.kind = reqStale
		}
		s.truth.begin(q)
	case x < s.prof.reads+0.1*(1-s.prof.reads):
		q.kind = reqZero
	case x < s.prof.reads+0.2*(1-s.prof.reads):
		q.kind = reqTrim
	default:
		q.kind = reqWrite
	}
	c.pending = append(c.pending, q)
	c.send(q)
}

func (c *client) send(q *request) {
	q.copies++
	n := c.s.nodes[c.conn.node]
	n.after(c.s.latency()+20_000, event{what: evOp, a: q.id, b: c.conn.id})
}

func (s *Sim) connArrives(ev *event) {
	k, n := s.conns[ev.a], s.nodes[ev.n]
	if k.gone {
		return
	}
	k.open = true
	c := s.clients[k.client]
	n.opened++
	n.post(replica.Open{Conn: k.id, Identity: c.identity, Token: k.token, Takeover: c.takeover})
}

// opArrives is a request at its server.
func (s *Sim) opArrives(ev *event) {
	k, q, n := s.conns[ev.b], s.reqs[ev.a], s.nodes[ev.n]
	if k.gone {
		return
	}
	if !k.open {
		n.after(100_000, *ev) // behind the connection
		return
	}
	if n.paused {
		n.after(n.wakes(), *ev)
		return
	}
	if q.changes() {
		n.in.ops = append(n.in.ops, arrival{q, k})
		n.kick()
		return
	}
	n.read(q)
}

// arrival is one copy of a request that came over a connection.
type arrival struct {
	q *request
	k *conn
}

// admit hands operations to the state machine, but for those whose connections
// the server knows to be closed.
func (n *node) admit(now replica.Time, ops []arrival) {
	if len(ops) == 0 {
		return
	}
	var list []*replica.Op
	for _, a := range ops {
		if a.k.gone || a.k.run != n.run {
			continue
		}
		list = append(list, &replica.Op{Conn: a.k.id, Rec: draft(a.q)})
	}
	if len(list) > 0 {
		n.step(now, replica.Submit{Ops: list})
	}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// draft makes the record of a request.
func draft(q *request) *record.Record {
	rec := &record.Record{Header: record.Header{Offset: int64(q.lo) * sectorBytes, Length: int64(q.n) * sectorBytes, Time: int64(q.id)}}
	switch q.kind {
	case reqWrite:
		rec.Kind = record.KindWrite
		rec.Stored = uint32(q.n * sectorBytes)
		rec.Raw = make([]byte, record.HeaderSize+int(rec.Stored))
		for i := range q.n {
			putValue(rec.Raw[record.HeaderSize+i*sectorBytes:], q.id)
		}
		rec.PayloadSum = crc32.Checksum(rec.Raw[record.HeaderSize:], castagnoli)
		return rec
	case reqZero:
		rec.Kind = record.KindZero
	case reqTrim:
		rec.Kind = record.KindTrim
	}
	rec.Raw = make([]byte, record.HeaderSize)
	return rec
}

func putValue(b []byte, v uint64) { binary.LittleEndian.PutUint64(b, v) }
func getValue(b []byte) uint64    { return binary.LittleEndian.Uint64(b) }

// complete answers a change.
func (n *node) complete(done *replica.Completion) {
	s := n.s
	if done.Op.Conn == 0 {
		return
	}
	q, k := s.reqs[done.Op.Rec.Time], s.conns[done.Op.Conn]
	if done.Err == nil {
		s.truth.completed(n, q)
	}
	if k.gone {
		return
	}
	bad := uint64(0)
	if done.Err != nil {
		bad = 1
		s.tell(n.i, "request %d is refused: %v", q.id, done.Err)
	}
	s.at(s.latency(), event{what: evReply, n: n.i, p: k.client, a: q.id, b: k.id<<1 | bad})
}

// reply reaches the client, if it still has the connection.
func (s *Sim) reply(ev *event) {
	q, c, k := s.reqs[ev.a], s.clients[ev.p], s.conns[ev.b>>1]
	if c.conn != k || k.closed || q.res != math.MaxInt64 {
		return
	}
	q.res, q.failed = s.now, ev.b&1 != 0
	c.pending = slices.DeleteFunc(c.pending, func(p *request) bool { return p == q })
	s.truth.answered(q)
}

// abort closes a connection without a reply.
func (n *node) abort(id uint64) {
	k := n.s.conns[id]
	if k.gone {
		return
	}
	k.gone = true
	n.opened--
	n.post(replica.Gone{Conn: id})
	n.s.at(n.s.latency(), event{what: evLost, a: id})
}

// connGone tells the server that a connection is closed.
func (s *Sim) connGone(ev *event) {
	k, n := s.conns[ev.a], s.nodes[ev.n]
	if k.gone {
		return
	}
	k.gone = true
	if k.open {
		n.opened--
		n.post(replica.Gone{Conn: k.id})
	}
}

// connLost tells the client.
func (s *Sim) connLost(ev *event) {
	k := s.conns[ev.a]
	k.closed = true
	if c := s.clients[k.client]; c.conn == k {
		c.conn = nil
	}
}

// dropConns ends the connections of a node whose process is gone.
func (s *Sim) dropConns(n *node) {
	for _, c := range s.clients {
		if k := c.conn; k != nil && k.node == n.i && k.run == n.run {
			s.at(s.latency(), event{what: evLost, a: k.id})
		}
	}
}

// read looks at once where the shell does, else waits for a round.
func (n *node) read(q *request) {
	q.mixed = n.mixed
	if q.kind == reqStale {
		if n.stale {
			n.see(q)
			return
		}
		if k := n.connOf(q); k != 0 { // else the client sends it again
			n.after(int64(50*time.Millisecond), event{what: evOp, a: q.id, b: k})
		}
		return
	}
	if n.app.applied >= n.commit && n.now() < n.lease {
		n.see(q)
		return
	}
	n.in.reads = append(n.in.reads, q.id)
	n.kick()
}

func (n *node) connOf(q *request) uint64 {
	if c := n.s.clients[q.client]; c.conn != nil {
		return c.conn.id
	}
	return 0
}

// grant gives a round its turn; each read looks when its goroutine comes to it.
func (n *node) grant(round uint64) {
	for _, id := range n.rounds[round] {
		n.after(n.s.dice.client.Int64N(int64(300*time.Microsecond)), event{what: evLook, a: id, b: uint64(n.mixed)})
	}
	delete(n.rounds, round)
}

func (n *node) look(ev *event) {
	q := n.s.reqs[ev.a]
	if n.paused {
		n.after(n.wakes(), *ev)
		return
	}
	if n.mixed != int(ev.b) {
		n.in.reads = append(n.in.reads, q.id)
		n.kick()
		return
	}
	n.see(q)
}

func (m *image) look(q *request) []uint64 { return slices.Clone(m.val[q.lo : q.lo+q.n]) }

// see reads the image and answers.
func (n *node) see(q *request) {
	if q.res != math.MaxInt64 {
		return
	}
	c := n.s.clients[q.client]
	if c.conn == nil || c.conn.node != n.i || c.conn.run != n.run {
		return
	}
	if n.ill || n.image.blind(q.lo, q.n) && n.cannotSee(q, c) {
		return
	}
	q.value = n.image.look(q)
	n.s.truth.saw(n, q)
	n.s.at(n.s.latency(), event{what: evReply, n: n.i, p: c.i, a: q.id, b: c.conn.id << 1})
}
