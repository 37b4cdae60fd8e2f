package replica

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
)

// Numbers that came next where the image was ahead of its journal, and the operator had
// taken it for the whole, counted as applied: what they wrote never reached the image.
func TestNumbersAfterAnAcceptedLossAreAboveWhatTheImageHolds(t *testing.T) {
	c := newCluster(t, 1, wire.Suspend)
	c.start("a")
	c.pass(time.Second)
	a := c.node("a")
	conn := a.open("db1", 0)
	for range 6 {
		a.mustComplete(a.write(conn, 0, "x"))
	}
	c.pass(time.Second)
	c.kill("a")
	held := a.log[len(a.log)-1].Seq
	a.hard.Checkpoint, a.log = held, a.log[:len(a.log)-3]
	c.start("a")
	c.pass(time.Second)
	a.want(Diverged)
	if res := a.command(func(n uint64) Event { return Promote{ID: n, AcceptLoss: true} }); res == nil || res.Err != nil {
		t.Fatalf("promote a: %+v", res)
	}
	a.want(Healthy)
	if a.base.Seq != held || a.log[0].Seq != held+1 {
		t.Fatalf("the journal begins behind %v; the image holds %d", a.base, held)
	}
	op := a.write(a.open("db1", 0), 0, "y")
	a.mustComplete(op)
	c.kill("a")
	c.start("a")
	c.pass(time.Second)
	a.want(Healthy)
	if a.image < op.seq {
		t.Fatalf("the image holds %d, the write is number %d", a.image, op.seq)
	}
}

// A server whose journal ended where that of the forced one did was admitted without a
// look at its image, although the forced one's might hold records that were lost.
func TestWhoeverJoinsAnUnbelievedPastIsCopiedWhole(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	c.start("a", "b", "c")
	c.pass(time.Second)
	a, b, s := c.node("a"), c.node("b"), c.node("c")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "x"))
	c.pass(time.Second)
	c.kill("c")
	if res := a.command(func(n uint64) Event { return Forget{ID: n, Server: s.id} }); res == nil || res.Err != nil {
		t.Fatalf("forget c: %+v", res)
	}
	end := len(b.log)
	for range 4 {
		a.mustComplete(a.write(conn, 0, "y"))
	}
	c.pass(time.Second)
	c.kill("a")
	c.kill("b")
	b.log, b.forgot = b.log[:end-1], "its own marks say that it held more"
	s.log, s.slowCopy = s.log[:end-1], true
	c.start("b")
	c.pass(time.Second)
	if res := b.command(func(n uint64) Event { return Promote{ID: n, AcceptLoss: true} }); res == nil || res.Err != nil || res.Report.Needs != "accept-loss" {
		t.Fatalf("promote b: %+v", res)
	}
	c.start("c")
	c.pass(time.Second)
	if len(s.orders) != 1 || s.orders[0].From != 0 {
		t.Fatalf("orders to copy: %+v; want the whole image\n%q", s.orders, s.notes)
	}
	if len(s.aside) > 0 {
		t.Errorf("%d records are set aside, which the master has", len(s.aside))
	}
}

// A server whose past had parted from what another one holds, by force, and had gone on
// to higher numbers, announced nothing as missing: the other's were lower.
func TestLossOfLowerNumbersIsAnnounced(t *testing.T) {
	c := newCluster(t, 4, wire.Suspend)
	c.start("a", "b", "c", "d")
	c.pass(time.Second)
	a, b, d := c.node("a"), c.node("b"), c.node("d")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "x"))
	c.pass(time.Second)
	c.unlink(a, d)
	a.mustWait(a.write(conn, 0, "y"))
	lost := a.r.last.Seq
	c.kill("a")
	c.kill("b")
	c.kill("c")
	force := func(n *node) {
		t.Helper()
		if res := n.command(func(id uint64) Event { return Promote{ID: id, OldMasterDead: true} }); res == nil || res.Err != nil {
			t.Fatalf("promote %v: %+v", n.id, res)
		}
	}
	force(d)
	for range 4 {
		d.mustComplete(d.write(d.open("db1", 1), 0, "z"))
	}
	c.kill("d")
	c.start("b")
	c.pass(time.Second)
	force(b)
	if b.r.commit < lost || d.log[len(d.log)-1].Seq <= lost {
		t.Fatalf("b has committed %d, d holds %d; want both to have gone on from %d", b.r.commit, d.log[len(d.log)-1].Seq, lost)
	}
	c.kill("b")
	c.start("a", "d") // and d is asked before it begins its next mastership by itself
	res := d.command(func(id uint64) Event { return Promote{ID: id, AcceptLoss: true, DryRun: true} })
	if res == nil || res.Report == nil || res.Report.Needs == "" || res.Report.MissingFirst != lost || res.Report.MissingLast != lost {
		t.Fatalf("promote d: %+v, report %+v; want number %d announced, which a holds", res, res.Report, lost)
	}
}

