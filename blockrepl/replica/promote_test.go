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

func TestGracefulPromotionLosesNothing(t *testing.T) {
	c := three(t, wire.Suspend)
	a, b := c.node("a"), c.node("b")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "x"))
	res := b.command(func(id uint64) Event { return Promote{ID: id} })
	if res == nil || res.Err != nil || !res.Report.Graceful {
		t.Fatalf("promote: %+v", res)
	}
	c.pass(time.Second)
	if v := b.r.View(c.now); v.Role != wire.RoleMaster || v.State != Healthy {
		t.Fatalf("b: %+v", v)
	}
	op := a.write(conn, 0, "through the old master")
	c.pass(100 * time.Millisecond)
	a.mustComplete(op)
}

func TestTakeoverOfADeadMaster(t *testing.T) {
	for _, tc := range []struct {
		policy wire.OnDegraded
		dead   bool
		ok     bool
	}{
		{wire.Suspend, false, true},
		{wire.Suspend, true, true},
		{wire.Continue, false, false},
		{wire.Continue, true, true},
	} {
		c := three(t, tc.policy)
		a, b := c.node("a"), c.node("b")
		conn := a.open("db1", 0)
		a.mustComplete(a.write(conn, 0, "x"))
		last := a.r.last
		c.kill("a")
		res := b.command(func(id uint64) Event { return Promote{ID: id, OldMasterDead: tc.dead} })
		if res == nil || (res.Err == nil) != tc.ok {
			t.Fatalf("policy %d dead %v: %+v", tc.policy, tc.dead, res)
		}
		if !tc.ok {
			if res.Report.Needs != "old-master-dead" {
				t.Fatalf("needs %q", res.Report.Needs)
			}
			continue
		}
		c.pass(3 * time.Second)
		if b.r.last.Seq <= last.Seq || !b.r.m.serving {
			t.Fatalf("b does not serve: %+v", b.r.View(c.now))
		}
		op := b.write(b.open("db1", 2), 0, "after")
		b.mustComplete(op)
		c.start("a")
		c.pass(2 * time.Second)
		for _, n := range c.nodes {
			n.want(Healthy)
		}
	}
}

func TestMasterRestartsUnderAHigherEpoch(t *testing.T) {
	c := three(t, wire.Suspend)
	a := c.node("a")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "x"))
	before := a.r.epoch()
	c.kill("a")
	c.start("a")
	c.pass(3 * time.Second)
	if !before.Less(a.r.epoch()) {
		t.Fatalf("epoch %v after %v", a.r.epoch(), before)
	}
	a.want(Healthy)
}

func TestOldMastersTailIsSetAside(t *testing.T) {
	c := three(t, wire.Suspend)
	a, b := c.node("a"), c.node("b")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "x"))
	c.unlink(a, b)
	c.unlink(a, c.node("c"))
	op := a.write(conn, 0, "never acknowledged")
	a.mustWait(op)
	tail := a.r.last
	if res := b.command(func(id uint64) Event { return Promote{ID: id} }); res == nil || res.Err != nil {
		t.Fatalf("promote: %+v", res)
	}
	c.pass(3 * time.Second)
	c.link(a, b)
	c.link(a, c.node("c"))
	c.pass(3 * time.Second)
	if sum, ok := a.r.sums.at(tail.Seq); ok && sum == tail.Sum {
		t.Fatalf("record %v survived on the old master", tail)
	}
	if len(a.aside) != 1 || a.aside[0].Pos() != tail {
		t.Fatalf("set aside: %v, want record %v alone", a.aside, tail)
	}
	if b.aside != nil || c.node("c").aside != nil {
		t.Errorf("set aside on b: %v, on c: %v, want nothing", b.aside, c.node("c").aside)
	}
	// The client's connection lives, so the write is asked for anew.
	a.mustComplete(op)
	for _, n := range c.nodes {
		n.want(Healthy)
	}
}

