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
