package replica

import (
	"strings"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Two configurations that differ in the volume's size kept it from being created, and
// no server's status, log or answer said so: each waited for the first one, that one
// for itself.
func TestStatusNamesSizesThatDiffer(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	c.node("b").cfg.Create.Size = 2 << 20
	c.start("a", "b", "c")
	c.pass(time.Minute)
	for _, n := range c.nodes {
		v := n.r.View(c.now)
		if !strings.Contains(v.Reason, "1048576") || !strings.Contains(v.Reason, "2097152 on b") && n.id.String() != "b" || !strings.Contains(v.Next, "configurations") {
			t.Errorf("%v is %s: %q, next %q; notes %q; peers %+v", n.id, v.State, v.Reason, v.Next, n.notes, v.Peers)
		}
	}
}

// The same where another server's image has content.
func TestStatusNamesTheServerWhoseImageHasContent(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	c.node("b").forgot = "the image has content, and the journal knows nothing of it"
	c.start("a", "b", "c")
	c.pass(time.Minute)
	for _, id := range []string{"a", "c"} {
		if v := c.node(id).r.View(c.now); !strings.Contains(v.Reason, "image of b") || v.Next == "" {
			t.Errorf("%s is %s: %q, next %q", id, v.State, v.Reason, v.Next)
		}
	}
}

// Two configurations begin the list of servers with another one: each server waited
// for the other one to create the volume.
func TestStatusNamesListsOfServersThatBeginWithOthers(t *testing.T) {
	c := newCluster(t, 2, wire.Suspend)
	c.node("a").cfg.First = c.node("b").id
	c.start("a", "b")
	c.pass(time.Minute)
	for _, n := range c.nodes {
		v := n.r.View(c.now)
		if !v.Blank {
			t.Errorf("%v has the volume", n.id)
		}
		if !strings.Contains(v.Reason, "b a on a") || !strings.Contains(v.Reason, "a b on b") || !strings.Contains(v.Next, "configurations") {
			t.Errorf("%v is %s: %q, next %q", n.id, v.State, v.Reason, v.Next)
		}
	}
	// What the operator does then.
	c.kill("a")
	c.node("a").cfg.First = c.node("a").id
	c.start("a")
	c.pass(time.Second)
	for _, n := range c.nodes {
		n.want(Healthy)
	}
}

// Unequal lists of members are named as unequal sizes are, also by the server that one
// of them lacks.
func TestStatusNamesListsOfServersThatDiffer(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	b := c.node("b")
	b.cfg.Create.Members = b.cfg.Create.Members[:2]
	c.start("a", "b", "c")
	c.pass(time.Minute)
	for _, n := range c.nodes {
		v := n.r.View(c.now)
		if !v.Blank {
			t.Errorf("%v has the volume", n.id)
		}
		if !strings.Contains(v.Reason, "a b c on") || !strings.Contains(v.Reason, "a b on b") || !strings.Contains(v.Next, "configurations") {
			t.Errorf("%v is %s: %q, next %q", n.id, v.State, v.Reason, v.Next)
		}
	}
}

// A promise that a server gave before the others' configurations were known to differ
// does not let the volume come into being by another one's list.
func TestPromiseForAnotherListOfServersIsRefused(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	c.start("b")
	b, a := c.node("b"), c.node("a")
	st := a.cfg.Create
	for _, members := range [][]record.ServerID{st.Members[:2], st.Members} {
		var answers []string
		c.mangle = func(to record.ServerID, m wire.Message) []wire.Message {
			if p, ok := m.(*wire.Promise); ok {
				answers = append(answers, p.Reason)
			}
			return nil
		}
		st.Members = members
		c.session++
		b.step(LinkUp{a.id, c.session, a.cfg.Incarnation})
		b.step(Received{a.id, c.session, &wire.Prepare{Epoch: record.Epoch{Counter: 1, Server: a.id}, State: st}})
		c.run()
		if want := len(members) < 3; len(answers) != 1 || strings.Contains(answers[0], "configurations differ") != want {
			t.Errorf("b answers %q to a list of %d servers", answers, len(members))
		}
	}
}

// After the order of the servers was changed the first one kept a promise that it had
// given to the one which was first before: the volume never came into being, and that
// server's status said that it waited for itself.
func TestStatusNamesAPromiseToTheServerThatWasFirst(t *testing.T) {
	c := newCluster(t, 2, wire.Suspend)
	a, b := c.node("a"), c.node("b")
	for _, n := range c.nodes {
		n.cfg.First = b.id
	}
	c.mangle = func(to record.ServerID, m wire.Message) []wire.Message {
		if _, ok := m.(*wire.Promise); ok {
			return nil
		}
		return []wire.Message{m}
	}
	c.start("a", "b")
	c.pass(time.Second)
	c.kill("a")
	c.kill("b")
	c.mangle = nil
	for _, n := range c.nodes {
		n.cfg.First = a.id
	}
	c.start("a", "b")
	c.pass(time.Minute)
	v := a.r.View(c.now)
	if !strings.Contains(v.Reason, "promised b") || !strings.Contains(v.Next, "blockrepl init") {
		t.Errorf("a is %s: %q, next %q", v.State, v.Reason, v.Next)
	}
	if res := a.command(func(n uint64) Event { return Init{ID: n} }); res == nil || res.Err != nil {
		t.Errorf("init: %+v", res)
	}
}

// A server whose configuration named fewer members learned of the others from the
// volume's state, and never used the links to them that were open.
func TestServerWithAShorterListOfMembersUsesItsLinks(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	a, b := c.node("a"), c.node("b")
	b.cfg.Create.Members = b.cfg.Create.Members[:2]
	c.start("a", "b", "c")
	if res := a.command(func(n uint64) Event { return Init{ID: n} }); res == nil || res.Err != nil {
		t.Fatalf("init a: %+v", res)
	}
	c.pass(5 * time.Second)
	a.mustComplete(a.write(a.open("db1", 0), 0, "x"))
	c.kill("a")
	c.pass(5 * time.Second)
	res := b.command(func(n uint64) Event { return Promote{ID: n} })
	if res == nil || res.Err != nil {
		t.Fatalf("promote b, while c runs and is linked: %+v; b sees %+v", res, b.r.View(c.now).Peers)
	}
}

// The same where it is the master that the configuration lacks: nothing can be learned
// from that one, and status said to look at its status.
func TestStatusNamesAMasterThatTheConfigurationLacks(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	b, s := c.node("b"), c.node("c")
	b.cfg.Create.Members = b.cfg.Create.Members[:2]
	c.start("a", "c")
	if res := s.command(func(n uint64) Event { return Init{ID: n} }); res == nil || res.Err != nil {
		t.Fatalf("init c: %+v", res)
	}
	c.pass(5 * time.Second)
	c.start("b")
	c.pass(time.Minute)
	if v := b.r.View(c.now); !strings.Contains(v.Reason, "its master c") || !strings.Contains(v.Next, "configurations") {
		t.Errorf("b is %s: %q, next %q", v.State, v.Reason, v.Next)
	}
}
