package replica

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// A master that had been left alone by force told others whom it admits before its
// own disk knew. It died, they promoted that server by a majority, and after its
// start the master began another epoch, alone, as its disk still said.
func TestGrowIsNotKnownBeforeTheMastersDiskKnows(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	c.start("a", "b", "c")
	c.pass(time.Second)
	a, b := c.node("a"), c.node("b")
	c.kill("b")
	c.kill("c")
	a.step(Forget{ID: 1, Server: b.id, Force: true}) // replaced by the next
	if res := a.command(func(n uint64) Event { return Forget{ID: n, Server: c.node("c").id, Force: true} }); res == nil || res.Err != nil {
		t.Fatalf("forget --force: %+v", res)
	}
	a.want(Degraded)
	hard, log, table, memory := a.hard, slices.Clone(a.log), a.table, a.memory
	a.frozen = true
	c.start("b", "c")
	c.pass(200 * time.Millisecond)
	if a.r.m.change == nil || a.r.m.change.grow.ID != b.id {
		t.Fatal("b is not being admitted while the disk of a is slow")
	}
	c.kill("a")
	a.hard, a.log, a.table, a.memory, a.frozen = hard, log, table, memory, false
	if res := b.command(func(n uint64) Event { return Promote{ID: n} }); res == nil || res.Err == nil {
		t.Fatalf("promote without a flag a server that was being admitted: %+v", res)
	}
	c.start("a")
	c.pass(5 * time.Second)
	for _, n := range c.nodes {
		n.want(Healthy)
	}
}

// A mastership that was forced once put every later shrink into force before a
// majority had noted it, without a word of force.
func TestShrinkOfAForcedSetWaitsForAMajorityToo(t *testing.T) {
	c := newCluster(t, 5, wire.Suspend)
	c.start("a", "b", "c", "d", "e")
	c.pass(time.Second)
	s := c.node("c")
	for _, id := range []string{"a", "b", "d", "e"} {
		c.kill(id)
	}
	if res := s.command(func(n uint64) Event { return Promote{ID: n, OldMasterDead: true} }); res == nil || res.Err != nil {
		t.Fatalf("promote c: %+v", res)
	}
	c.start("d")
	c.pass(time.Second)
	c.mangle = func(to record.ServerID, m wire.Message) []wire.Message {
		switch m.(type) {
		case *wire.Append, *wire.StateUpdate:
			if to != s.id && to != c.node("d").id {
				return nil
			}
		}
		return []wire.Message{m}
	}
	c.start("b", "e")
	c.pass(500 * time.Millisecond)
	if st := &s.r.hard.State; !st.Forced || len(st.InSync) != 2 {
		t.Fatalf("in sync %s, forced %v; want c and d, forced", names(ids(st.InSync)), st.Forced)
	}
	c.unlink(s, c.node("d"))
	s.step(Forget{ID: 1, Server: c.node("d").id})
	c.run()
	c.pass(500 * time.Millisecond)
	if res, ok := s.results[1]; ok || !inSync(&s.r.hard.State, c.node("d").id) {
		t.Fatalf("forget that nobody noted: %+v", res)
	}
	c.mangle = nil
	c.link(s, c.node("d"))
	c.start("a")
	c.pass(8 * time.Second)
	if res := s.results[1]; res.Err != nil || res.Note == "" {
		t.Fatalf("forget: %+v", res)
	}
	for _, n := range c.nodes {
		n.want(Healthy)
	}
}

// A master died when the others had noted whom it admits, and it had not learned so.
// The server that was admitted was promoted; back up, the master told that it was
// out, and both named a split brain where nothing had been acknowledged by one side
// alone.
func TestRestartedMasterStandsByTheGrowItProposed(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	c.start("a", "b", "c")
	c.pass(time.Second)
	a, b, s := c.node("a"), c.node("b"), c.node("c")
	number := a.r.hard.State.Number
	c.mangle = func(to record.ServerID, m wire.Message) []wire.Message {
		switch m := m.(type) {
		case *wire.StateUpdate:
			if to == s.id {
				return nil
			}
		case *wire.StateAck:
			if m.Number > number+1 {
				return nil
			}
		}
		return []wire.Message{m}
	}
	if res := a.command(func(n uint64) Event { return Forget{ID: n, Server: s.id} }); res == nil || res.Err != nil {
		t.Fatalf("forget c: %+v", res)
	}
	c.pass(100 * time.Millisecond)
	if inSync(&a.r.hard.State, s.id) || !inSync(&b.r.hard.State, s.id) || s.r.hard.State.Number != number {
		t.Fatalf("numbers %d, %d, %d; want c admitted as far as b knows", a.r.hard.State.Number, b.r.hard.State.Number, s.r.hard.State.Number)
	}
	c.kill("a")
	c.kill("b")
	c.mangle = nil
	if res := s.command(func(n uint64) Event { return Promote{ID: n, OldMasterDead: true} }); res == nil || res.Err != nil {
		t.Fatalf("promote c: %+v", res)
	}
	c.start("a")
	c.pass(3 * time.Second)
	if v := a.r.View(c.now); v.State == SplitBrain {
		t.Fatalf("a: %s: %s", v.State, v.Reason)
	}
	c.start("b")
	c.pass(3 * time.Second)
	for _, n := range c.nodes {
		n.want(Healthy)
	}
}

