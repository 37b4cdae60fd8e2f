package replica

import (
	"strings"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// A slave that had promised a later epoch told its master so only when a record
// came. Without writes under way the master took it for a healthy member, and the
// changes of the set that it ordered were never noted.
func TestMasterWithoutWritesHearsOfAPromise(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	c.start("a", "b", "c")
	c.pass(time.Second)
	a, b := c.node("a"), c.node("b")
	c.unlink(a, b)
	c.run()
	b.step(Promote{ID: 1})
	c.run()
	c.pass(700 * time.Millisecond)
	if p := c.node("c").r.hard.Promised; p.Server != b.id {
		t.Fatalf("c has promised %v; want an epoch of b", p)
	}
	c.kill("b")
	c.pass(5 * time.Second)
	if e := a.r.hard.Promised; e.Counter < 3 {
		t.Fatalf("a goes on in epoch %v, which c has fenced", e)
	}
	c.start("b")
	c.pass(5 * time.Second)
	for _, n := range c.nodes {
		n.want(Healthy)
	}
}

// A slave learned that it had lost records only after it had joined: a greeting
// came late. Its master never heard of it, and went on to call it in sync.
func TestSlaveThatLearnsLateThatItForgotIsResynced(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	c.start("a", "b", "c")
	c.pass(time.Second)
	a, b, s := c.node("a"), c.node("b"), c.node("c")
	a.mustComplete(a.write(a.open("db1", 0), 0, "x"))
	c.pass(time.Second)
	g := b.r.greeting()
	g.Committed = s.r.last.Seq + 1
	s.step(Received{b.id, s.links[b.id], g})
	c.run()
	s.want(Diverged)
	c.pass(time.Second)
	a.want(Suspended)
	if res := a.command(func(n uint64) Event { return Forget{ID: n, Server: s.id} }); res == nil || res.Err != nil {
		t.Fatalf("forget a server that lost records: %+v", res)
	}
	c.pass(5 * time.Second)
	for _, n := range c.nodes {
		n.want(Healthy)
	}
	if s.base.Seq == 0 {
		t.Fatal("c is in sync again and was not resynced")
	}
}

// What a later mastership of another server began without is no loss of this one's
// journal.
func TestRecordsThatAnotherMasterGaveUpAreNotForgotten(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	c.start("a", "b", "c")
	c.pass(time.Second)
	a, b, s := c.node("a"), c.node("b"), c.node("c")
	g := a.r.greeting()
	c.kill("a")
	c.pass(3 * time.Second)
	if res := b.command(func(n uint64) Event { return Promote{ID: n} }); res == nil || res.Err != nil {
		t.Fatalf("promote b: %+v", res)
	}
	c.start("a")
	g.Committed = s.r.last.Seq + 1
	s.step(Received{a.id, s.links[a.id], g})
	c.run()
	if s.r.forgot != "" {
		t.Fatalf("c: %s", s.r.forgot)
	}
}

// A server whose data directory was lost, and whose image was not, told its operator
// to init the volume that the others hold.
func TestStatusOfALostJournalDoesNotPointToInit(t *testing.T) {
	c := newCluster(t, 2, wire.Suspend)
	c.start("a", "b")
	c.pass(time.Second)
	b := c.node("b")
	c.kill("b")
	b.hard, b.log, b.table, b.memory = Hard{}, nil, Table{}, nil
	b.cfg.Incarnation[9]++
	b.forgot = "its image has content"
	c.start("b")
	c.pass(time.Second)
	if v := b.r.View(c.now); v.State != Diverged || v.Next != "see there what to do: blockrepl status vol0" {
		t.Fatalf("%s: %s; next: %s", v.State, v.Reason, v.Next)
	}
	if v := c.node("a").r.View(c.now); v.Next != "bring b back, or go on without it: blockrepl forget vol0 b" {
		t.Fatalf("%s: %s; next: %s", v.State, v.Reason, v.Next)
	}
}

// A resync went on under the next master with extents of the one before, whose last
// records were given up.
func TestResyncBeginsAnewWhereWhatItCopiedWasGivenUp(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	c.start("a", "b", "c")
	c.pass(time.Second)
	a, b, s := c.node("a"), c.node("b"), c.node("c")
	c.kill("c")
	if res := a.command(func(n uint64) Event { return Forget{ID: n, Server: s.id} }); res == nil || res.Err != nil {
		t.Fatalf("forget c: %+v", res)
	}
	s.hard, s.log, s.table, s.memory, s.slowCopy = Hard{}, nil, Table{}, nil, true
	s.cfg.Incarnation[9]++
	c.start("c")
	c.pass(time.Second)
	if len(s.orders) != 1 {
		t.Fatalf("%d orders to copy; want 1", len(s.orders))
	}
	s.step(ResyncProgress{Order: s.orders[0].ID, Offset: 4096, Applied: 50})
	c.run()
	c.kill("a")
	c.pass(3 * time.Second)
	if res := b.command(func(n uint64) Event { return Promote{ID: n, OldMasterDead: true} }); res == nil || res.Err != nil {
		t.Fatalf("promote b: %+v", res)
	}
	c.pass(time.Second)
	if k := len(s.orders); k != 2 || s.orders[1].From != 0 || s.orders[1].High >= 50 {
		t.Fatalf("orders to copy: %+v; want a second one from the beginning", s.orders)
	}
}

// A server in sync lost the end of its journal when all had lost power, and the
// master had let those records go. The epoch waited for its resync, which waited for
// the epoch, and nobody was told to forget it.
func TestStatusPointsToForgetWhereTrimmedRecordsAreMissed(t *testing.T) {
	c := newCluster(t, 2, wire.Suspend)
	c.start("a", "b")
	c.pass(time.Second)
	a, b := c.node("a"), c.node("b")
	conn := a.open("db1", 0)
	for range 4 {
		a.mustComplete(a.write(conn, 0, "x"))
	}
	c.pass(time.Second)
	c.kill("a")
	c.kill("b")
	last := a.log[len(a.log)-1].Pos()
	a.hard.Checkpoint, a.base, a.log, a.memory = last.Seq, last, nil, nil
	b.log, b.memory = b.log[:len(b.log)-2], nil
	b.hard.Checkpoint = 0
	// It had been out, and had not noted yet that it was in sync again: so it does
	// not know itself that it must have acknowledged them.
	b.hard.State = without(b.hard.State, b.id)
	a.hard.State.Number = b.hard.State.Number + 1
	c.start("a", "b")
	c.pass(3 * time.Second)
	if v := a.r.View(c.now); v.State != Suspended || v.Next != "bring b back; or, to go on without it, if it will not be promoted: blockrepl forget vol0 b --force" {
		t.Fatalf("%s: %s; next: %s", v.State, v.Reason, v.Next)
	}
	if res := a.command(func(n uint64) Event { return Forget{ID: n, Server: b.id, Force: true} }); res == nil || res.Err != nil {
		t.Fatalf("forget b: %+v", res)
	}
	c.pass(3 * time.Second)
	for _, n := range c.nodes {
		n.want(Healthy)
	}
}

// A server died when the records of its resync were applied, and more behind them, and
// the end of the resync was not noted yet. Where those were given up it went on from
// the mark, with an image that held them.
func TestResyncBeginsAnewWhereMoreThanItsEndWasApplied(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	c.start("a", "b", "c")
	c.pass(time.Second)
	a, b, s := c.node("a"), c.node("b"), c.node("c")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "x"))
	c.pass(time.Second)
	end := a.r.last.Seq
	for _, out := range []*node{s, b} {
		c.kill(out.id.String())
		if res := a.command(func(n uint64) Event { return Forget{ID: n, Server: out.id, Force: true} }); res == nil || res.Err != nil {
			t.Fatalf("forget %v: %+v", out.id, res)
		}
	}
	a.mustComplete(a.write(conn, 0, "y"))
	c.kill("a")
	s.hard, s.log = a.hard, a.log
	s.hard.Checkpoint, s.hard.Resync = 0, &ResyncMark{Target: end - 1, High: end - 1, Offset: 1 << 20}
	s.slowCopy = true
	c.start("b", "c")
	c.pass(time.Second)
	if res := b.command(func(n uint64) Event { return Promote{ID: n, AcceptLoss: true} }); res == nil || res.Err != nil {
		t.Fatalf("promote b: %+v", res)
	}
	c.pass(time.Second)
	if len(s.orders) != 1 || s.orders[0].From != 0 || s.base.Seq < end {
		t.Fatalf("orders to copy: %+v, journal behind %v, state %+v; want the whole image copied anew", s.orders, s.base, s.hard.Resync)
	}
}

