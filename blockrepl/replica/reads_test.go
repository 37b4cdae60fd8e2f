package replica

import (
	"errors"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

func TestReadOnASlaveWaitsForTheMastersCommitNumber(t *testing.T) {
	c := three(t, wire.Suspend)
	a, b := c.node("a"), c.node("b")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "x"))
	b.step(Read{ID: 5})
	c.run()
	if !b.reads[5] || b.r.applied < a.r.commit {
		t.Fatalf("read granted %v, applied %d of %d", b.reads[5], b.r.applied, a.r.commit)
	}
	c.unlink(b, a)
	b.step(Read{ID: 6})
	c.pass(5 * time.Second)
	if b.reads[6] {
		t.Fatal("a read was granted without a master")
	}
}

func TestMasterWithoutItsSlavesLosesTheLease(t *testing.T) {
	c := three(t, wire.Suspend)
	a := c.node("a")
	c.pass(time.Second)
	if c.now >= a.r.Lease() {
		t.Fatal("no lease in a healthy cluster")
	}
	c.unlink(a, c.node("b"))
	if c.now < a.r.Lease() {
		t.Fatal("the lease outlives the link")
	}
}

// A read on the master saw an older value than a write that had completed at a
// slave, which was faster in applying it.
func TestReadOnTheMasterWaitsForWhatASlaveMayHaveAnswered(t *testing.T) {
	c := three(t, wire.Suspend)
	a := c.node("a")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "x"))
	a.r.commit++ // committed, not applied yet
	a.step(Read{ID: 9})
	if a.reads[9] {
		t.Fatal("the read was granted before everything committed was applied")
	}
	a.r.commit--
}

// After an orderly stop of one server reads on the master waited for its lease.
func TestReadsGoOnAfterAnOrderlyStop(t *testing.T) {
	c := three(t, wire.Suspend)
	a, b := c.node("a"), c.node("b")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "x"))
	read := func(id uint64) bool {
		a.step(Read{ID: id})
		c.pass(3 * time.Second)
		return a.reads[id]
	}
	if res := b.command(func(id uint64) Event { return Stop{ID: id, Handover: true} }); res == nil || res.Err != nil {
		t.Fatalf("stop: %+v", res)
	}
	if b.hard.Vow != a.r.epoch() || b.r.Vow() != b.hard.Vow {
		t.Fatalf("the vow is of epoch %v, durable %v; the master's is %v", b.r.Vow(), b.hard.Vow, a.r.epoch())
	}
	b.deliver(a.id, b.links[a.id], &wire.Leaving{Reason: "stops", Restart: true, Vow: b.r.Vow()})
	c.run()
	c.kill("b")
	if !read(1) {
		t.Error("a read waits for a server that has stopped in order")
	}
	op := a.write(conn, 0, "y")
	a.mustWait(op)

	// It keeps its vow while it has not followed the master again.
	c.kill("b")
	a.up = false // in no reach of b, and alive
	c.start("b")
	a.up = true
	res := b.command(func(id uint64) Event { return Promote{ID: id} })
	if res == nil || !errors.Is(res.Err, ErrRefused) || res.Report.Needs != "old-master-dead" {
		t.Errorf("promote behind the back of the master: %+v", res)
	}
	c.link(a, b)
	c.pass(time.Second)
	a.mustComplete(op)
	if !b.hard.Vow.IsZero() {
		t.Errorf("b follows the master again and has still vowed %v", b.hard.Vow)
	}

	c.kill("b") // without a word
	if read(2) {
		t.Error("a read went on without the lease of a server that may be promoted")
	}
}

// A read that waited for a number which the operator then gave up kept every later
// read of that server behind it, until the new numbers had come as far.
func TestReadsGoOnAfterTheNumberThatOneWaitedForWasGivenUp(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	c.start("a", "b", "c")
	c.pass(time.Second)
	a, b, s := c.node("a"), c.node("b"), c.node("c")
	c.kill("b")
	c.kill("c")
	c.pass(3 * time.Second)
	a.step(Forget{ID: 1, Server: b.id, Force: true}) // goes on in the next one
	if res := a.command(func(q uint64) Event { return Forget{ID: q, Server: s.id, Force: true} }); res == nil || res.Err != nil {
		t.Fatalf("forget c: %+v", res)
	}
	conn := a.open("db1", 0)
	for range 20 {
		a.mustComplete(a.write(conn, 0, "x"))
	}
	// b and c come back and follow; the records are still on their way.
	c.mangle = func(to record.ServerID, m wire.Message) []wire.Message {
		if _, ok := m.(*wire.Append); ok {
			return nil
		}
		return []wire.Message{m}
	}
	c.start("b", "c")
	s.step(Read{1})
	c.pass(700 * time.Millisecond)
	if len(s.r.reads.granted) != 1 || s.r.last.Seq >= s.r.reads.granted[0].commit {
		t.Fatalf("c's read does not wait for records: %+v", s.r.reads)
	}
	c.kill("a")
	c.mangle = nil
	c.pass(3 * time.Second)
	if res := b.command(func(q uint64) Event { return Promote{ID: q, AcceptLoss: true} }); res == nil || res.Err != nil {
		t.Fatalf("promote b: %+v", res)
	}
	c.pass(5 * time.Second)
	if len(b.r.hard.State.InSync) != 2 {
		t.Fatalf("in sync are %v", names(ids(b.r.hard.State.InSync)))
	}
	s.step(Read{2})
	c.pass(10 * time.Second)
	if !s.reads[2] {
		v := s.r.View(c.now)
		t.Fatalf("a read on c waits; it waits for numbers %d, c has applied %d of %d; c is %s", s.r.reads.granted[0].commit, v.Applied, v.Last, v.State)
	}
}