// A server that had lost its past, and was resynced and in sync again, fell silent. Its
// greeting from before the resync still spoke of the loss, so the master forgot it
// without a word of force, while the others promoted it by a majority.
func TestForgetOfAServerThatWasResyncedNeedsForce(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	c.start("a", "b", "c")
	c.pass(time.Second)
	a, b := c.node("a"), c.node("b")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "x"))
	c.kill("b")
	b.log = b.log[:1]
	c.start("b")
	c.pass(500 * time.Millisecond)
	if res := a.command(func(n uint64) Event { return Forget{ID: n, Server: b.id} }); res == nil || res.Err != nil {
		t.Fatalf("forget a server that lost its past: %+v", res)
	}
	c.pass(2 * time.Second)
	a.want(Healthy)
	if g := a.r.peer(b.id).greeting; g == nil || !g.Forgot {
		t.Fatal("b did not lose its past in the session that goes on")
	}
	c.mangle = func(to record.ServerID, m wire.Message) []wire.Message {
		if to == a.id {
			return nil
		}
		return []wire.Message{m}
	}
	c.pass(3 * time.Second)
	if res := a.command(func(n uint64) Event { return Forget{ID: n, Server: b.id} }); res == nil || !errors.Is(res.Err, ErrRefused) {
		t.Fatalf("forget b where nobody answers: %+v; want it refused without force", res)
	}
}

// A master that went on alone, as on_degraded = continue allows, named the server that
// had fallen silent, and not the one that the operator had asked to forget just before:
// that was out as well, and nothing said so.
func TestWarningNamesWhomAChangeBeforeLeavesOut(t *testing.T) {
	c := newCluster(t, 3, wire.Continue)
	c.start("a", "b", "c")
	c.pass(time.Second)
	a := c.node("a")
	c.mangle = func(to record.ServerID, m wire.Message) []wire.Message { return nil }
	c.pass(time.Second)
	a.step(Forget{ID: 1, Server: c.node("b").id, Force: true})
	c.run()
	c.pass(2 * time.Second)
	if err := a.results[1].Err; err == nil || !strings.Contains(err.Error(), "b must not be promoted") {
		t.Errorf("forget b: %v", err)
	}
	if !slices.ContainsFunc(a.notes, func(s string) bool {
		return strings.HasPrefix(s, "on_degraded = continue: going on without") && strings.Contains(s, "[server b c ")
	}) {
		t.Errorf("notes: %q", a.notes)
	}
}

// A server that had just died was forgotten while its link still looked alive; it was
// admitted again in the next step, and writes waited for it once more.
func TestForgottenServerIsAdmittedWhenItHasAnsweredSince(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	c.start("a", "b", "c")
	c.pass(time.Second)
	a, s := c.node("a"), c.node("c")
	dead := true
	c.mangle = func(to record.ServerID, m wire.Message) []wire.Message {
		if dead && to == s.id {
			return nil
		}
		return []wire.Message{m}
	}
	if res := a.command(func(n uint64) Event { return Forget{ID: n, Server: s.id} }); res == nil || res.Err != nil {
		t.Fatalf("forget c: %+v", res)
	}
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "x"))
	c.pass(time.Second)
	if h := &a.r.hard; h.Proposed != nil || inSync(&h.State, s.id) {
		t.Fatalf("a admits c, which is dead: %+v\n%q", h.State, a.notes)
	}
	a.mustComplete(a.write(conn, 0, "y"))
	dead = false
	c.unlink(a, s)
	c.link(a, s)
	c.pass(2 * time.Second)
	for _, n := range c.nodes {
		n.want(Healthy)
	}
}

