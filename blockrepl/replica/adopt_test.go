package replica

import (
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
func (n *node) pos(seq record.Seq) record.Pos { return n.look(seq).Pos }