// What an image may hold was asked of the losses that were accepted after the newest
// epoch that its server had followed. A server that had followed a later one, in which
// nothing was ever committed, kept what an earlier loss had given up in its image.
func TestImageIsCopiedAnewForALossBelowAnEpochOfNobodyElse(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	c.start("a", "b", "c")
	c.pass(time.Second)
	a, b, s := c.node("a"), c.node("b"), c.node("c")
	conn := a.open("db1", 0)
	for range 4 {
		a.mustComplete(a.write(conn, 0, "x"))
	}
	c.pass(time.Second)
	c.kill("a")
	c.kill("b")
	b.log = b.log[:len(b.log)-3]
	c.start("b")
	c.pass(time.Second)
	if res := b.command(func(n uint64) Event { return Promote{ID: n, AcceptLoss: true} }); res == nil || res.Err != nil || res.Report.Needs != "accept-loss" {
		t.Fatalf("promote b: %+v", res)
	}
	for range 2 {
		c.pass(3 * time.Second)
		c.kill("b")
		c.start("b")
	}
	c.pass(3 * time.Second)
	e := record.Epoch{Counter: 3, Server: s.id}
	if !inSync(&b.hard.State, s.id) || b.r.epoch().Compare(e) < 0 {
		t.Fatalf("b: %+v", b.hard.State)
	}
	// c had taken an epoch that only a followed; a has all that was committed before.
	a.hard.State = without(a.hard.State, b.id)
	a.hard.State.Epoch, a.hard.State.Master = e, s.id
	a.hard.Promised, a.hard.Following = e, e
	a.hard.History = append(a.hard.History, wire.EpochStart{Epoch: e, First: record.Pos{Seq: a.log[len(a.log)-1].Seq + 1}, BaseNumber: 1, Set: a.hard.State.InSync})
	a.hard.Checkpoint, a.slowCopy = 0, true
	c.start("a")
	c.pass(time.Second)
	if len(a.orders) != 1 || a.orders[0].From != 0 {
		t.Fatalf("orders to copy: %+v; want the whole image copied anew\n%q", a.orders, a.notes)
	}
}