// A master that was put back from an old copy took the epoch again that it had held
// since, before any peer could tell it: two records of one epoch had the same number.
func TestEpochIsNotTakenTwice(t *testing.T) {
	c := newCluster(t, 2, wire.Suspend)
	c.start("a", "b")
	c.pass(time.Second)
	a, b := c.node("a"), c.node("b")
	a.mustComplete(a.write(a.open("db1", 0), 0, "x"))
	c.kill("a")
	log, hard, table := slices.Clone(a.log), a.hard, a.table
	c.start("a")
	c.pass(time.Second)
	a.mustComplete(a.write(a.open("db1", 0), 0, "y"))
	c.kill("a")
	c.kill("b")
	a.log, a.hard, a.table, a.memory = log, hard, table, nil
	b.memory = nil
	c.start("a")
	c.pass(3 * time.Second)
	if !a.hard.Following.Less(a.hard.Promised) {
		t.Fatalf("a follows %v and has promised %v", a.hard.Following, a.hard.Promised)
	}
	c.start("b")
	c.pass(3 * time.Second)
	a.want(Diverged)
}

// A master that hung was judged, when it came back, by the greeting of the day on
// which the volume was made: blank. It was resynced, and its records were set aside.
func TestServerThatComesBackIsNotJudgedByAnOldGreeting(t *testing.T) {
	c := three(t, wire.Suspend)
	a, b := c.node("a"), c.node("b")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "x"))
	a.up = false // nothing runs there, its links stay
	c.pass(3 * time.Second)
	if res := b.command(func(id uint64) Event { return Promote{ID: id, OldMasterDead: true} }); res == nil || res.Err != nil {
		t.Fatalf("promote: %+v", res)
	}
	c.pass(time.Second)
	a.up = true
	c.pass(3 * time.Second)
	for _, n := range c.nodes {
		n.want(Healthy)
	}
	for _, note := range a.notes {
		if strings.Contains(note, "resync begins") {
			t.Errorf("a: %s", note)
		}
	}
	if len(a.aside) > 0 {
		t.Errorf("a set %d records aside", len(a.aside))
	}
}

// A master that was paused took its own silence for that of the others, went on
// without them and completed what its clients had sent: a split brain.
func TestPausedMasterHearsTheOthersBeforeItJudgesThem(t *testing.T) {
	c := three(t, wire.Continue)
	a, b := c.node("a"), c.node("b")
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "x"))
	a.up = false // nothing runs there, its links stay
	c.pass(3 * time.Second)
	if res := b.command(func(id uint64) Event { return Promote{ID: id, OldMasterDead: true} }); res == nil || res.Err != nil {
		t.Fatalf("promote: %+v", res)
	}
	c.pass(2 * time.Second)
	a.up = true
	a.step(Tick{}) // before anything that waits in its sockets
	op := a.write(conn, 0, "stale")
	c.pass(4 * time.Second)
	a.mustComplete(op) // its client's connection lives, so the successor numbered it
	if op.seq > b.r.commit {
		t.Errorf("number %d is completed at a; b has committed %d", op.seq, b.r.commit)
	}
	if v := a.r.View(c.now); v.Role != wire.RoleSlave || v.State == SplitBrain || v.Config.Master != b.id {
		t.Errorf("the paused master is %v, %s (%s), master %v", v.Role, v.State, v.Reason, v.Config.Master)
	}
}

// Stopping all servers at once took as long as a handover may: the master waited
// for a slave that was gone.
func TestStopAsksAnotherWhenTheOneItAskedIsGone(t *testing.T) {
	c := three(t, wire.Suspend)
	a, b, third := c.node("a"), c.node("b"), c.node("c")
	a.step(Stop{ID: 1, Handover: true})
	c.unlink(a, b)
	if a.r.stopTo != third.id {
		t.Fatalf("%v is asked to take over, want %v", a.r.stopTo, third.id)
	}
	c.unlink(a, third)
	if res, ok := a.results[1]; !ok || res.Err != nil {
		t.Fatalf("the stop waits although nobody is left: %+v, %v", res, ok)
	}
}

// promote --accept-loss was let begin where --old-master-dead is asked for, waited for
// promises that nobody gave, and ended with a timeout that named neither.
func TestAcceptedLossDoesNotSayThatTheMasterIsDead(t *testing.T) {
	c := newCluster(t, 2, wire.Suspend)
	c.start("a", "b")
	c.pass(time.Second)
	c.kill("a")
	b := c.node("b")
	res := b.command(func(n uint64) Event { return Promote{ID: n, AcceptLoss: true} })
	if res == nil || !errors.Is(res.Err, ErrRefused) || res.Report.Needs != "old-master-dead" {
		t.Fatalf("promote b: %+v", res)
	}
	if res := b.command(func(n uint64) Event { return Promote{ID: n, AcceptLoss: true, OldMasterDead: true} }); res == nil || res.Err != nil {
		t.Fatalf("promote b: %+v", res)
	}
}

