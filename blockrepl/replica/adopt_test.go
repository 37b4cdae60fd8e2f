package replica

import (
	"strings"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// loseTail takes n's last record away while all servers are down, and what would
// prove it: the others' memories of n, and the checkpoints, are older.
func (c *cluster) loseTail(n *node) {
	for _, m := range c.nodes {
		m.memory = nil
	}
	n.log = n.log[:len(n.log)-1]
}

// A master whose disk lost its last records within the time in which the marks are
// written began its next epoch without them, and cut them off its slaves' journals.
func TestRestartedMasterTakesTheLongerEndOfASlave(t *testing.T) {
	c := three(t, wire.Suspend)
	a := c.node("a")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "x"))
	a.mustComplete(a.write(conn, 0, "acknowledged"))
	want := a.r.last
	for _, id := range []string{"a", "b", "c"} {
		c.kill(id)
	}
	c.loseTail(a)
	c.start("a", "b", "c")
	c.pass(3 * time.Second)
	for _, n := range c.nodes {
		n.want(Healthy)
		if pos := n.pos(want.Seq); pos != want {
			t.Errorf("%v holds %v where %v was acknowledged", n.id, pos, want)
		}
	}
}

// The same when another server is promoted that lost its end.
func TestPromotedServerTakesTheLongerEndOfAnother(t *testing.T) {
	c := three(t, wire.Suspend)
	a, b := c.node("a"), c.node("b")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "x"))
	a.mustComplete(a.write(conn, 0, "acknowledged"))
	want := a.r.last
	for _, id := range []string{"a", "b", "c"} {
		c.kill(id)
	}
	c.loseTail(b)
	c.start("b", "c")
	if res := b.command(func(id uint64) Event { return Promote{ID: id} }); res == nil || res.Err != nil {
		t.Fatalf("promote: %+v", res)
	}
	c.pass(3 * time.Second)
	if pos := b.pos(want.Seq); pos != want {
		t.Errorf("the promoted server holds %v where %v was acknowledged", pos, want)
	}
	op := b.write(b.open("db1", 2), 0, "after")
	b.mustComplete(op)
}

// A server whose link breaks before it has sent its longer end is waited for like
// one that has not promised.
func TestLongerEndIsWaitedFor(t *testing.T) {
	c := three(t, wire.Suspend)
	a, b := c.node("a"), c.node("b")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "acknowledged"))
	want := a.r.last
	for _, id := range []string{"a", "b", "c"} {
		c.kill(id)
	}
	c.loseTail(a)
	third := c.node("c")
	third.log = third.log[:len(third.log)-1] // b alone has it
	c.mangle = func(_ record.ServerID, m wire.Message) []wire.Message {
		if ap, ok := m.(*wire.Append); ok && len(ap.Records) > 0 {
			return nil
		}
		return []wire.Message{m}
	}
	c.start("a", "b", "c")
	c.pass(2 * time.Second)
	c.kill("b")
	c.pass(3 * time.Second)
	a.want(Suspended)
	if v := a.r.View(c.now); v.Role != wire.RoleCandidate {
		t.Fatalf("a is %v: %s", v.Role, v.Reason)
	}
	c.mangle = nil
	c.start("b")
	c.pass(3 * time.Second)
	for _, n := range []*node{a, b, third} {
		n.want(Healthy)
		if pos := n.pos(want.Seq); pos != want {
			t.Errorf("%v holds %v where %v was acknowledged", n.id, pos, want)
		}
	}
}

// pos is the record with number seq in n's journal.
func (n *node) pos(seq record.Seq) record.Pos { return n.look(Lookup{Seq: seq}).Pos }

// A master that fetches the longer end of its journal from a server which does not
// send it (its disk cannot read those records) waited without an end, status named
// nothing to do, and forget --force of that server changed nothing.
func TestServerThatDoesNotSendItsLongerEndCanBeForgotten(t *testing.T) {
	for _, lent := range []bool{false, true} { // by c, which has it too
		c := three(t, wire.Suspend)
		a, b := c.node("a"), c.node("b")
		a.mustComplete(a.write(a.open("db1", 0), 0, "x"))
		a.mustComplete(a.write(a.open("db1", 0), 0, "acknowledged"))
		want := a.r.last
		c.pass(time.Second)
		for _, id := range []string{"a", "b", "c"} {
			c.kill(id)
		}
		c.loseTail(a)
		if !lent {
			c.loseTail(c.node("c"))
		}
		c.start("b", "c")
		c.mangle = func(to record.ServerID, m wire.Message) []wire.Message {
			if p, ok := m.(*wire.Append); ok && to == a.id && len(p.Records) > 0 {
				return nil
			}
			return []wire.Message{m}
		}
		c.start("a")
		c.pass(time.Minute)
		if a.r.role == wire.RoleMaster {
			t.Fatal("a has begun without the longer end")
		}
		v := a.r.View(c.now)
		if !strings.Contains(v.Reason, "b, which has sent none for") || !strings.HasSuffix(v.Next, "blockrepl forget vol0 b --force") {
			t.Errorf("a waits since a minute; status is %s, %q, next %q", v.State, v.Reason, v.Next)
		}
		if lent { // from here on only b does not send
			c.mangle = func(to record.ServerID, m wire.Message) []wire.Message {
				if _, ok := m.(*wire.Request); ok && to == b.id {
					return nil
				}
				return []wire.Message{m}
			}
		}
		if res := a.command(func(n uint64) Event { return Forget{ID: n, Server: b.id, Force: true} }); res == nil || res.Err != nil {
			t.Fatalf("forget b --force: %+v", res)
		}
		c.pass(time.Minute)
		if a.r.role != wire.RoleMaster || !a.r.m.serving {
			v := a.r.View(c.now)
			t.Fatalf("a does not serve; status is %s, %q, next %q", v.State, v.Reason, v.Next)
		}
		if got := a.pos(want.Seq) == want; got != lent {
			t.Errorf("a holds number %d as it was: %v; c has it: %v", want.Seq, got, lent)
		}
	}
}

// One that the operator has let go while it was away is welcome with its longer end.
func TestForgottenServerThatSendsItsLongerEndIsWelcome(t *testing.T) {
	c := three(t, wire.Suspend)
	a, b := c.node("a"), c.node("b")
	a.mustComplete(a.write(a.open("db1", 0), 0, "x"))
	a.mustComplete(a.write(a.open("db1", 0), 0, "acknowledged"))
	want := a.r.last
	for _, id := range []string{"a", "b", "c"} {
		c.kill(id)
	}
	c.loseTail(a)
	c.loseTail(c.node("c"))
	c.start("a")
	c.pass(3 * time.Second)
	if res := a.command(func(n uint64) Event { return Forget{ID: n, Server: b.id, Force: true} }); res == nil || res.Err != nil {
		t.Fatalf("forget b --force: %+v", res)
	}
	c.start("b")
	c.pass(time.Second)
	c.start("c")
	c.pass(3 * time.Second)
	if !a.r.View(c.now).Serving || a.pos(want.Seq) != want {
		t.Errorf("a holds %v where %v was acknowledged; %+v", a.pos(want.Seq), want, a.r.View(c.now))
	}
}
