package replica

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
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

func TestOtherIdentityIsRefusedWhileTheVolumeIsHeld(t *testing.T) {
	c := three(t, wire.Suspend)
	a, b := c.node("a"), c.node("b")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "mine"))
	op := b.write(b.open("db2", 0), 0, "theirs")
	c.pass(50 * time.Millisecond)
	if ok, err := b.completed(op); !ok || !errors.Is(err, ErrHeld) {
		t.Fatalf("completed %v with %v, want ErrHeld", ok, err)
	}
	a.step(Gone{conn})
	c.pass(50 * time.Millisecond)
	op = b.write(b.open("db2", 0), 0, "now mine")
	c.pass(50 * time.Millisecond)
	b.mustComplete(op)
}

func TestNewerGenerationDiscardsAStalledForward(t *testing.T) {
	c := three(t, wire.Suspend)
	a, b, cc := c.node("a"), c.node("b"), c.node("c")
	old := b.open("db1", 1)
	op := b.write(old, 0, "w0")
	c.pass(50 * time.Millisecond)
	b.mustComplete(op)
	// The forward of W1 is stalled; the client sends W1 again at c, then W2.
	stalled := &Op{Conn: old, Rec: draftWrite(0, "w1")}
	var held Effects
	b.r.Step(c.now, Submit{[]*Op{stalled}}, &held)
	conn := cc.open("db1", 2)
	cc.write(conn, 0, "w1")
	op = cc.write(conn, 0, "w2")
	c.pass(50 * time.Millisecond)
	cc.mustComplete(op)
	last := a.r.last.Seq
	b.carryOut(&held)
	c.pass(50 * time.Millisecond)
	if a.r.last.Seq != last {
		t.Fatalf("the master numbered %d records after the newer generation", a.r.last.Seq-last)
	}
	if b.aborted[old] == "" {
		t.Fatal("the older connection was not closed")
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

func TestGracefulPromotionLosesNothing(t *testing.T) {
	c := three(t, wire.Suspend)
	a, b := c.node("a"), c.node("b")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "x"))
	res := b.command(func(id uint64) Event { return Promote{ID: id} })
	if res == nil || res.Err != nil || !res.Report.Graceful {
		t.Fatalf("promote: %+v", res)
	}
	c.pass(time.Second)
	if v := b.r.View(c.now); v.Role != wire.RoleMaster || v.State != Healthy {
		t.Fatalf("b: %+v", v)
	}
	op := a.write(conn, 0, "through the old master")
	c.pass(100 * time.Millisecond)
	a.mustComplete(op)
}

func TestTakeoverOfADeadMaster(t *testing.T) {
	for _, tc := range []struct {
		policy wire.OnDegraded
		dead   bool
		ok     bool
	}{
		{wire.Suspend, false, true},
		{wire.Suspend, true, true},
		{wire.Continue, false, false},
		{wire.Continue, true, true},
	} {
		c := three(t, tc.policy)
		a, b := c.node("a"), c.node("b")
		conn := a.open("db1", 0)
		a.mustComplete(a.write(conn, 0, "x"))
		last := a.r.last
		c.kill("a")
		res := b.command(func(id uint64) Event { return Promote{ID: id, OldMasterDead: tc.dead} })
		if res == nil || (res.Err == nil) != tc.ok {
			t.Fatalf("policy %d dead %v: %+v", tc.policy, tc.dead, res)
		}
		if !tc.ok {
			if res.Report.Needs != "old-master-dead" {
				t.Fatalf("needs %q", res.Report.Needs)
			}
			continue
		}
		c.pass(3 * time.Second)
		if b.r.last.Seq <= last.Seq || !b.r.m.serving {
			t.Fatalf("b does not serve: %+v", b.r.View(c.now))
		}
		op := b.write(b.open("db1", 2), 0, "after")
		b.mustComplete(op)
		c.start("a")
		c.pass(2 * time.Second)
		for _, n := range c.nodes {
			n.want(Healthy)
		}
	}
}

func TestMasterRestartsUnderAHigherEpoch(t *testing.T) {
	c := three(t, wire.Suspend)
	a := c.node("a")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "x"))
	before := a.r.epoch()
	c.kill("a")
	c.start("a")
	c.pass(3 * time.Second)
	if !before.Less(a.r.epoch()) {
		t.Fatalf("epoch %v after %v", a.r.epoch(), before)
	}
	a.want(Healthy)
}

func TestOldMastersTailIsSetAside(t *testing.T) {
	c := three(t, wire.Suspend)
	a, b := c.node("a"), c.node("b")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "x"))
	c.unlink(a, b)
	c.unlink(a, c.node("c"))
	op := a.write(conn, 0, "never acknowledged")
	a.mustWait(op)
	tail := a.r.last
	if res := b.command(func(id uint64) Event { return Promote{ID: id} }); res == nil || res.Err != nil {
		t.Fatalf("promote: %+v", res)
	}
	c.pass(3 * time.Second)
	c.link(a, b)
	c.link(a, c.node("c"))
	c.pass(3 * time.Second)
	if sum, ok := a.r.sums.at(tail.Seq); ok && sum == tail.Sum {
		t.Fatalf("record %v survived on the old master", tail)
	}
	// The client's connection lives, so the write is asked for anew.
	a.mustComplete(op)
	for _, n := range c.nodes {
		n.want(Healthy)
	}
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