// Of two candidates that had each a majority's promise the second one did not hear of
// the first: a server named only the newest promise it had given. Both began.
func TestPromiseToAnotherCandidateIsNamed(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	c.start("a", "b", "c")
	c.pass(time.Second)
	a, b, s := c.node("a"), c.node("b"), c.node("c")
	a.mustComplete(a.write(a.open("db1", 0), 0, "x"))
	c.kill("a")
	b.step(Promote{ID: 1})
	c.run()
	if p := s.r.hard.Promised; p.Server != b.id || b.r.role != wire.RoleCandidate {
		t.Fatalf("c has promised %v, b is %v; want a candidate that waits for the lease's end", p, b.r.role)
	}
	c.unlink(b, s)
	b.up = false // asleep
	c.start("a")
	c.pass(time.Second)
	if p := s.r.hard.Promised; p.Server != a.id {
		t.Fatalf("c has promised %v; want an epoch of a", p)
	}
	res := a.command(func(id uint64) Event { return Promote{ID: id} })
	if res == nil || res.Err == nil || res.Report == nil || res.Report.Needs != "old-master-dead" {
		t.Fatalf("promote a: %+v; want it refused for what c promised to b", res)
	}
	b.up = true
	c.pass(3 * time.Second)
	if b.r.role != wire.RoleMaster || a.r.role == wire.RoleMaster {
		t.Fatalf("a is %v, b is %v; want b to have begun, and nobody else", a.r.role, b.r.role)
	}
}

// Only a promotion that no majority knew of told whom it left out, while the others
// barred just as much who had not answered.
func TestPromotionNamesWhomItLeavesOut(t *testing.T) {
	for _, tc := range []struct {
		what string
		kill []string
		ask  Promote
		set  string
		note string
	}{
		{"switchover", nil, Promote{}, "a b c", ""},
		{"switchover beside a dead slave", []string{"c"}, Promote{}, "a b", "c must not be promoted"},
		{"take-over", []string{"a"}, Promote{}, "b c", "a must not be promoted"},
		{"take-over alone", []string{"a", "c"}, Promote{OldMasterDead: true}, "b", "a c must not be promoted"},
	} {
		c := three(t, wire.Suspend)
		c.node("a").mustComplete(c.node("a").write(c.node("a").open("db1", 0), 0, "x"))
		for _, name := range tc.kill {
			c.kill(name)
		}
		b := c.node("b")
		res := b.command(func(id uint64) Event { tc.ask.ID = id; return tc.ask })
		if res == nil || res.Err != nil {
			t.Fatalf("%s: %+v", tc.what, res)
		}
		if got := names(res.Report.InSync); got != tc.set || !strings.HasPrefix(res.Note, tc.note) || (res.Note == "") != (tc.note == "") {
			t.Errorf("%s: in sync %q, note %q; want %q, %q", tc.what, got, res.Note, tc.set, tc.note)
		}
	}
}

