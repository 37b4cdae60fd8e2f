package replica

import (
	"errors"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
)

func three(t *testing.T, policy wire.OnDegraded) *cluster {
	c := newCluster(t, 3, policy)
	c.start("a", "b", "c")
	c.pass(time.Second)
	return c
}

func TestVolumeComesIntoBeingWhenAllMembersAreThere(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	c.start("a", "b")
	c.pass(time.Second)
	c.node("a").want(Suspended)
	c.start("c")
	c.pass(time.Second)
	for _, id := range []string{"a", "b", "c"} {
		c.node(id).want(Healthy)
	}
}

func TestWriteAtTheMasterIsOnEveryServer(t *testing.T) {
	c := three(t, wire.Suspend)
	a := c.node("a")
	op := a.write(a.open("db1", 0), 4096, "hello")
	a.mustComplete(op)
	c.pass(time.Second)
	for _, n := range c.nodes {
		if n.r.last != a.r.last || n.r.applied != a.r.last.Seq {
			t.Errorf("%v: last %v applied %d, master has %v", n.id, n.r.last, n.r.applied, a.r.last)
		}
	}
}

func TestWriteIsNotAnsweredBeforeASlaveIsDurable(t *testing.T) {
	c := three(t, wire.Suspend)
	a, b := c.node("a"), c.node("b")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "first"))
	b.frozen = true
	op := a.write(conn, 0, "second")
	a.mustWait(op)
	if a.r.applied >= op.seq {
		t.Fatalf("number %d is applied before it is committed", op.seq)
	}
	b.frozen = false
	b.step(Stored{b.waiting[len(b.waiting)-1]})
	c.run()
	a.mustComplete(op)
}

// The greeting of a new link says what is fsynced; the journal may hold more of the
// same epoch, and keeps it.
func TestNewLinkInTheSameEpochSetsNothingAside(t *testing.T) {
	c := three(t, wire.Suspend)
	a, b := c.node("a"), c.node("b")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "first"))
	b.frozen = true
	op := a.write(conn, 0, "second")
	a.mustWait(op)
	c.unlink(a, b)
	c.link(a, b)
	c.run()
	a.mustWait(op)
	b.frozen = false
	b.step(Stored{b.waiting[len(b.waiting)-1]})
	c.run()
	a.mustComplete(op)
	if len(b.aside) > 0 || b.r.last != a.r.last {
		t.Errorf("b set %d records aside and ends at %v, the master at %v", len(b.aside), b.r.last, a.r.last)
	}
}

func TestWriteThroughASlaveIsAnsweredWhenAppliedThere(t *testing.T) {
	c := three(t, wire.Suspend)
	b := c.node("b")
	op := b.write(b.open("db1", 0), 0, "by b")
	c.pass(50 * time.Millisecond)
	b.mustComplete(op)
	if b.r.applied < op.seq {
		t.Fatalf("answered at number %d, applied %d", op.seq, b.r.applied)
	}
}

func TestSilentSlaveSuspendsWritesUntilItIsBack(t *testing.T) {
	c := three(t, wire.Suspend)
	a := c.node("a")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "x"))
	c.kill("c")
	op := a.write(conn, 0, "y")
	c.pass(5 * time.Second)
	a.mustWait(op)
	a.want(Suspended)
	c.start("c")
	c.pass(time.Second)
	a.mustComplete(op)
	a.want(Healthy)
}

func TestForgottenSlaveIsNotWaitedForAndComesBack(t *testing.T) {
	c := three(t, wire.Suspend)
	a := c.node("a")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "x"))
	c.kill("c")
	op := a.write(conn, 0, "y")
	res := a.command(func(id uint64) Event { return Forget{ID: id, Server: c.node("c").id} })
	if res == nil || res.Err != nil || res.Note == "" {
		t.Fatalf("forget: %+v, want success with a warning", res)
	}
	a.mustComplete(op)
	a.want(Degraded)
	c.start("c")
	c.pass(2 * time.Second)
	a.want(Healthy)
	c.node("c").want(Healthy)
}

