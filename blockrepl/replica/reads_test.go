package replica

import (
	"errors"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
)

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
