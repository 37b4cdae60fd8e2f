package replica

import (
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// A server whose disk hangs is not silent: it answers heartbeats and acknowledges nothing.

// A slave whose disk hangs while many small records come (a slave that catches up is
// sent them as fast as the link takes them) panicked at the next greeting: the sum of
// its last durable record had left the ring of recent sums.
func TestSlaveGreetsWhileManyRecordsAreNotDurable(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	c.start("a", "b", "c")
	c.pass(time.Second)
	a, b, s := c.node("a"), c.node("b"), c.node("c")
	c.kill("c")
	c.pass(3 * time.Second)
	if res := a.command(func(n uint64) Event { return Forget{ID: n, Server: s.id} }); res == nil || res.Err != nil {
		t.Fatalf("forget c: %+v", res)
	}
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "x"))
	c.start("c")
	// c is about to be admitted; its disk hangs before.
	s.frozen = true
	var last *Op
	for range 70 { // 70 batches of the 512 that the shell lets wait for the disk
		var ops []*Op
		for range 1000 {
			last = &Op{Conn: conn, Rec: record.NewWrite(0, []byte("y"))}
			ops = append(ops, last)
		}
		a.step(Submit{ops})
		c.run()
	}
	if s.r.last.Seq-s.r.durable < sumsMax {
		t.Fatalf("c holds %d, durable %d; want more than %d records between", s.r.last.Seq, s.r.durable, sumsMax)
	}
	defer func() {
		if p := recover(); p != nil {
			t.Fatalf("c panics: %v", p)
		}
	}()
	c.unlink(b, s)
	c.link(b, s) // any new link, Query, Prepare asks for a greeting
	c.run()
}

// A slave whose disk hangs was forgotten, and waited for again half a second later,
// since it answered heartbeats: forget did not help, and could not be said again.
func TestForgottenServerWhoseDiskHangsIsNotWaitedFor(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	c.start("a", "b", "c")
	c.pass(time.Second)
	a, s := c.node("a"), c.node("c")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "x"))
	s.frozen = true
	op := a.write(conn, 0, "y")
	c.pass(time.Second)
	a.mustWait(op)
	// The state that c is told of is not durable there: a and b are the majority.
	if res := a.command(func(n uint64) Event { return Forget{ID: n, Server: s.id} }); res == nil || res.Err != nil {
		t.Fatalf("forget c: %+v", res)
	}
	a.mustComplete(op)
	c.pass(5 * time.Second)
	op = a.write(conn, 0, "z")
	c.pass(time.Minute)
	if ok, _ := a.completed(op); !ok {
		v := a.r.View(c.now)
		res := a.command(func(n uint64) Event { return Forget{ID: n, Server: s.id} })
		t.Fatalf("c was forgotten and a write waits for it; status is %s, %q, next %q; forget once more: %v", v.State, v.Reason, v.Next, res.Err)
	}
}

// A slave that is not in sync and whose disk hangs while it is about to be admitted
// was waited for, without an end and without a command that lets go of it.
func TestSlaveThatHangsWhileItIsAdmittedIsNotWaitedFor(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	c.start("a", "b", "c")
	c.pass(time.Second)
	a, s := c.node("a"), c.node("c")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "x"))
	c.kill("c")
	c.pass(3 * time.Second)
	if res := a.command(func(n uint64) Event { return Forget{ID: n, Server: s.id} }); res == nil || res.Err != nil {
		t.Fatalf("forget c: %+v", res)
	}
	for range 10 {
		a.mustComplete(a.write(conn, 0, "x"))
	}
	// Its Joined is durable; then nothing is any more.
	c.mangle = func(to record.ServerID, m wire.Message) []wire.Message {
		if _, ok := m.(*wire.Joined); ok {
			s.frozen = true
		}
		return []wire.Message{m}
	}
	c.start("c")
	c.pass(time.Second)
	op := a.write(conn, 0, "y")
	c.pass(time.Minute)
	if ok, _ := a.completed(op); !ok {
		v := a.r.View(c.now)
		res := a.command(func(n uint64) Event { return Forget{ID: n, Server: s.id, Force: true} })
		t.Fatalf("a write waits for c, which is not in sync; status is %s, %q, next %q; forget: %v", v.State, v.Reason, v.Next, res.Err)
	}
}

// A master that had gone on without a slave, as on_degraded = continue allows, took it back
// by an acknowledgement from before, which the network had kept: meanwhile the slave may
// have promised another epoch, and what this one commits may be lost without a word.
func TestSlaveIsNotTakenBackByWhatItSaidBefore(t *testing.T) {
	c := newCluster(t, 2, wire.Continue)
	c.start("a", "b")
	c.pass(time.Second)
	a, b := c.node("a"), c.node("b")
	c.kill("a")
	var kept []wire.Message
	c.mangle = func(to record.ServerID, m wire.Message) []wire.Message {
		switch m.(type) {
		case *wire.Ack, *wire.HeartbeatAck:
			if a.r.m != nil && a.r.m.change == nil && inSync(&a.r.hard.State, b.id) {
				kept = append(kept, m)
			}
			return nil
		}
		return []wire.Message{m}
	}
	c.start("a")
	c.pass(5 * time.Second)
	if !a.r.m.serving || inSync(&a.r.hard.State, b.id) || len(kept) == 0 {
		t.Fatalf("a serves: %v, in sync are %v, kept are %d messages; want it to go on without b", a.r.m.serving, a.r.hard.State.InSync, len(kept))
	}
	c.mangle = nil
	for _, m := range kept {
		a.step(Received{b.id, a.links[b.id], m})
	}
	if a.r.m.change != nil || a.r.waited(b.id) {
		t.Error("b is taken back by what it said before a went on without it")
	}
	c.pass(5 * time.Second)
	a.want(Healthy)
}
