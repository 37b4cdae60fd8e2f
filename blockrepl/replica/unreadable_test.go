package replica

import (
	"fmt"
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

// damagedPast is a master whose records 4 and 5 are damaged, and a slave, known to be
// gone, whose journal ends at 4. With applied they are in the master's image.
func damagedPast(t *testing.T, applied bool) (c *cluster, a, b *node) {
	c = newCluster(t, 2, wire.Continue)
	c.start("a", "b")
	a, b = c.node("a"), c.node("b")
	c.pass(time.Second)
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "w1"))
	a.mustComplete(a.write(conn, 0, "w2"))
	c.pass(time.Second)
	c.kill("b")
	c.pass(5 * time.Second)
	for range 4 {
		a.mustComplete(a.write(conn, 0, "w3"))
	}
	c.kill("a")
	if last := b.log[len(b.log)-1].Seq; last != 4 {
		t.Fatalf("the slave's journal ends at %d, want 4", last)
	}
	a.bad = []record.Seq{4, 5}
	if applied {
		a.hard.Checkpoint = a.log[len(a.log)-1].Seq
	}
	return c, a, b
}

// A slave whose last record was damaged at the master, with the next one, was told that it
// is no longer kept: its image was compared, although another server had both.
func TestSumOfDamagedNeighboursIsAskedFor(t *testing.T) {
	c, a, b := damagedPast(t, true)
	a.lent = true
	c.start("a", "b")
	c.pass(5 * time.Second)
	if b.base.Seq != 0 || b.r.applied != a.r.last.Seq || a.r.last.Seq < 8 {
		t.Errorf("b has records from %d and applied %d of %d; want it caught up by records", b.base.Seq+1, b.r.applied, a.r.last.Seq)
	}
	a.want(Healthy)
	b.want(Healthy)
}

func TestPastThatNothingTellsIsResynced(t *testing.T) {
	c, a, b := damagedPast(t, true)
	said := peerReasons(c, a)
	c.start("a", "b")
	c.pass(5 * time.Second)
	if want := "record 4 cannot be read in this server's journal, and no other server has it"; !slices.Contains(*said, want) {
		t.Errorf("of b was said %q, want %q", *said, want)
	}
	if b.base.Seq == 0 || b.r.applied != a.r.last.Seq {
		t.Errorf("b has records from %d and applied %d of %d; want it resynced", b.base.Seq+1, b.r.applied, a.r.last.Seq)
	}
	a.want(Healthy)
	b.want(Healthy)
}

// The status of a master whose own image lacked what was damaged blamed the slave, and
// asked to forget it: perhaps the last one that had the record.
func TestOwnDamageIsNotTheSlaves(t *testing.T) {
	c, a, b := damagedPast(t, false)
	said := peerReasons(c, a)
	a.still = true // asks others for the record
	c.start("a", "b")
	c.pass(5 * time.Second)
	if want := "record 5, which this server's image lacks, is damaged in its journal"; !slices.Contains(*said, want) {
		t.Errorf("of b was said %q, want %q", *said, want)
	}
	for _, why := range *said {
		if strings.Contains(why, "forget") {
			t.Errorf("of b was said %q", why)
		}
	}
	if b.base.Seq != 0 {
		t.Errorf("b has records from %d, want all of them kept", b.base.Seq+1)
	}
	a.step(Unreadable{Seq: 4, Apply: true})
	c.pass(time.Second)
	a.want(FailedHere)
}

// The same with the slave waited for, and the damage just above the image: status asked
// to forget the slave, and the master could apply nothing from then on.
func TestOwnDamageAboveTheImageIsTheOldMastersEnd(t *testing.T) {
	c := newCluster(t, 2, wire.Suspend)
	c.start("a", "b")
	a, b := c.node("a"), c.node("b")
	c.pass(time.Second)
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "w1"))
	a.mustComplete(a.write(conn, 0, "w2"))
	c.pass(3 * time.Second)
	c.kill("b")
	a.mustWait(a.write(conn, 0, "w3"))
	a.mustWait(a.write(conn, 0, "w4"))
	c.pass(time.Second)
	c.kill("a")
	held := b.log[len(b.log)-1].Seq
	a.bad, a.hard.Checkpoint = []record.Seq{held, held + 1}, held
	c.start("a", "b")
	c.pass(5 * time.Second)
	v := a.r.View(c.now)
	if want := fmt.Sprintf("writes wait for b, which lacks record %d: it cannot be read in this server's journal, and no other server has it", held+1); v.State != Suspended || v.Reason != want {
		t.Errorf("a is %s, %q, want suspended, %q", v.State, v.Reason, want)
	}
	if want := "on another server that is in sync (b), when this one is stopped or cut off: blockrepl promote vol0 --old-master-dead"; v.Next != want {
		t.Errorf("status advises %q, want %q", v.Next, want)
	}
	asked := 0
	c.show = func(n *node, e *Effects) {
		if n == a {
			asked += len(e.Lookups)
		}
	}
	c.pass(40 * time.Second)
	if asked == 0 || asked > 10 {
		t.Errorf("the others were asked %d times in 40 s, want some, not with every tick", asked)
	}
}

// peerReasons collects what n says of its peers.
func peerReasons(c *cluster, n *node) *[]string {
	var said []string
	c.show = func(from *node, _ *Effects) {
		for _, p := range from.r.peers {
			if from == n && p.reason != "" {
				said = append(said, p.reason)
			}
		}
	}
	return &said
}