// The end of an attachment stayed in the slave's hands until its next forward:
// the volume was still held, and a slave that became master meanwhile crashed.
func TestEndOfAnAttachmentAtASlaveFreesTheVolume(t *testing.T) {
	c := three(t, wire.Suspend)
	b := c.node("b")
	conn := b.open("db1", 0)
	b.mustComplete(b.write(conn, 0, "x"))
	b.step(Gone{Conn: conn})
	c.pass(100 * time.Millisecond)
	if holder := c.node("a").r.Holder(); holder != "" {
		t.Errorf("%q still holds the volume", holder)
	}
	if res := b.command(func(id uint64) Event { return Promote{ID: id} }); res == nil || res.Err != nil {
		t.Fatalf("promote: %+v", res)
	}
	c.pass(time.Second)
	b.want(Healthy)
}

// Stopping all servers at once took as long as a handover may: the master waited
// for a slave that was gone.
func TestStopAsksAnotherWhenTheOneItAskedIsGone(t *testing.T) {
	c := three(t, wire.Suspend)
	a, b, third := c.node("a"), c.node("b"), c.node("c")
	a.step(Stop{ID: 1, Handover: true})
	c.unlink(a, b)
	if a.r.stopTo != third.id {
		t.Fatalf("%v is asked to take over, want %v", a.r.stopTo, third.id)
	}
	c.unlink(a, third)
	if res, ok := a.results[1]; !ok || res.Err != nil {
		t.Fatalf("the stop waits although nobody is left: %+v, %v", res, ok)
	}
}

// A master that was paused took its own silence for that of the others, went on
// without them and completed what its clients had sent: a split brain.
func TestPausedMasterHearsTheOthersBeforeItJudgesThem(t *testing.T) {
	c := three(t, wire.Continue)
	a, b := c.node("a"), c.node("b")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "x"))
	a.up = false // nothing runs there, its links stay
	c.pass(3 * time.Second)
	if res := b.command(func(id uint64) Event { return Promote{ID: id, OldMasterDead: true} }); res == nil || res.Err != nil {
		t.Fatalf("promote: %+v", res)
	}
	c.pass(2 * time.Second)
	a.up = true
	a.step(Tick{}) // before anything that waits in its sockets
	op := a.write(conn, 0, "stale")
	c.pass(4 * time.Second)
	a.mustComplete(op) // its client's connection lives, so the successor numbered it
	if op.seq > b.r.commit {
		t.Errorf("number %d is completed at a; b has committed %d", op.seq, b.r.commit)
	}
	if v := a.r.View(c.now); v.Role != wire.RoleSlave || v.State == SplitBrain || v.Config.Master != b.id {
		t.Errorf("the paused master is %v, %s (%s), master %v", v.Role, v.State, v.Reason, v.Config.Master)
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

// A master that hung was judged, when it came back, by the greeting of the day on
// which the volume was made: blank. It was resynced, and its records were set aside.
func TestServerThatComesBackIsNotJudgedByAnOldGreeting(t *testing.T) {
	c := three(t, wire.Suspend)
	a, b := c.node("a"), c.node("b")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "x"))
	a.up = false // nothing runs there, its links stay
	c.pass(3 * time.Second)
	if res := b.command(func(id uint64) Event { return Promote{ID: id, OldMasterDead: true} }); res == nil || res.Err != nil {
		t.Fatalf("promote: %+v", res)
	}
	c.pass(time.Second)
	a.up = true
	c.pass(3 * time.Second)
	for _, n := range c.nodes {
		n.want(Healthy)
	}
	for _, note := range a.notes {
		if strings.Contains(note, "resync begins") {
			t.Errorf("a: %s", note)
		}
	}
	if len(a.aside) > 0 {
		t.Errorf("a set %d records aside", len(a.aside))
	}
}

// A master that was put back from an old copy took the epoch again that it had held
// since, before any peer could tell it: two records of one epoch had the same number.
func TestEpochIsNotTakenTwice(t *testing.T) {
	c := newCluster(t, 2, wire.Suspend)
	c.start("a", "b")
	c.pass(time.Second)
	a, b := c.node("a"), c.node("b")
	a.mustComplete(a.write(a.open("db1", 0), 0, "x"))
	c.kill("a")
	log, hard, table := slices.Clone(a.log), a.hard, a.table
	c.start("a")
	c.pass(time.Second)
	a.mustComplete(a.write(a.open("db1", 0), 0, "y"))
	c.kill("a")
	c.kill("b")
	a.log, a.hard, a.table, a.memory = log, hard, table, nil
	b.memory = nil
	c.start("a")
	c.pass(3 * time.Second)
	if !a.hard.Following.Less(a.hard.Promised) {
		t.Fatalf("a follows %v and has promised %v", a.hard.Following, a.hard.Promised)
	}
	c.start("b")
	c.pass(3 * time.Second)
	a.want(Diverged)
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

// A code of a newer program became an I/O error, which ends a client's file system.
func TestRefusalForAnUnknownReasonSendsTheClientAway(t *testing.T) {
	c := three(t, wire.Suspend)
	b := c.node("b")
	conn := b.open("db1", 0)
	op := b.write(conn, 0, "x")
	c.pass(50 * time.Millisecond)
	b.mustComplete(op)
	c.mangle = func(_ record.ServerID, m wire.Message) []wire.Message {
		if _, ok := m.(*wire.Forward); ok {
			return nil
		}
		return []wire.Message{m}
	}
	op = b.write(conn, 0, "y")
	b.step(Received{Peer: c.node("a").id, Session: b.links[c.node("a").id], Msg: &wire.Refuse{
		Epoch: b.r.epoch(), Attachment: op.key.attachment, Operation: op.key.operation, Code: 99, Reason: "the moon is full"}})
	if err, ok := b.done[op.Rec.Operation]; ok {
		t.Errorf("answered with %v", err)
	}
	if b.aborted[conn] == "" {
		t.Error("the client was not sent away")
	}
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