// What the operator accepted to be lost stayed the measure of this server's journal:
// after a restart it was not believed once more.
func TestAcceptedLossIsNotHeldAgainstTheServerOnceMore(t *testing.T) {
	c := newCluster(t, 2, wire.Suspend)
	c.start("a", "b")
	c.pass(time.Second)
	a, b := c.node("a"), c.node("b")
	conn := a.open("db1", 0)
	for range 6 {
		a.mustComplete(a.write(conn, 0, "x"))
	}
	c.kill("b")
	c.start("b") // it joins anew: its journal held all that
	c.pass(time.Second)
	c.kill("a")
	c.kill("b")
	b.log = b.log[:3]
	c.start("b")
	b.want(Diverged)
	res := b.command(func(n uint64) Event { return Promote{ID: n, AcceptLoss: true} })
	if res == nil || res.Err != nil {
		t.Fatalf("promote b: %+v", res)
	}
	c.pass(time.Second)
	b.mustComplete(b.write(b.open("db1", 0), 0, "y"))
	c.kill("b")
	c.start("b")
	c.pass(5 * time.Second)
	if b.r.role != wire.RoleMaster || !b.r.m.serving {
		v := b.r.View(c.now)
		t.Fatalf("b does not serve again: %s, %s, next %s", v.State, v.Reason, v.Next)
	}
}

// With another disk under the image's name a server is not believed; status says to put
// the right one back, which did not help: it was not believed for good.
func TestRightImagePutBackIsBelievedAgain(t *testing.T) {
	c := newCluster(t, 1, wire.Suspend)
	c.start("a")
	c.pass(time.Second)
	a := c.node("a")
	a.mustComplete(a.write(a.open("db1", 0), 0, "x"))
	right := []Sample{{Off: 0, Len: 4096, Sum: 1}}
	a.step(ImageSynced{Seq: a.r.applied, Image: right})
	c.run()
	c.kill("a")
	a.unlike = "block 0 of the image is not what it was" // the shell compared the samples
	c.start("a")
	c.pass(time.Second)
	a.want(Diverged)
	if v := a.r.View(c.now); !strings.Contains(v.Next, "put the right image back and restart") {
		t.Errorf("next is %q", v.Next)
	}
	// As at an orderly stop.
	a.step(ImageSynced{Seq: a.r.applied, Image: []Sample{{Off: 0, Len: 4096, Sum: 2}}})
	c.run()
	if !slices.Equal(a.hard.Image, right) {
		t.Errorf("samples of the wrong image were noted: %+v", a.hard.Image)
	}
	c.kill("a")
	a.unlike = "" // the right image is there again: its samples are as noted
	c.start("a")
	c.pass(5 * time.Second)
	a.want(Healthy)
}

// That the image is another one does not hide that the journal lost its end: this is
// noted for good.
func TestLossIsNotedBesideAnotherImage(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	c.start("a", "b", "c")
	c.pass(time.Second)
	a, s := c.node("a"), c.node("c")
	conn := a.open("db1", 0)
	for range 3 {
		a.mustComplete(a.write(conn, 0, "x"))
	}
	c.pass(time.Second)
	c.kill("c")
	s.log = s.log[:len(s.log)-2]
	s.unlike = "block 0 of the image is not what it was"
	c.start("c")
	c.pass(time.Second)
	if s.hard.Forgot == "" {
		t.Errorf("c lacks what it acknowledged; nothing is noted of that, it says %q", s.r.forgot)
	}
}

// An image with content that nobody knows of counts for as long as it is there.
func TestEmptyImagePutInItsPlaceLetsTheVolumeBegin(t *testing.T) {
	c := newCluster(t, 2, wire.Suspend)
	b := c.node("b")
	b.unlike = "the image has content; use init or another image"
	c.start("a", "b")
	c.pass(5 * time.Second)
	b.want(Diverged)
	c.kill("b")
	b.unlike = ""
	c.start("b")
	c.pass(5 * time.Second)
	b.want(Healthy)
}

// A slave had applied what its master committed when it had gone on without another server,
// and was killed before it had that durably. The other server was promoted by the word that
// the old master is dead, which it was not. The slave's journal was cut to the new line, and
// its image, which held what was cut, was taken for the state there.
func TestImageOfASlaveMayHoldWhatAWronglyPromotedServerLacks(t *testing.T) {
	c := newCluster(t, 4, wire.Continue)
	c.start("a", "b", "c", "d")
	c.pass(time.Second)
	a, b, other := c.node("a"), c.node("b"), c.node("c")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "x"))
	c.pass(time.Second)
	for _, n := range []string{"a", "b", "d"} {
		c.unlink(c.node(n), other)
	}
	op := a.write(conn, 0, "y")
	a.mustWait(op) // for c
	b.frozen = true
	b.step(Received{Peer: a.id, Session: b.links[a.id], Msg: &wire.Append{Epoch: a.r.epoch(), Commit: op.seq}})
	c.run()
	if b.r.applied != op.seq {
		t.Fatalf("b applied %d, want %d", b.r.applied, op.seq)
	}
	c.kill("b")
	b.frozen = false
	if res := other.command(func(id uint64) Event { return Promote{ID: id, OldMasterDead: true} }); res == nil || res.Err != nil {
		t.Fatalf("promote c: %+v", res)
	}
	c.kill("a")
	c.kill("d")
	copied := false
	c.show = func(n *node, e *Effects) { copied = copied || n == b && b.r.hard.Resync != nil }
	c.start("b")
	c.pass(5 * time.Second)
	if !copied || len(b.aside) == 0 {
		t.Errorf("b follows %v; copied from c: %v; %d records set aside", b.r.hard.Following, copied, len(b.aside))
	}
}