// A script that promotes the server that is the master already, as one does that asks
// again since it heard no answer, was told of an error.
func TestPromoteOfTheMasterIsDoneAlready(t *testing.T) {
	for _, tc := range []struct {
		what  string
		begin func(c *cluster, a, b *node)
		set   string // "": refused
		says  string
	}{
		{"healthy", func(*cluster, *node, *node) {}, "a b c", ""},
		{"degraded", func(c *cluster, a, _ *node) {
			c.kill("c")
			a.command(func(id uint64) Event { return Forget{ID: id, Server: c.node("c").id} })
		}, "a b", "c must not be promoted"},
		{"suspended", func(c *cluster, _, _ *node) {
			c.kill("c")
			c.pass(3 * time.Second)
		}, "", "the volume is suspended: writes wait for c"},
		{"unfinished", func(c *cluster, a, b *node) {
			b.command(func(id uint64) Event { return Promote{ID: id} })
			c.mangle = func(_ record.ServerID, m wire.Message) []wire.Message {
				if _, ok := m.(*wire.Joined); ok {
					return nil
				}
				return []wire.Message{m}
			}
			a.command(func(id uint64) Event { return Promote{ID: id} })
		}, "", "is becoming the master"},
		{"handing over", func(c *cluster, _, b *node) {
			c.mangle = func(_ record.ServerID, m wire.Message) []wire.Message {
				if _, ok := m.(*wire.HandoverReady); ok {
					return nil
				}
				return []wire.Message{m}
			}
			b.step(Promote{ID: 1 << 40})
			c.run()
		}, "", "hands over to b"},
		{"fenced", func(c *cluster, _, b *node) {
			c.mangle = func(_ record.ServerID, m wire.Message) []wire.Message {
				switch m.(type) {
				case *wire.Prepare, *wire.Heartbeat, *wire.Append:
					return nil
				}
				return []wire.Message{m}
			}
			b.command(func(id uint64) Event { return Promote{ID: id} })
		}, "", "which a newer promise ends"},
	} {
		for _, ask := range []Promote{{}, {DryRun: true}, {AcceptLoss: true, OldMasterDead: true}} {
			c := three(t, wire.Suspend)
			a := c.node("a")
			tc.begin(c, a, c.node("b"))
			before, last := a.r.epoch(), a.r.last
			res := a.command(func(id uint64) Event { ask.ID = id; return ask })
			if res == nil || res.Report == nil || res.Report.Allowed != (tc.set != "") || (res.Err == nil) != (tc.set != "" || ask.DryRun) {
				t.Fatalf("%s, %+v: %+v", tc.what, ask, res)
			}
			rep := res.Report
			if !strings.Contains(res.Note+rep.Reason, tc.says) || rep.Already != rep.Allowed || names(rep.InSync) != tc.set || (rep.Epoch == before) != rep.Already {
				t.Errorf("%s, %+v: note %q, %+v", tc.what, ask, res.Note, rep)
			}
			if a.r.role != wire.RoleMaster || a.r.epoch() != before || a.r.last != last && tc.what == "healthy" {
				t.Errorf("%s, %+v: it is %v now, in epoch %v, at %v", tc.what, ask, a.r.role, a.r.epoch(), a.r.last)
			}
		}
	}
}

// Whoever asks a master for what it is does not mean to take mastership back from the
// one that got it while the others were asked.
func TestPromoteOfTheMasterPromotesNobodyElse(t *testing.T) {
	c := three(t, wire.Suspend)
	a, b := c.node("a"), c.node("b")
	c.mangle = func(to record.ServerID, m wire.Message) []wire.Message {
		if _, ok := m.(*wire.Greeting); ok && to == a.id {
			return nil
		}
		return []wire.Message{m}
	}
	a.step(Promote{ID: 1, OldMasterDead: true, AcceptLoss: true})
	c.run()
	if res := b.command(func(id uint64) Event { return Promote{ID: id} }); res == nil || res.Err != nil {
		t.Fatalf("promote b: %+v", res)
	}
	if res, ok := a.results[1]; ok {
		t.Fatalf("answered before the others were heard: %+v", res)
	}
	c.pass(5 * time.Second)
	if res := a.results[1]; !errors.Is(res.Err, ErrRefused) || !strings.Contains(res.Err.Error(), "is not any more") {
		t.Errorf("promote a: %+v", res)
	}
	if b.r.role != wire.RoleMaster || !b.r.m.serving {
		t.Errorf("b: %+v", b.r.View(c.now))
	}
}

// A server that found out that it is not to be believed while the old master handed over
// became the master all the same, and applied and served nothing.
func TestPromotionEndsWhenItsServerIsNotBelievedAnyMore(t *testing.T) {
	c := three(t, wire.Suspend)
	a, s := c.node("a"), c.node("c")
	s.still = true // its image lags
	conn := a.open("db1", 0)
	a.mustComplete(a.write(conn, 0, "x"))
	c.pass(50 * time.Millisecond)
	lacks := s.r.applied + 1
	c.show = func(n *node, e *Effects) {
		if n == s && slices.ContainsFunc(e.Sends, func(m Send) bool { _, is := m.Msg.(*wire.Handover); return is }) {
			s.later(func() { s.step(Unreadable{Seq: lacks, Apply: true}) })
		}
	}
	s.step(Promote{ID: 99})
	c.pass(10 * time.Second)
	if res := s.results[99]; !errors.Is(res.Err, ErrRefused) {
		t.Errorf("promote: %+v, want ErrRefused", res)
	}
	s.want(Diverged)
	if v := a.r.View(c.now); v.Role != wire.RoleMaster || v.Epoch.Counter != 1 {
		t.Fatalf("a is %+v, want the master of epoch 1 still", v)
	}
	a.command(func(id uint64) Event { return Forget{ID: id, Server: s.id} })
	s.still = false
	c.pass(10 * time.Second)
	a.want(Healthy)
	s.want(Healthy)
}