// A slave that lacked few records of many bytes was waited for: one write took as long
// as hundreds of megabytes to it.
func TestSlaveThatLacksManyBytesIsNotWaitedFor(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	for _, n := range c.nodes {
		n.cfg.Create.Size = 1 << 30
	}
	c.start("a", "b", "c")
	c.pass(time.Second)
	a, s := c.node("a"), c.node("c")
	c.kill("c")
	if res := a.command(func(n uint64) Event { return Forget{ID: n, Server: s.id} }); res == nil || res.Err != nil {
		t.Fatalf("forget c: %+v", res)
	}
	conn := a.open("db1", 0)
	big := func(i int) *Op {
		data := record.Alloc(1 << 20)
		for j := range data {
			data[j] = byte(j*j>>7 + i*j)
		}
		op := &Op{Conn: conn, Rec: record.NewWrite(int64(i)<<20, data)}
		a.step(Submit{[]*Op{op}})
		c.run()
		return op
	}
	for i := range 2 * liveLagBytes >> 20 {
		a.mustComplete(big(i))
	}
	c.mangle = func(_ record.ServerID, m wire.Message) []wire.Message {
		switch m := m.(type) {
		case *wire.Ack:
			if m.Incarnation == s.cfg.Incarnation {
				return nil
			}
		case *wire.HeartbeatAck:
			if m.Incarnation == s.cfg.Incarnation {
				return nil
			}
		}
		return []wire.Message{m}
	}
	c.start("c")
	c.pass(time.Second)
	if p := a.r.peer(s.id); !p.joined || p.state != CatchUp || a.r.waited(s.id) {
		t.Fatalf("c is %v, waited for %v; want one that catches up", p.state, a.r.waited(s.id))
	}
	a.mustComplete(big(0))
	c.mangle = nil
	c.pass(2 * time.Second)
	for _, n := range c.nodes {
		n.want(Healthy)
	}
}

// A server out of sync pointed to a promotion of itself, which is refused, while
// another one can be promoted.
func TestStatusOfAServerOutOfSyncDoesNotNameItsOwnPromotion(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	c.start("a", "b", "c")
	c.pass(time.Second)
	a, b, s := c.node("a"), c.node("b"), c.node("c")
	c.kill("c")
	c.pass(3 * time.Second)
	if res := a.command(func(n uint64) Event { return Forget{ID: n, Server: s.id} }); res == nil || res.Err != nil {
		t.Fatalf("forget c: %+v", res)
	}
	c.mangle = func(to record.ServerID, m wire.Message) []wire.Message {
		if _, ok := m.(*wire.Append); ok && to == s.id {
			return nil
		}
		return []wire.Message{m}
	}
	c.start("c")
	c.pass(time.Second)
	c.kill("a")
	c.pass(3 * time.Second)
	v := s.r.View(c.now)
	if v.State != Suspended || v.Next != "on another server that is in sync (b): blockrepl promote vol0; or start a" {
		t.Errorf("status of c is %s, %q, next %q", v.State, v.Reason, v.Next)
	}
	if v := b.r.View(c.now); v.Next != "start a, or take over here: blockrepl promote vol0" {
		t.Errorf("status of b is %s, %q, next %q", v.State, v.Reason, v.Next)
	}
	if res := s.command(func(n uint64) Event { return Promote{ID: n} }); res == nil || res.Err == nil {
		t.Errorf("promote c: %+v", res)
	}
	if res := b.command(func(n uint64) Event { return Promote{ID: n} }); res == nil || res.Err != nil {
		t.Errorf("promote b: %+v", res)
	}
}

// Where nobody else is in sync it names the one that is.
func TestStatusOfAServerOutOfSyncNamesTheOnlyOneInSync(t *testing.T) {
	c := newCluster(t, 2, wire.Suspend)
	c.start("a", "b")
	c.pass(time.Second)
	a, b := c.node("a"), c.node("b")
	c.kill("b")
	c.pass(3 * time.Second)
	if res := a.command(func(n uint64) Event { return Forget{ID: n, Server: b.id, Force: true} }); res == nil || res.Err != nil {
		t.Fatalf("forget b: %+v", res)
	}
	a.mustComplete(a.write(a.open("db1", 0), 0, "x"))
	c.mangle = func(to record.ServerID, m wire.Message) []wire.Message {
		if _, ok := m.(*wire.Append); ok && to == b.id {
			return nil
		}
		return []wire.Message{m}
	}
	c.start("b")
	c.pass(time.Second)
	c.kill("a")
	c.pass(3 * time.Second)
	if v := b.r.View(c.now); !strings.HasPrefix(v.Next, "start a, the only one in sync; or") || !strings.HasSuffix(v.Next, "blockrepl promote vol0 --accept-loss") {
		t.Errorf("status of b is %s, %q, next %q", v.State, v.Reason, v.Next)
	}
}
