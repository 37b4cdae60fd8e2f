package blockrepl

import (
	"context"
	"sync"
	"testing"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
)

func TestFullInboxOfAHungLoopDropsRecordsOnly(t *testing.T) {
	in := newInbox()
	receive := func(m wire.Message, n int) { in.receive(replica.Received{Msg: m}, n) }
	receive(&wire.Append{}, inboxBytesMax+1)
	receive(&wire.Heartbeat{}, 0)
	receive(&wire.Append{}, 1)
	receive(&wire.Forward{}, 1)
	if got := len(in.take().events); got != 3 {
		t.Errorf("the loop finds %d messages, want all but the second Append", got)
	}
	receive(&wire.Append{}, 1)
	if got := len(in.take().events); got != 1 {
		t.Errorf("the loop finds %d messages after it woke, want 1", got)
	}
}

// two adds a second volume to the cluster.
func (c *cluster) two() {
	change := c.change
	c.change = func(o *Options) {
		second := c.volume
		second.Name = "vol1"
		o.Volumes = append(o.Volumes, second)
		if change != nil {
			change(o)
		}
	}
}

func (c *cluster) connectTo(i int, volume string) *testConn {
	c.t.Helper()
	first := c.volume.Name
	c.volume.Name = volume
	defer func() { c.volume.Name = first }()
	return c.connect(i, "client")
}

// A volume whose loop hung stopped all others on the same link, once its inbox was
// full.
func TestHungVolumeLeavesTheOthersTheLink(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.two()
	c.start(0, 1)
	c.awaitHealthy(0, 1)
	r := seeded(t)
	one := noise(r, 4096)
	first, second := c.connectTo(0, "vol0"), c.connectTo(0, "vol1")
	first.write(0, one)
	second.write(0, one)
	hang := make(chan struct{})
	wake := sync.OnceFunc(func() { close(hang) })
	t.Cleanup(wake)
	in := c.vol(1).in
	in.call(func() {
		in.mu.Lock()
		in.now.recv = inboxBytesMax + 1
		in.mu.Unlock()
		<-hang
	})
	done := make(chan error, 1)
	go func() { done <- first.change(OpWrite, 4096, one, 0) }()
	for i := range int64(20) {
		second.write(i*4096, one)
	}
	wake()
	if err := <-done; err != nil {
		t.Error(err)
	}
	c.awaitHealthy(0, 1)
	first.write(8192, one)
	c.equalImages(0, 1)
}

// A volume that could not go on with another server closed their link every two
// seconds, for all volumes and for ever.
func TestVolumeThatClosesTheLinkAgainAndAgainWaits(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.two()
	c.start(0, 1)
	second := c.connectTo(0, "vol1")
	for range 3 {
		c.awaitHealthy(0, 1)
		p := c.servers[0].links.peers[mustID("b")]
		l := p.cur.Load()
		c.vol(0).s.links.close(c.vol(0), p.id, l.session, "test")
		<-l.done
	}
	second.write(0, []byte("goes on"))
	p := c.servers[0].links.peers[mustID("b")]
	now := c.servers[0].opt.Clock()
	if d := p.holdBack(c.servers[0].Volume("vol1"), now); d != 0 {
		t.Errorf("the other volume waits %v", d)
	}
	if d := p.holdBack(c.vol(0), now); d != 2*holdBackMin {
		t.Errorf("it waits %v, want %v", d, 2*holdBackMin)
	}
	c.awaitHealthy(0, 1) // in the end
	c.connect(0, "client").write(0, []byte("goes on, too"))
}

// While the loop hung (a disk), what a client had sent stayed in the inbox after the
// client had gone and its share of opsBytesMax was given to the next one.
func TestHungLoopHoldsNoMoreThanTheBoundOfOperations(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.start(0)
	c.connect(0, "client").write(0, make([]byte, 512))
	v := c.vol(0)
	hang, hung := make(chan struct{}), make(chan struct{})
	v.in.call(func() { close(hung); <-hang })
	<-hung
	r := seeded(t)
	data := noise(r, 8<<20)
	held := func() (n int64) {
		v.in.mu.Lock()
		defer v.in.mu.Unlock()
		for _, o := range v.in.now.ops {
			n += int64(len(o.Rec.Raw))
		}
		return n
	}
	for range 6 { // six times a client comes, sends 128 MiB, and goes
		cl := c.connectAs(0, ClientInfo{Identity: "client", Takeover: true})
		for i := range int64(16) {
			w := &Write{Kind: OpWrite, Off: (i % 2) << 23, Len: 8 << 20, Data: cl.Alloc(8 << 20), Done: func(error) {}}
			copy(w.Data, data)
			cl.Submit(context.Background(), w)
		}
		if err := cl.Close(); err != nil {
			t.Error(err)
		}
	}
	if n := held(); n > opsBytesMax {
		t.Errorf("%d MiB of operations wait for the loop, at most %d were meant", n>>20, int64(opsBytesMax)>>20)
	}
	close(hang)
}