// hide cuts a server off so that the others notice at once and it does only by its clock.
func (c *cluster) hide(id string) {
	h := c.node(id)
	for _, n := range c.nodes {
		if s := n.links[h.id]; n != h && s != 0 {
			n.step(LinkDown{h.id, s, "cut"})
			delete(n.links, h.id)
		}
	}
	c.run()
}

// promoteBehind promotes b behind the back of a, which is hidden and whose lease is
// granted, and has it complete a write: a must not read any more by then.
func (c *cluster) promoteBehind(b, a *node) {
	c.t.Helper()
	if c.now >= a.r.Lease() {
		c.t.Fatal("a has no lease")
	}
	commandID++
	id := commandID
	b.step(Promote{ID: id})
	for range 2000 {
		if _, ok := b.results[id]; ok {
			break
		}
		c.pass(10 * time.Millisecond)
	}
	if res, ok := b.results[id]; !ok || res.Err != nil {
		c.t.Fatalf("promote b: %v, %+v", ok, res)
	}
	b.mustComplete(b.write(b.open("db1", 2), 0, "new"))
	if left := a.r.Lease().Sub(c.now); left > 0 {
		c.t.Fatalf("a reads for another %v, and b has completed a write", left)
	}
}

// While peer_timeout is changed server by server (each restart has the new one) the
// master trusted leases for longer than its slaves had granted them: it read its old
// image after another server had been promoted and had completed a write.
func TestLeaseLastsNoLongerThanItWasGranted(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	a, b := c.node("a"), c.node("b")
	a.cfg.PeerTimeout = 10 * time.Second // b and c: 2 s
	c.start("a", "b", "c")
	c.pass(3 * time.Second)
	a.mustComplete(a.write(a.open("db1", 1), 0, "old"))
	c.pass(time.Second)
	c.hide("a")
	c.promoteBehind(b, a)
}

// A slave that was restarted with a shorter peer_timeout waited for that time only: a
// lease that it had granted before lasted longer.
func TestRestartWaitsForTheLeasesOfTheRunBefore(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	a, b, s := c.node("a"), c.node("b"), c.node("c")
	for _, n := range c.nodes {
		n.cfg.PeerTimeout = 10 * time.Second
	}
	c.start("a", "b", "c")
	c.pass(4 * time.Second)
	restart := func(d time.Duration) {
		c.hide("a")
		c.kill("b")
		c.kill("c")
		b.cfg.PeerTimeout, s.cfg.PeerTimeout = d, d
		a.up = false // no link to it is made
		c.start("b", "c")
		a.up = true
	}
	restart(2 * time.Second)
	restart(2 * time.Second) // the run between granted none, and does not count
	c.promoteBehind(b, a)
}

// What was granted for longer is waited for until it has run out, and not after.
func TestLongLeasesAreForgottenOnceTheyRanOut(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	for _, n := range c.nodes {
		n.cfg.PeerTimeout = 10 * time.Second
	}
	c.start("a", "b", "c")
	c.pass(4 * time.Second)
	b := c.node("b")
	for _, n := range c.nodes {
		n.cfg.PeerTimeout = 2 * time.Second
	}
	for i, x := range []struct{ want, runs time.Duration }{
		{10 * time.Second, 5 * time.Second}, // in which it follows, and grants for 2 s
		{10 * time.Second, 11 * time.Second},
		{2 * time.Second, time.Second},
	} {
		c.kill("b")
		c.start("b")
		if got := b.r.l.until.Sub(c.now); got != x.want {
			t.Errorf("start %d: leases of before are waited for for %v, want %v", i, got, x.want)
		}
		c.pass(x.runs)
		c.unlink(b, c.node("a")) // it follows once more
		c.link(b, c.node("a"))
		c.pass(time.Second)
	}
}

// Beside slaves with a much shorter peer_timeout reads on the master would wait for
// each heartbeat.
func TestMasterKeepsShorterLeasesAlive(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	a := c.node("a")
	a.cfg.PeerTimeout = time.Minute
	beats := 0
	c.mangle = func(_ record.ServerID, m wire.Message) []wire.Message {
		if _, ok := m.(*wire.Heartbeat); ok {
			beats++
		}
		return []wire.Message{m}
	}
	c.start("a", "b", "c")
	c.pass(20 * time.Second)
	beats = 0
	for range 1000 {
		c.pass(10 * time.Millisecond)
		if c.now >= a.r.Lease() {
			t.Fatal("a's lease has run out with everyone there")
		}
	}
	if beats > 2*25 {
		t.Errorf("%d heartbeats to two slaves in 10 s, want no more than 50", beats)
	}
}

// A server that restarted while it was behind heard a commit number that the next
// mastership, by an accepted loss, never reached: readers with stale=ok waited until
// so many new writes had come.
func TestRedoEndsWhereTheNextMastershipsNumbersDo(t *testing.T) {
	c := three(t, wire.Suspend)
	b, s := c.node("b"), c.node("c")
	// As after a restart: of what the master says is committed the journal has nothing yet.
	s.r.redo = redo{pending: true, held: s.r.last.Seq, to: s.r.last.Seq + 1000}
	if s.r.StaleReadable() {
		t.Fatal("the image is taken for the state after a number before the redo ends")
	}
	c.kill("a")
	if res := b.command(func(id uint64) Event { return Promote{ID: id, OldMasterDead: true, AcceptLoss: true} }); res == nil || res.Err != nil {
		t.Fatalf("promote b: %+v", res)
	}
	c.pass(time.Second)
	if !s.r.StaleReadable() {
		t.Fatalf("c holds the state after %d of %d and may not be read: %+v", s.r.applied, s.r.commit, s.r.redo)
	}
}
