package replica

import (
	"errors"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

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

// A master that has just begun has not heard the server of the holder yet, which says
// nothing of that: another client took the volume within milliseconds of a restart.
func TestServerNotHeardYetIsNotAway(t *testing.T) {
	c := three(t, wire.Suspend)
	a, cc := c.node("a"), c.node("c")
	cc.mustComplete(cc.write(cc.open("db1", 0), 0, "mine"))
	c.unlink(a, cc)
	if res := a.command(func(id uint64) Event { return Forget{ID: id, Server: cc.id, Force: true} }); res == nil || res.Err != nil {
		t.Fatalf("forget c: %+v", res)
	}
	c.kill("a")
	cc.up = false // to a, which finds b alone
	c.start("a")
	cc.up = true
	a.step(Promote{ID: 99})
	for until := c.now.Add(time.Minute); !a.r.View(c.now).Serving && c.now < until; {
		c.pass(10 * time.Millisecond)
	}
	op := a.write(a.open("db2", 0), 0, "theirs")
	c.pass(50 * time.Millisecond)
	if ok, err := a.completed(op); !ok || !errors.Is(err, ErrHeld) {
		t.Fatalf("completed %v with %v, want ErrHeld", ok, err)
	}
	c.pass(2 * a.r.cfg.PeerTimeout)
	a.mustComplete(a.write(a.open("db2", 0), 0, "theirs now"))
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

// A resize that waited at a slave for a master was numbered behind a larger one, and
// cut off what lay between.
func TestResizeThatComesLateDoesNotShrinkTheVolume(t *testing.T) {
	c := newCluster(t, 2, wire.Suspend)
	c.start("a", "b")
	c.pass(time.Second)
	a, b := c.node("a"), c.node("b")
	c.unlink(a, b)
	b.step(Resize{ID: 1, Size: 2 << 20})
	a.step(Resize{ID: 2, Size: 3 << 20})
	c.link(a, b)
	c.pass(time.Second)
	for _, n := range c.nodes {
		if n.r.Size() != 3<<20 {
			t.Errorf("%v has %d bytes", n.id, n.r.Size())
		}
	}
	if err := b.results[1].Err; !errors.Is(err, ErrRefused) {
		t.Errorf("resize at b: %v, want it refused", err)
	}
	if res, ok := a.results[2]; !ok || res.Err != nil {
		t.Errorf("resize at a: %+v", res)
	}
}
