package replica

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// A slave whose disk hangs answers heartbeats, so it is not silent. Writes wait for it
// for ever, and status called the volume healthy and named nothing to do.
func TestStatusNamesASlaveWhoseDiskHangs(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	c.start("a", "b", "c")
	c.pass(time.Second)
	a, s := c.node("a"), c.node("c")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "x"))
	s.frozen = true
	c.pass(time.Minute)
	a.want(Healthy) // nothing waits for it
	op := a.write(conn, 0, "y")
	c.pass(time.Second)
	a.want(Healthy) // a disk may be slow
	c.pass(time.Minute)
	a.mustWait(op)
	v := a.r.View(c.now)
	if v.State != Suspended || !strings.Contains(v.Reason, "wait for c") || !strings.Contains(v.Reason, "above number 3 for 1m1s") || !strings.HasSuffix(v.Next, "blockrepl forget vol0 c") {
		t.Errorf("a write waits for c since a minute; status is %s, %q, next %q", v.State, v.Reason, v.Next)
	}
	if v := s.r.View(c.now); v.State != Suspended || !strings.Contains(v.Reason, "fsync") || !strings.Contains(v.Next, "blockrepl forget vol0 c") {
		t.Errorf("c's disk hangs; its status is %s, %q, next %q", v.State, v.Reason, v.Next)
	}
	if res := a.command(func(n uint64) Event { return Forget{ID: n, Server: s.id} }); res == nil || res.Err != nil {
		t.Fatalf("forget c: %+v", res)
	}
	a.mustComplete(op)
}

// A split brain was all that status named, and no command to resolve it took effect.
func TestStatusNamesAHungDiskBesideASplitBrain(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	c.start("a", "b", "c")
	c.pass(time.Second)
	a, s := c.node("a"), c.node("c")
	s.frozen = true
	a.write(a.open("db1", 0), 0, "x")
	c.pass(time.Minute)
	s.r.splitBy = record.MustServerID("b")
	v := s.r.View(c.now)
	if v.State != SplitBrain || !strings.Contains(v.Reason, "no fsync") || !strings.HasPrefix(v.Next, "repair the disk") || !strings.HasSuffix(v.Next, "blockrepl resolve vol0 --keep SERVER") {
		t.Errorf("status is %s, %q, next %q", v.State, v.Reason, v.Next)
	}
}

// A slave that is slow and goes on is not one that hangs.
func TestSlowSlaveDoesNotHang(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	c.start("a", "b", "c")
	c.pass(time.Second)
	a, s := c.node("a"), c.node("c")
	conn := a.open("db1", 0)
	s.frozen = true
	for range 10 {
		a.write(conn, 0, "x")
	}
	for len(s.waiting) > 0 {
		c.pass(1500 * time.Millisecond)
		a.want(Healthy)
		s.want(Healthy)
		id := s.waiting[0]
		s.waiting = s.waiting[1:]
		s.step(Stored{id})
		c.run()
	}
}

// An epoch that does not begin because a slave's disk hangs: nothing was named to do.
func TestStatusOfAnEpochThatWaitsForADiskNamesIt(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	c.start("a", "b", "c")
	c.pass(time.Second)
	a, s := c.node("a"), c.node("c")
	c.kill("a")
	c.mangle = func(to record.ServerID, m wire.Message) []wire.Message {
		if _, ok := m.(*wire.Join); ok && to == s.id {
			s.frozen = true
		}
		return []wire.Message{m}
	}
	c.start("a")
	c.pass(time.Minute)
	v := a.r.View(c.now)
	if a.r.role != wire.RoleMaster || v.Serving || v.State != Suspended || !strings.Contains(v.Reason, "c is linked") || !strings.Contains(v.Next, "blockrepl forget vol0 c") {
		t.Errorf("a's epoch waits for c; status is %s, %q, next %q", v.State, v.Reason, v.Next)
	}
}

// hungMaster is a cluster whose master's disk hangs while a write waits.
func hungMaster(t *testing.T, policy wire.OnDegraded) (*cluster, *Op) {
	c := newCluster(t, 3, policy)
	c.start("a", "b", "c")
	c.pass(time.Second)
	a := c.node("a")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "x"))
	a.frozen = true
	op := a.write(conn, 0, "y")
	c.pass(time.Minute)
	a.mustWait(op)
	return c, op
}

