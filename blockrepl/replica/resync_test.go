package replica

import (
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// copying gives a master a and a slave b whose resync is under way.
func copying(t *testing.T) (c *cluster, a, b *node) {
	c = newCluster(t, 2, wire.Suspend)
	c.start("a")
	a, b = c.node("a"), c.node("b")
	if res := a.command(func(id uint64) Event { return Init{ID: id} }); res == nil || res.Err != nil {
		t.Fatalf("init: %+v", res)
	}
	a.mustComplete(a.write(a.open("db1", 0), 0, "x"))
	b.slowCopy = true
	return c, a, b
}

// A slave that said nothing for a while when its resync began was Down to its master,
// which then took it for one that only catches up, and counted it as in sync with an
// image of which nothing was copied.
func TestSlaveThatIsSilentWhenItsResyncBeginsIsNotInSync(t *testing.T) {
	c, a, b := copying(t)
	silent := false
	var late []wire.Message
	c.mangle = func(to record.ServerID, m wire.Message) []wire.Message {
		if _, ok := m.(*wire.Joined); ok {
			silent = true
		}
		if silent && to == a.id {
			late = append(late, m)
			return nil
		}
		return []wire.Message{m}
	}
	c.start("b")
	c.pass(3 * time.Second)
	if p := a.r.peer(b.id); len(late) == 0 || p.state != Down {
		t.Fatalf("%d answers are late, b is %v; want one that is silent", len(late), p.state)
	}
	c.mangle = nil
	for _, m := range late {
		a.step(Received{b.id, a.links[b.id], m})
		c.run()
		if h := &a.r.hard; h.Proposed != nil || inSync(&h.State, b.id) {
			t.Fatalf("a admits b in %+v after %T\n%q", h.State, m, a.notes)
		}
	}
	b.want(Resyncing)
	b.step(ResyncProgress{Order: b.orders[0].ID, Offset: b.orders[0].Size, Applied: a.r.applied, Done: true})
	c.pass(time.Second)
	a.want(Healthy)
	b.want(Healthy)
}

// A slave called its resync ended before that was durable. After a crash it would have
// been in sync and not promotable.
func TestEndOfAResyncIsSaidWhenItIsDurable(t *testing.T) {
	c, a, b := copying(t)
	c.start("b")
	c.pass(time.Second)
	c.show = func(n *node, e *Effects) { n.frozen = n.frozen || n == b && e.SyncImage != 0 }
	b.step(ResyncProgress{Order: b.orders[0].ID, Offset: b.orders[0].Size, Applied: a.r.applied, Done: true})
	c.run()
	c.pass(time.Second)
	if b.r.hard.Resync != nil || len(b.waiting) == 0 {
		t.Fatalf("mark %+v, %d batches not durable; want it gone and not durably so", b.r.hard.Resync, len(b.waiting))
	}
	if h := &a.r.hard; h.Proposed != nil || inSync(&h.State, b.id) {
		t.Fatalf("a admits b in %+v", h.State)
	}
	c.show, b.frozen = nil, false
	for _, id := range b.waiting {
		b.step(Stored{id})
	}
	c.pass(time.Second)
	a.want(Healthy)
	b.want(Healthy)
}

// Two servers whose disks had lost the end of the journal pointed to each other, and
// each refused.
func TestStatusPointsToAcceptLossWhereNobodyInSyncIsBelieved(t *testing.T) {
	c := newCluster(t, 2, wire.Suspend)
	c.start("a", "b")
	c.pass(time.Second)
	a, b := c.node("a"), c.node("b")
	conn := a.open("db1", 0)
	for range 4 {
		a.mustComplete(a.write(conn, 0, "x"))
	}
	c.pass(time.Second)
	for _, n := range []*node{a, b} {
		c.kill(n.id.String())
		n.log, n.forgot = n.log[:len(n.log)-2], "its own marks say that it held more"
		n.hard.Checkpoint = 0
	}
	c.start("a", "b")
	c.pass(time.Second)
	want := "give one back what it lost; or, to go on without that, on the one with the highest number: blockrepl promote vol0 --accept-loss"
	for _, n := range []*node{a, b} {
		if v := n.r.View(c.now); v.State != Diverged || v.Next != want {
			t.Fatalf("%v: %s: %s; next: %s", n.id, v.State, v.Reason, v.Next)
		}
	}
	if res := a.command(func(n uint64) Event { return Promote{ID: n, AcceptLoss: true} }); res == nil || res.Err != nil {
		t.Fatalf("promote a: %+v", res)
	}
	c.pass(5 * time.Second)
	a.want(Healthy)
	b.want(Healthy)
}

// A server promised an epoch, and came back as an old copy of itself in the middle of a
// resync: the epoch waited for it, its resync for the epoch, and status named nothing.
func TestStatusPointsToForgetWhereAnEpochWaitsForAResync(t *testing.T) {
	c := newCluster(t, 2, wire.Suspend)
	c.start("a", "b")
	c.pass(time.Second)
	a, b := c.node("a"), c.node("b")
	a.mustComplete(a.write(a.open("db1", 0), 0, "x"))
	c.pass(time.Second)
	c.kill("a")
	c.mangle = func(_ record.ServerID, m wire.Message) []wire.Message {
		if _, ok := m.(*wire.Join); ok {
			return nil
		}
		return []wire.Message{m}
	}
	c.start("a")
	c.pass(time.Second)
	if a.r.role != wire.RoleMaster || a.r.m.serving {
		t.Fatalf("a is %v; want a master that waits for b", a.r.role)
	}
	c.kill("b")
	b.hard.Resync, b.hard.Checkpoint, b.slowCopy = &ResyncMark{Base: 1, High: 1}, 0, true
	c.mangle = nil
	c.start("b")
	c.pass(3 * time.Second)
	if v := a.r.View(c.now); v.State != Suspended || v.Next != "bring b back, or go on without it: blockrepl forget vol0 b" {
		t.Fatalf("a: %s: %s; next: %s", v.State, v.Reason, v.Next)
	}
	b.slowCopy = false
	if res := a.command(func(n uint64) Event { return Forget{ID: n, Server: b.id} }); res == nil || res.Err != nil {
		t.Fatalf("forget b: %+v", res)
	}
	c.pass(5 * time.Second)
	a.want(Healthy)
	b.want(Healthy)
}

// A slave died when the last extent was noted as copied, and no record was left to be
// applied. It went on resyncing until a client wrote something.
func TestResyncWithoutRecordsEndsAfterARestart(t *testing.T) {
	c, a, b := copying(t)
	c.start("b")
	c.pass(time.Second)
	asked := false
	c.show = func(n *node, e *Effects) {
		if n == b && e.SyncImage != 0 {
			asked, e.SyncImage = true, 0 // it dies before
		}
	}
	b.step(ResyncProgress{Order: b.orders[0].ID, Offset: b.orders[0].Size, Applied: a.r.applied, Done: true})
	c.run()
	if !asked || b.hard.Resync == nil || b.hard.Resync.Target == 0 {
		t.Fatalf("asked for an fsync: %v, mark %+v; want one whose extents are copied", asked, b.hard.Resync)
	}
	c.show = nil
	c.kill("b")
	c.start("b")
	c.pass(3 * time.Second)
	b.want(Healthy)
	a.want(Healthy)
}
