package replica

import (
	"strings"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
)

// A slave that lacked a record which the master's journal could not give was linked and
// let go for ever: the number counted as kept.
func TestSlaveThatLacksAnUnreadableRecordIsResynced(t *testing.T) {
	c := newCluster(t, 2, wire.Continue)
	c.start("a", "b")
	a, b := c.node("a"), c.node("b")
	c.pass(time.Second)
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "x"))
	c.kill("b")
	c.pass(5 * time.Second)
	for range 4 {
		a.mustComplete(a.write(conn, 0, "y"))
	}
	a.bad = a.r.last.Seq - 1
	closed := 0
	c.show = func(_ *node, e *Effects) { closed += len(e.CloseLinks) }
	c.start("b")
	c.pass(5 * time.Second)
	if want := a.r.last.Seq; b.r.applied != want || b.base.Seq < a.bad {
		t.Errorf("b applied %d and has records from %d, want %d, resynced behind %d", b.r.applied, b.base.Seq+1, want, a.bad)
	}
	if closed != 1 {
		t.Errorf("%d links were closed, want the one on which it was found", closed)
	}
	a.want(Healthy)
	b.want(Healthy)
}

// A record that is in no image yet is all there is of it: nobody is told to begin
// behind it, and it is tried again.
func TestUnreadableRecordThatIsNotAppliedIsTriedAgain(t *testing.T) {
	c := newCluster(t, 2, wire.Suspend)
	c.start("a", "b")
	a, b := c.node("a"), c.node("b")
	c.pass(time.Second)
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "x"))
	c.kill("b")
	a.mustWait(a.write(conn, 0, "y"))
	a.bad = a.r.last.Seq
	var reasons []string
	c.show = func(_ *node, e *Effects) {
		for _, l := range e.CloseLinks {
			reasons = append(reasons, l.Reason)
		}
		if len(reasons) == 3 {
			a.bad = 0 // as another server has given it
		}
	}
	c.start("b")
	c.pass(5 * time.Second)
	if len(reasons) != 3 || !strings.Contains(reasons[0], "cannot be read in the journal of a") {
		t.Errorf("links were closed for %q, want three times the record", reasons)
	}
	if b.base.Seq != 0 || b.r.applied != a.r.last.Seq {
		t.Errorf("b has records from %d and applied %d of %d; want it caught up by records", b.base.Seq+1, b.r.applied, a.r.last.Seq)
	}
	a.want(Healthy)
	b.want(Healthy)
}
