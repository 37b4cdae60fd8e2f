package replica

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Case 1 of the reference system: a slave that receives a number while younger
// ones are missing holds the record back, requests the missing ones, and
// processes all in order.
func TestLostDoubledAndReorderedRecordsEndEqual(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	c := three(t, wire.Suspend)
	a := c.node("a")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "first"))

	late := map[record.ServerID]wire.Message{}
	c.mangle = func(to record.ServerID, m wire.Message) []wire.Message {
		if ap, ok := m.(*wire.Append); !ok || len(ap.Records) == 0 {
			return []wire.Message{m}
		}
		out := []wire.Message{m}
		switch rnd.IntN(4) {
		case 0: // lost
			out = nil
		case 1: // doubled
			out = append(out, m)
		case 2: // overtaken by the next one
			held := late[to]
			late[to] = m
			out = nil
			if held != nil {
				out = []wire.Message{held}
			}
			return out
		}
		if held := late[to]; held != nil {
			delete(late, to)
			out = append(out, held)
		}
		return out
	}
	var ops []*Op
	for i := range 400 {
		ops = append(ops, a.write(conn, int64(i%64)*512, "written under disorder"))
		if i%16 == 0 {
			c.pass(20 * time.Millisecond)
		}
	}
	c.pass(10 * time.Second)
	for _, op := range ops {
		a.mustComplete(op)
	}
	var asked, early, doubled uint64
	for _, n := range c.nodes {
		if n.r.last != a.r.last || n.r.applied != a.r.last.Seq {
			t.Errorf("%v ends at %v, applied %d; the master at %v", n.id, n.r.last, n.r.applied, a.r.last)
		}
		count := n.r.View(c.now).Counters
		asked += count["requests_sent"]
		early += count["records_early"]
		doubled += count["records_duplicate"]
	}
	if asked == 0 || early == 0 || doubled == 0 || a.r.View(c.now).Counters["requests_served"] == 0 {
		t.Errorf("%d requests, %d early and %d duplicate records; want some of each", asked, early, doubled)
	}
}

// A master that goes on, since it has not heard of a promise to another, gets no record
// of its epoch into the journal of who gave it. No schedule of the simulator shows what
// that would lose: it needs the candidate, too, to commit.
func TestNothingOfAnOlderEpochIsTakenAfterAPromise(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	c.start("a", "b", "c")
	c.pass(time.Second)
	a, b, s := c.node("a"), c.node("b"), c.node("c")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "x"))
	c.unlink(a, b)
	c.mangle = func(to record.ServerID, m wire.Message) []wire.Message {
		if _, hello := m.(*wire.Greeting); hello && to == a.id {
			return nil // of which a would hear of the promise
		}
		return []wire.Message{m}
	}
	b.step(Promote{ID: 1, OldMasterDead: true})
	c.run()
	if p := s.r.hard.Promised; p.Server != b.id {
		t.Fatalf("c has promised %v; want an epoch of b", p)
	}
	last, old := s.r.last, a.r.hard.Promised
	a.write(conn, 0, "y")
	c.run()
	if a.r.hard.Promised != old {
		t.Fatalf("a has heard of it: %v", a.r.hard.Promised)
	}
	for _, rec := range s.log {
		if rec.Seq > last.Seq && rec.Epoch == old {
			t.Errorf("c has record %d of epoch %v, and has promised %v", rec.Seq, rec.Epoch, s.r.hard.Promised)
		}
	}
}
