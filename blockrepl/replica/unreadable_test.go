package replica

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
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
	a.bad = []record.Seq{a.r.last.Seq - 1}
	closed := 0
	c.show = func(_ *node, e *Effects) { closed += len(e.CloseLinks) }
	c.start("b")
	c.pass(5 * time.Second)
	if want := a.r.last.Seq; b.r.applied != want || b.base.Seq < a.bad[0] {
		t.Errorf("b applied %d and has records from %d, want %d, resynced behind %d", b.r.applied, b.base.Seq+1, want, a.bad[0])
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
	a.bad = []record.Seq{a.r.last.Seq}
	var reasons []string
	c.show = func(_ *node, e *Effects) {
		for _, l := range e.CloseLinks {
			reasons = append(reasons, l.Reason)
		}
		if len(reasons) == 3 {
			a.bad = nil // as another server has given it
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

// A resize and a mark that the start could not read were never in the table, although
// another server gave the records before they were applied: a resync then compared the
// old size, and a stale write could be of a known generation.
func TestTableHasWhatTheStartCouldNotRead(t *testing.T) {
	c := newCluster(t, 2, wire.Suspend)
	c.start("a", "b")
	a, b := c.node("a"), c.node("b")
	c.pass(time.Second)
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "x"))
	if res := a.command(func(id uint64) Event { return Resize{ID: id, Size: 2 << 20} }); res == nil || res.Err != nil {
		t.Fatalf("resize: %+v", res)
	}
	c.pass(3 * time.Second)
	for _, rec := range a.log {
		if changesTable(rec.Kind) {
			a.bad = append(a.bad, rec.Seq)
		}
	}
	if len(a.bad) != 2 {
		t.Fatalf("%d records change the table, want a mark and a resize", len(a.bad))
	}
	c.kill("b")
	c.kill("a")
	c.start("a")
	a.bad = nil // as b gives them
	c.start("b")
	c.pass(3 * time.Second)
	a.want(Healthy)
	if a.r.table.Size != 2<<20 || a.r.numbered.Size != 2<<20 {
		t.Errorf("a takes the size for %d, and %d where it numbers, want %d", a.r.table.Size, a.r.numbered.Size, 2<<20)
	}
	if got, want := a.r.table.Entries, b.r.table.Entries; len(want) != 1 || !slices.Equal(got, want) {
		t.Errorf("a has the entries %v, b %v", got, want)
	}
}
