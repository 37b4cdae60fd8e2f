package replica

import (
	"slices"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
)

// A master that had been left alone by force told others whom it admits before its
// own disk knew. It died, they promoted that server by a majority, and after its
// start the master began another epoch, alone, as its disk still said.
func TestGrowIsNotKnownBeforeTheMastersDiskKnows(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	c.start("a", "b", "c")
	c.pass(time.Second)
	a, b := c.node("a"), c.node("b")
	c.kill("b")
	c.kill("c")
	a.step(Forget{ID: 1, Server: b.id, Force: true}) // replaced by the next
	if res := a.command(func(n uint64) Event { return Forget{ID: n, Server: c.node("c").id, Force: true} }); res == nil || res.Err != nil {
		t.Fatalf("forget --force: %+v", res)
	}
	a.want(Degraded)
	hard, log, table, memory := a.hard, slices.Clone(a.log), a.table, a.memory
	a.frozen = true
	c.start("b", "c")
	c.pass(200 * time.Millisecond)
	if a.r.m.change == nil || a.r.m.change.grow.ID != b.id {
		t.Fatal("b is not being admitted while the disk of a is slow")
	}
	c.kill("a")
	a.hard, a.log, a.table, a.memory, a.frozen = hard, log, table, memory, false
	if res := b.command(func(n uint64) Event { return Promote{ID: n} }); res == nil || res.Err == nil {
		t.Fatalf("promote without a flag a server that was being admitted: %+v", res)
	}
	c.start("a")
	c.pass(5 * time.Second)
	for _, n := range c.nodes {
		n.want(Healthy)
	}
}