func TestContinueGoesOnWithoutASilentSlave(t *testing.T) {
	c := three(t, wire.Continue)
	a := c.node("a")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "x"))
	c.kill("c")
	op := a.write(conn, 0, "y")
	a.mustWait(op)
	c.pass(3 * time.Second)
	a.mustComplete(op)
	a.want(Degraded)
}

func TestReplacedDataDirectoryIsResyncedAfterForget(t *testing.T) {
	c := three(t, wire.Suspend)
	a, cc := c.node("a"), c.node("c")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "x"))
	c.kill("c")
	cc.log, cc.hard, cc.table, cc.memory = nil, Hard{}, Table{}, nil
	cc.base.Seq, cc.base.Sum = 0, 0
	cc.cfg.Incarnation[0] = 77
	c.start("c")
	c.pass(3 * time.Second)
	a.want(Suspended)
	if res := a.command(func(id uint64) Event { return Forget{ID: id, Server: cc.id} }); res == nil || res.Err != nil {
		t.Fatalf("forget: %+v", res)
	}
	c.pass(5 * time.Second)
	a.mustComplete(a.write(conn, 0, "y"))
	c.pass(5 * time.Second)
	for _, n := range c.nodes {
		n.want(Healthy)
	}
}

func TestInitCreatesTheVolumeFromOneImageAndResyncsTheOthers(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	c.start("a", "b")
	a := c.node("b")
	if res := a.command(func(id uint64) Event { return Init{ID: id} }); res == nil || res.Err != nil {
		t.Fatalf("init: %+v", res)
	}
	a.mustComplete(a.write(a.open("db1", 0), 0, "x"))
	c.start("c")
	c.pass(5 * time.Second)
	for _, n := range c.nodes {
		n.want(Healthy)
	}
	if res := c.node("c").command(func(id uint64) Event { return Init{ID: id} }); res == nil || !errors.Is(res.Err, ErrRefused) {
		t.Fatalf("second init: %+v, want a refusal", res)
	}
}

func TestServerWhoseImageHasContentIsNoBlankMember(t *testing.T) {
	c := newCluster(t, 2, wire.Suspend)
	c.start("a", "b")
	c2 := newCluster(t, 2, wire.Suspend)
	c2.node("b").forgot = "the image has content"
	c2.start("a", "b")
	c.pass(time.Second)
	c2.pass(time.Second)
	c.node("a").want(Healthy)
	c2.node("a").want(Suspended)
	c2.node("b").want(Diverged)
}

// The last word of a copying that was replaced ended the one that had begun anew.
func TestEndOfAnOldCopyingIsIgnored(t *testing.T) {
	c := newCluster(t, 2, wire.Suspend)
	c.start("a")
	a, b := c.node("a"), c.node("b")
	if res := a.command(func(id uint64) Event { return Init{ID: id} }); res == nil || res.Err != nil {
		t.Fatalf("init: %+v", res)
	}
	a.mustComplete(a.write(a.open("db1", 0), 0, "x"))
	b.slowCopy = true
	c.start("b")
	c.pass(time.Second)
	c.unlink(a, b)
	c.link(a, b)
	c.pass(time.Second)
	if len(b.orders) != 2 || b.orders[0].ID == b.orders[1].ID {
		t.Fatalf("orders: %+v", b.orders)
	}
	done := func(o ResyncOrder) {
		b.step(ResyncProgress{Order: o.ID, Offset: o.Size, Applied: a.r.applied, Done: true})
		c.run()
	}
	done(b.orders[0])
	if m := b.r.hard.Resync; m == nil || m.Target != 0 {
		t.Fatalf("the old copying ended the new one: %+v", m)
	}
	done(b.orders[1])
	c.pass(time.Second)
	b.want(Healthy)
}
