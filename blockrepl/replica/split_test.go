package replica

import (
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
)

func TestSplitBrainIsNamedAndResolved(t *testing.T) {
	c := newCluster(t, 2, wire.Continue)
	c.start("a", "b")
	c.pass(time.Second)
	a, b := c.node("a"), c.node("b")
	ca := a.open("db1", 0)
	a.mustComplete(a.write(ca, 0, "x"))
	c.unlink(a, b)
	op := a.write(ca, 0, "a alone")
	c.pass(3 * time.Second)
	a.mustComplete(op)
	if res := b.command(func(id uint64) Event { return Promote{ID: id, OldMasterDead: true} }); res == nil || res.Err != nil {
		t.Fatalf("promote: %+v", res)
	}
	c.pass(3 * time.Second)
	cb := b.open("db1", 2)
	b.mustComplete(b.write(cb, 0, "b alone"))
	c.link(a, b)
	c.pass(time.Second)
	a.want(SplitBrain)
	b.want(SplitBrain)
	for _, dry := range []bool{false, true} { // a master that is split from another is none to be content with
		if res := a.command(func(id uint64) Event { return Promote{ID: id, DryRun: dry} }); res == nil || (res.Err == nil) != dry ||
			res.Report.Allowed || res.Report.Already || !res.Report.Split {
			t.Fatalf("promote in a split brain, dry run %v: %+v", dry, res)
		}
	}
	if res := a.command(func(id uint64) Event { return Resolve{ID: id} }); res == nil || res.Err != nil {
		t.Fatalf("resolve: %+v", res)
	}
	c.pass(10 * time.Second)
	a.want(Healthy)
	b.want(Healthy)
	if len(b.aside) == 0 {
		t.Error("the loser's records were dropped, not set aside")
	}
	if a.r.View(c.now).Role != wire.RoleMaster {
		t.Fatal("a is not the master after resolve --keep a")
	}
}

// A loser of a split brain that had met two servers of the other side kept the
// mark of the one that is not the master for ever.
func TestResolvedSplitBrainIsForgottenOnEveryServer(t *testing.T) {
	c := newCluster(t, 3, wire.Continue)
	c.start("a", "b", "c")
	c.pass(time.Second)
	a, b, third := c.node("a"), c.node("b"), c.node("c")
	ca := a.open("db1", 0)
	a.mustComplete(a.write(ca, 0, "x"))
	c.unlink(a, b)
	c.unlink(a, third)
	op := a.write(ca, 0, "a alone")
	c.pass(3 * time.Second)
	a.mustComplete(op)
	if res := b.command(func(id uint64) Event { return Promote{ID: id, OldMasterDead: true} }); res == nil || res.Err != nil {
		t.Fatalf("promote: %+v", res)
	}
	c.pass(3 * time.Second)
	cb := b.open("db1", 2)
	b.mustComplete(b.write(cb, 0, "b alone"))
	c.link(a, b)
	c.link(a, third)
	c.pass(time.Second)
	a.want(SplitBrain)
	if res := b.command(func(id uint64) Event { return Resolve{ID: id} }); res == nil || res.Err != nil {
		t.Fatalf("resolve: %+v", res)
	}
	c.pass(10 * time.Second)
	for _, n := range []*node{a, b, third} {
		n.want(Healthy)
		for _, p := range n.r.View(c.now).Peers {
			if p.State != Live {
				t.Errorf("%v shows %v as %v (%s)", n.id, p.Server, p.State, p.Reason)
			}
		}
	}
}

// A slave went on naming a split brain that others had seen resolved: the server on
// the other side had joined their epoch, and greeted nobody since.
func TestSlaveForgetsASplitBrainByAChangeOfTheSet(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	c.start("a", "b", "c")
	c.pass(time.Second)
	a, b, s := c.node("a"), c.node("b"), c.node("c")
	s.r.peer(b.id).split, s.r.splitBy = true, b.id
	s.want(SplitBrain)
	if res := a.command(func(n uint64) Event { return Forget{ID: n, Server: b.id} }); res == nil || res.Err != nil {
		t.Fatalf("forget b: %+v", res)
	}
	c.pass(time.Second)
	s.want(Healthy)
}

// A resync went on at the kept side of a split brain with extents of the other side:
// where that had begun with higher numbers than the extents held, nothing told.
func TestResyncBeginsAnewOnTheOtherSideOfASplitBrain(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	c.start("a", "b", "c")
	c.pass(time.Second)
	a, b, s := c.node("a"), c.node("b"), c.node("c")
	force := func(n, out *node) {
		t.Helper()
		if res := n.command(func(id uint64) Event { return Forget{ID: id, Server: out.id, Force: true} }); res == nil || res.Err != nil {
			t.Fatalf("%v forgets %v: %+v", n.id, out.id, res)
		}
	}
	write := func(n *node, times int) {
		t.Helper()
		conn := n.open("db1", 0)
		for range times {
			n.mustComplete(n.write(conn, 0, "x"))
		}
	}
	c.kill("c")
	force(a, s)
	s.hard, s.log, s.table, s.memory, s.slowCopy = Hard{}, nil, Table{}, nil, true
	s.cfg.Incarnation[9]++
	c.start("c")
	c.pass(time.Second)
	c.kill("c")
	c.kill("a")
	if res := b.command(func(n uint64) Event { return Promote{ID: n, OldMasterDead: true} }); res == nil || res.Err != nil {
		t.Fatalf("promote b: %+v", res)
	}
	write(b, 8)
	c.kill("b")
	c.start("a") // the operator forgot about b, and lets a go on, in an epoch above b's
	c.pass(3 * time.Second)
	force(a, b)
	c.pass(time.Second)
	c.kill("a")
	c.start("a")
	c.pass(3 * time.Second)
	write(a, 2)
	c.start("c")
	c.pass(time.Second)
	if len(s.orders) != 2 || a.r.epoch().Compare(b.hard.State.Epoch) < 0 {
		t.Fatalf("%d orders to copy, epoch %v", len(s.orders), a.r.epoch())
	}
	s.step(ResyncProgress{Order: s.orders[1].ID, Offset: 4096, Applied: a.r.applied})
	c.run()
	c.kill("a")
	c.start("b")
	c.pass(time.Second)
	if res := b.command(func(n uint64) Event { return Resolve{ID: n} }); res == nil || res.Err != nil {
		t.Fatalf("resolve at b: %+v", res)
	}
	c.pass(time.Second)
	if k := len(s.orders); k != 3 || s.orders[2].From != 0 || s.orders[2].High >= a.r.applied {
		t.Fatalf("orders to copy: %+v; want a third one from the beginning", s.orders)
	}
}
