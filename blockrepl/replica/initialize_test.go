package replica

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// begunInit is two servers whose images have content, with an init under way on both.
func begunInit(t *testing.T) *cluster {
	c := newCluster(t, 2, wire.Suspend)
	for _, n := range c.nodes {
		n.forgot = "its image has content" // nobody creates the volume by itself
		n.slowCopy = true
	}
	c.start("a", "b")
	c.pass(time.Second)
	for _, n := range c.nodes {
		if res := n.command(func(q uint64) Event { return InitStart{ID: q} }); res == nil || res.Err != nil {
			t.Fatalf("init-start %v: %+v", n.id, res)
		}
	}
	return c
}

func (n *node) mustInit() {
	n.c.t.Helper()
	if res := n.command(func(q uint64) Event { return Init{ID: q} }); res == nil || res.Err != nil {
		n.c.t.Fatalf("init %v: %+v", n.id, res)
	}
}

// The operator's init fills this server's image while the volume comes into being by an
// init on another one: the resync wrote to the same image at the same time, and what
// the init wrote last stayed in an image that is called in sync.
func TestResyncWaitsForTheEndOfAnInit(t *testing.T) {
	c := begunInit(t)
	a, b := c.node("a"), c.node("b")
	joins := 0
	c.mangle = func(_ record.ServerID, m wire.Message) []wire.Message {
		if _, ok := m.(*wire.Join); ok {
			joins++
		}
		return []wire.Message{m}
	}
	a.mustInit()
	c.pass(10 * time.Second)
	if len(b.orders) > 0 {
		t.Fatal("b copies extents into the image that its init is filling")
	}
	if most := int(10*time.Second/a.cfg.PeerTimeout) * 8; joins < 2 || joins > most {
		t.Errorf("b was asked to join %d times in 10 s, want 2 to %d", joins, most)
	}
	if p := a.r.peer(b.id); p.state != Probe || !strings.Contains(p.reason, "an init is preparing its image") {
		t.Errorf("a says that b is %v, %q", p.state, p.reason)
	}
	if n := strings.Count(strings.Join(a.notes, "\n"), "peer is resync"); n > 1 {
		t.Errorf("a said %d times that b is being resynced", n)
	}
	res := b.command(func(q uint64) Event { return Init{ID: q} })
	if res == nil || !errors.Is(res.Err, ErrRefused) || !strings.Contains(res.Err.Error(), "exists on server a") {
		t.Fatalf("init b: %+v; want it refused, with the server that has the volume", res)
	}
	if len(b.orders) != 1 {
		t.Fatalf("b was given %d orders to copy once its init had ended, want 1", len(b.orders))
	}
}

func TestResyncBeginsWhenAnInitWasCalledOff(t *testing.T) {
	c := begunInit(t)
	b := c.node("b")
	c.node("a").mustInit()
	c.pass(time.Second)
	b.step(InitEnd{})
	c.run()
	if len(b.orders) != 1 {
		t.Fatalf("b was given %d orders to copy once its init was called off, want 1", len(b.orders))
	}
	if res := b.command(func(q uint64) Event { return InitStart{ID: q} }); res == nil || !errors.Is(res.Err, ErrRefused) {
		t.Fatalf("init-start b in the middle of its resync: %+v; want it refused", res)
	}
}

// Where the creator's peer_timeout is much longer, a promise that it counted on was taken
// back for an init before it had all: the volume began with a server whose image was
// being filled, and waited for it until the operator forgot it.
func TestVolumeIsNotCreatedWithAServerWhoseInitHasBegun(t *testing.T) {
	c := newCluster(t, 3, wire.Suspend)
	a, b, s := c.node("a"), c.node("b"), c.node("c")
	a.cfg.PeerTimeout = time.Minute // b and c: 2 s
	held := true
	c.mangle = func(to record.ServerID, m wire.Message) []wire.Message {
		if _, ok := m.(*wire.Prepare); ok && held && to == s.id {
			return nil
		}
		return []wire.Message{m}
	}
	c.start("a", "b", "c")
	c.pass(5 * time.Second)
	if res := b.command(func(q uint64) Event { return InitStart{ID: q} }); res == nil || res.Err != nil {
		t.Fatalf("init-start b: %+v", res)
	}
	held = false
	c.pass(40 * time.Second)
	if !a.r.blank() {
		t.Fatalf("a has created the volume with %v in sync", names(ids(a.r.hard.State.InSync)))
	}
	c.pass(time.Minute)
	b.mustInit()
	c.pass(10 * time.Second)
	for _, n := range c.nodes {
		n.want(Healthy)
	}
}

// A crash ends what fills the image; that its content is nobody's is durable.
func TestResyncBeginsAfterACrashInTheMiddleOfAnInit(t *testing.T) {
	c := begunInit(t)
	b := c.node("b")
	c.node("a").mustInit()
	c.pass(time.Second)
	c.kill("b")
	b.forgot = ""
	c.start("b")
	c.pass(time.Second)
	if len(b.orders) != 1 {
		t.Fatalf("b was given %d orders to copy after its restart, want 1", len(b.orders))
	}
}

// Whoever was asked to join the volume of another server creates none of its own, also
// when that one has no link any more.
func TestInitThatHeardOfTheVolumeIsRefusedWithoutALink(t *testing.T) {
	c := begunInit(t)
	a, b := c.node("a"), c.node("b")
	a.mustInit()
	c.pass(time.Second)
	c.unlink(a, b)
	c.run()
	if res := b.command(func(q uint64) Event { return Init{ID: q} }); res == nil || !errors.Is(res.Err, ErrRefused) {
		t.Fatalf("init b: %+v; want it refused", res)
	}
	c.link(a, b)
	c.run()
	if len(b.orders) != 1 {
		t.Fatalf("b was given %d orders to copy, want 1", len(b.orders))
	}
}
