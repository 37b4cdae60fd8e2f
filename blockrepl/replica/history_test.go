package replica

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
)

// The epoch history grew for ever, until the saved state no longer fitted the journal
// and the volume failed.
func TestOldEpochsGoWhenEveryMemberIsInSync(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	for _, n := range c.nodes {
		n.cfg.History = 3
	}
	c.start("a", "b", "c")
	c.pass(time.Second)
	a, b := c.node("a"), c.node("b")
	restart := func(times int) {
		for range times {
			c.kill("a")
			c.start("a")
			c.pass(time.Second)
		}
	}
	restart(10)
	if n := len(a.r.hard.History); n < 3 || n >= 6 {
		t.Errorf("%d lines are kept, want 3 to 5", n)
	}

	// Not while one is away: nobody knows where its past may part.
	c.kill("c")
	if res := a.command(func(id uint64) Event { return Forget{ID: id, Server: c.node("c").id} }); res == nil || res.Err != nil {
		t.Fatalf("forget: %+v", res)
	}
	restart(10)
	if n := len(a.r.hard.History); n < 13 {
		t.Errorf("%d lines are kept although a member was away for 10 masterships", n)
	}

	// Histories of different lengths: b still has what a has let go, and leads.
	c.start("c")
	c.pass(2 * time.Second)
	for _, n := range c.nodes {
		n.want(Healthy)
	}
	if res := b.command(func(id uint64) Event { return Promote{ID: id} }); res == nil || res.Err != nil {
		t.Fatalf("promote: %+v", res)
	}
	c.pass(2 * time.Second)
	for _, n := range c.nodes {
		n.want(Healthy)
		for _, note := range n.notes {
			if strings.Contains(note, "resync begins") {
				t.Errorf("%v: %s", n.id, note)
			}
		}
	}
}

// What comes back with an epoch that all lines are younger than is an old copy.
func TestOldCopyFromBeforeAllLinesIsNoSplitBrain(t *testing.T) {
	c := newCluster(t, 3, wire.Continue)
	for _, n := range c.nodes {
		n.cfg.History = 1
	}
	c.start("a", "b", "c")
	c.pass(time.Second)
	a, b, third := c.node("a"), c.node("b"), c.node("c")
	c.kill("c")
	c.pass(3 * time.Second) // a and b go on
	// The copy of a disk of the time when c alone was in sync.
	old := third.hard
	old.State.InSync = []wire.Member{{ID: third.id, Incarnation: third.cfg.Incarnation}}
	old.State.Number = 9
	log, base, table := third.log, third.base, third.table
	c.start("c")
	c.pass(2 * time.Second)
	for range 3 {
		c.kill("a")
		c.start("a")
		c.pass(time.Second)
	}
	if h := a.r.hard.History; !beforeAll(h, old.State.Epoch) {
		t.Fatalf("history %+v still knows epoch %v", h, old.State.Epoch)
	}
	c.kill("c")
	third.hard, third.log, third.base, third.table, third.memory = old, log, base, table, nil
	a.memory, b.memory = nil, nil
	c.start("c")
	c.pass(3 * time.Second)
	if v := a.r.View(c.now); v.State == SplitBrain || v.Role != wire.RoleMaster {
		t.Errorf("a is %v, %s: %s", v.Role, v.State, v.Reason)
	}
	if v := third.r.View(c.now); v.State == SplitBrain {
		t.Errorf("c is %s: %s", v.State, v.Reason)
	}
}

func TestFullHistoryIsARefusal(t *testing.T) {
	c := newCluster(t, 1, wire.Suspend)
	c.start("a")
	c.pass(time.Second)
	c.kill("a")
	a := c.node("a")
	first := a.hard.History[0]
	for len(a.hard.History) < HistoryMax-historyReserve {
		a.hard.History = append([]wire.EpochStart{first}, a.hard.History...)
	}
	c.start("a")
	c.pass(5 * time.Second)
	a.want(Suspended)
	if v := a.r.View(c.now); v.Role == wire.RoleMaster || !strings.Contains(v.Next, "promote") {
		t.Errorf("a is %v, next %q", v.Role, v.Next)
	}
	if res := a.command(func(id uint64) Event { return Promote{ID: id, OldMasterDead: true} }); res == nil || res.Err != nil {
		t.Fatalf("promote: %+v", res)
	}
	c.pass(time.Second)
	a.want(Healthy)
	c.kill("a")
	for len(a.hard.History) < HistoryMax {
		a.hard.History = append([]wire.EpochStart{first}, a.hard.History...)
	}
	c.start("a")
	c.pass(time.Second)
	if res := a.command(func(id uint64) Event { return Promote{ID: id, OldMasterDead: true} }); res == nil || !errors.Is(res.Err, ErrRefused) {
		t.Fatalf("promote with a full history: %+v", res)
	}
}