// promoteSlowly gives the command time for a handover that does not come and for the
// election after it.
func (n *node) promoteSlowly(p Promote) Result {
	commandID++
	p.ID = commandID
	n.step(p)
	n.c.pass(30 * time.Second)
	res, ok := n.results[p.ID]
	if !ok {
		n.c.t.Fatalf("no answer to %+v", p)
	}
	return res
}

// A master whose disk hangs goes on answering, so every promotion was asked of it, and
// failed: no flag replaced it, and neither the answers nor its status said what would.
func TestMasterWhoseDiskHangsCanBeReplaced(t *testing.T) {
	c, _ := hungMaster(t, wire.Suspend)
	a, b := c.node("a"), c.node("b")
	v := a.r.View(c.now)
	if v.State != Suspended || !strings.Contains(v.Reason, "fsync") || !strings.Contains(v.Reason, "1m0s") || !strings.HasPrefix(v.Next, "on another server that is in sync (b c)") {
		t.Errorf("a's disk hangs; its status is %s, %q, next %q", v.State, v.Reason, v.Next)
	}
	for _, p := range []Promote{{}, {AcceptLoss: true}} {
		if res := b.promoteSlowly(p); !errors.Is(res.Err, ErrTimeout) || !strings.Contains(res.Err.Error(), "stop it or cut it off") || !strings.Contains(res.Err.Error(), "blockrepl promote vol0 --old-master-dead") {
			t.Errorf("promote b: %v", res.Err)
		}
	}
	res := b.promoteSlowly(Promote{OldMasterDead: true})
	if res.Err != nil || res.Report.Graceful || !strings.Contains(res.Note, "a must not be promoted") {
		t.Fatalf("promote b --old-master-dead: %v, report %+v, note %q", res.Err, res.Report, res.Note)
	}
	b.mustComplete(b.write(b.open("db1", 1), 0, "z"))
	if a.r.role != wire.RoleSlave {
		t.Errorf("a is %v", a.r.role)
	}
}

// With continue a master that is cut off goes on alone, so it is not enough to say that
// one which answers is dead: it has to be.
func TestMasterThatMayGoOnAloneHasToBeStopped(t *testing.T) {
	c, _ := hungMaster(t, wire.Continue)
	b := c.node("b")
	if res := b.promoteSlowly(Promote{OldMasterDead: true}); !errors.Is(res.Err, ErrTimeout) || !strings.Contains(res.Err.Error(), "stop it or cut it off") {
		t.Errorf("promote b: %v", res.Err)
	}
	c.kill("a")
	if res := b.promoteSlowly(Promote{OldMasterDead: true}); res.Err != nil {
		t.Errorf("promote b when a is dead: %v", res.Err)
	}
}

// A master that answered and did not hand over may still be reading under a lease: it is
// waited for, whatever the operator says.
func TestReadsOfAMasterThatDidNotHandOverHaveEnded(t *testing.T) {
	c, _ := hungMaster(t, wire.Suspend)
	a, b := c.node("a"), c.node("b")
	c.mangle = func(to record.ServerID, m wire.Message) []wire.Message {
		if _, ok := m.(*wire.Prepare); ok && to == a.id {
			return nil
		}
		return []wire.Message{m}
	}
	b.step(Promote{ID: 1, OldMasterDead: true})
	for b.r.role != wire.RoleCandidate {
		c.pass(10 * time.Millisecond)
		if res, ok := b.results[1]; ok {
			t.Fatalf("promote b: %v", res.Err)
		}
	}
	// a's network is gone, and the Prepare with it: the others notice at once, a by its
	// clock.
	for _, n := range []*node{b, c.node("c")} {
		n.step(LinkDown{a.id, n.links[a.id], "cut"})
		delete(n.links, a.id)
	}
	delete(a.links, b.id)
	delete(a.links, c.node("c").id)
	if a.r.Lease() <= c.now {
		t.Fatal("a has no lease")
	}
	for !b.r.View(c.now).Serving {
		c.pass(10 * time.Millisecond)
		if b.results[1].Err != nil {
			t.Fatal(b.results[1].Err)
		}
	}
	if c.now < a.r.Lease() {
		t.Errorf("a reads for another %v, and b serves", a.r.Lease().Sub(c.now))
	}
}