// A slave forwards from the moment it follows, before its Joined is durable. What came
// before the master served was dropped when it began to, and never asked for again.
func TestForwardBeforeJoinedIsNumberedWhenTheMasterServes(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	c.start("a", "b", "c")
	c.pass(time.Second)
	a, b, s := c.node("a"), c.node("b"), c.node("c")
	c.kill("c")
	c.pass(3 * time.Second)
	if res := a.command(func(n uint64) Event { return Forget{ID: n, Server: s.id} }); res == nil || res.Err != nil {
		t.Fatalf("forget c: %+v", res)
	}
	c.kill("a")
	c.kill("b")
	c.start("c")
	conn := s.open("db1", 0)
	op := s.write(conn, 0, "w1") // waits for a master
	b.frozen, s.frozen = true, true
	c.start("a", "b")
	// a's candidacy: b's promise must become durable, then b's Joined is slow.
	for range 200 {
		c.pass(10 * time.Millisecond)
		if a.r.role == wire.RoleMaster {
			break
		}
		for _, id := range b.waiting {
			b.step(Stored{id})
		}
		b.waiting = nil
		c.run()
	}
	if a.r.role != wire.RoleMaster || a.r.m.serving {
		t.Fatalf("a is %v", a.r.role)
	}
	c.pass(1500 * time.Millisecond)
	b.frozen = false
	for _, id := range b.waiting {
		b.step(Stored{id})
	}
	b.waiting = nil
	c.pass(500 * time.Millisecond)
	s.frozen = false
	for _, id := range s.waiting {
		s.step(Stored{id})
	}
	s.waiting = nil
	c.pass(20 * time.Second)
	for _, n := range c.nodes {
		n.want(Healthy)
	}
	s.mustComplete(op)
}

// A slave that looked up the sum for a Join while its old master still sent it records
// dropped the Join without an answer, and the new master waited for that for ever.
func TestJoinIsAnsweredAlthoughTheJournalGrewMeanwhile(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	c.start("a", "b", "c")
	c.pass(time.Second)
	a, b, s := c.node("a"), c.node("b"), c.node("c")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "x"))
	c.pass(time.Second)
	c.unlink(a, b)
	c.unlink(b, s)
	c.run()
	if res := b.command(func(n uint64) Event { return Promote{ID: n, OldMasterDead: true} }); res == nil || res.Err != nil {
		t.Fatalf("promote b: %+v", res)
	}
	// a does not know; what it numbers is not committed, and goes to c.
	submit := func(n int) {
		var ops []*Op
		for range n {
			ops = append(ops, &Op{Conn: conn, Rec: record.NewWrite(0, []byte("y"))})
		}
		a.step(Submit{ops})
	}
	for range 70 {
		submit(1000)
		c.run()
	}
	joins := 0
	c.mangle = func(to record.ServerID, m wire.Message) []wire.Message {
		if _, ok := m.(*wire.Join); ok && to == s.id {
			if joins++; joins == 1 {
				submit(1)
			}
		}
		return []wire.Message{m}
	}
	c.link(b, s)
	c.run()
	c.pass(time.Minute)
	if s.r.hard.Following.Server != b.id {
		t.Fatalf("c follows %v; b sent %d joins, is joining %v; b is %s: %s, next %q", s.r.hard.Following, joins, b.r.peer(s.id).joining,
			b.r.View(c.now).State, b.r.View(c.now).Reason, b.r.View(c.now).Next)
	}
}

// A master whose last change, which left c out, only it had stored, began its next epoch
// by that change: with the promise of b, which had promised c an epoch before. That one had
// begun, and c had completed writes in it.
func TestRestartWaitsForWhoeverItsLastChangeLeftOut(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	c.start("a", "b", "c")
	c.pass(time.Second)
	a, b, s := c.node("a"), c.node("b"), c.node("c")
	c.kill("b")
	if res := a.command(func(id uint64) Event { return Forget{ID: id, Server: b.id} }); res == nil || res.Err != nil {
		t.Fatalf("forget b: %+v", res)
	}
	c.mangle = func(_ record.ServerID, m wire.Message) []wire.Message {
		switch m.(type) {
		case *wire.Ack, *wire.StateUpdate:
			return nil
		}
		return []wire.Message{m}
	}
	c.start("b")
	c.pass(time.Second)
	if res := a.command(func(id uint64) Event { return Forget{ID: id, Server: s.id} }); res != nil {
		t.Fatalf("forget c ended: %+v", res)
	}
	if a.hard.Proposed == nil || len(a.hard.Proposed.InSync) != 1 || len(s.hard.State.InSync) != 2 {
		t.Fatalf("proposed is %+v, in sync at c are %v", a.hard.Proposed, s.hard.State.InSync)
	}
	c.kill("a")
	c.mangle = func(to record.ServerID, m wire.Message) []wire.Message {
		if _, ok := m.(*wire.Join); ok && to == b.id {
			return nil
		}
		return []wire.Message{m}
	}
	if res := s.command(func(id uint64) Event { return Promote{ID: id} }); res == nil || res.Err != nil {
		t.Fatalf("promote c: %+v", res)
	}
	s.mustComplete(s.write(s.open("db1", 0), 0, "x"))
	c.kill("c")
	c.start("a")
	c.pass(20 * time.Second)
	if v := a.r.View(c.now); v.Role != wire.RoleCandidate || !strings.HasPrefix(v.Next, "start c; or, if it is gone for good: blockrepl forget vol0 c --force") {
		t.Fatalf("a is %v, next %q; want it to wait for c", v.Role, v.Next)
	}
	c.mangle = nil
	c.start("c")
	c.pass(10 * time.Second)
	for _, n := range []*node{a, b, s} {
		n.want(Healthy)
	}
	if a.r.last != s.r.last || s.r.View(c.now).Role != wire.RoleMaster {
		t.Errorf("a ends at %v, c, the master, at %v", a.r.last, s.r.last)
	}
}
