package bubble

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl"
)

// client is one identity with one connection at a time, as the kernel's NBD driver
// with `blockrepl attach`: what is not answered is sent again over the next
// connection, which carries a newer token.
type client struct {
	w        *world
	i        int
	identity string
	rng      *rand.Rand

	think    time.Duration // between requests, up to
	patience time.Duration // a request that waits longer makes the client move
	patient  bool          // it never moves by itself
	stale    bool          // reads with stale=ok only
	readOnly bool
	polite   bool // does not take the volume from another client

	mu       sync.Mutex
	token    uint64
	conn     *attached
	pending  []*operation  // changes without an answer
	restless chan struct{} // capacity 1: the connection ended
}

const pendingMax = 6

// zombieMax is how long a connection that the client has left may stay open.
const zombieMax = 10 * time.Second

// attached is one connection. What comes over it after it ended is not heard.
type attached struct {
	c      *client
	p      *process
	conn   *blockrepl.Conn
	ctx    context.Context
	cancel context.CancelFunc
	over   bool // guarded by client.mu
	reads  int  // under way
}

// sectors is the size that the connection has now.
func (a *attached) sectors() int { return int(a.conn.Size() / sector) }

func (w *world) client(i int, identity string) *client {
	return &client{
		w: w, i: i, identity: identity, rng: w.rand('k'<<40 | uint64(i)), restless: make(chan struct{}, 1),
		think: 20 * time.Millisecond, patience: 4 * time.Second,
	}
}

// run does requests until stop is closed, then waits for the answers until ctx ends.
func (c *client) run(stop chan struct{}, ctx context.Context) {
	defer c.leave(false)
	timer := time.NewTimer(0)
	defer timer.Stop()
	draining := false
	var oldest time.Time
	for {
		timer.Reset(1 + time.Duration(c.rng.Int64N(int64(c.think))))
		select {
		case <-ctx.Done():
			return
		case <-stop:
			draining, stop = true, nil
		case <-c.restless:
			sleep(ctx, 10*time.Millisecond)
		case <-timer.C:
		}
		c.mu.Lock()
		conn, waiting := c.conn, len(c.pending)
		c.mu.Unlock()
		if draining && waiting == 0 {
			return
		}
		if conn == nil {
			if !c.attach(ctx, c.w.machines[c.rng.IntN(len(c.w.machines))]) {
				sleep(ctx, 50*time.Millisecond)
			}
			oldest = time.Now()
			continue
		}
		if waiting == 0 {
			oldest = time.Now()
		}
		if conn.p.dead() || !c.patient && (time.Since(oldest) > c.patience || !draining && c.rng.IntN(400) == 0) {
			// Half of the time the server does not hear of it: the first copy of a
			// request lies there while the client sends it again elsewhere.
			c.leave(c.rng.IntN(2) == 0)
			continue
		}
		if !draining && !c.w.still.Load() {
			c.request(conn)
		}
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// attach connects to a machine and sends again what has no answer.
func (c *client) attach(ctx context.Context, m *machine) bool {
	p := m.process()
	if p == nil || p.dead() || m.shunned.Load() {
		return false
	}
	c.mu.Lock()
	c.token++
	token := c.token
	c.mu.Unlock()
	a := &attached{c: c, p: p}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	var err error
	ok := p.use(func(pctx context.Context) {
		// Until the volume exists Connect waits; not longer than the client.
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		stop := context.AfterFunc(pctx, cancel)
		defer stop()
		link := context.AfterFunc(ctx, a.cancel)
		a.conn, err = p.srv.Volume(volumeName).Connect(a.ctx, blockrepl.ClientInfo{
			Addr: c.identity, Identity: c.identity, Token: token, Takeover: !c.readOnly && !c.polite, ReadOnly: c.readOnly, StaleOK: c.stale,
			Gone: func() bool { return false },
			Abort: func(error) {
				go func() {
					p.awake()
					a.ended()
				}()
			},
		})
		link()
	})
	if !ok || err != nil || a.ctx.Err() != nil {
		a.cancel()
		return false
	}
	c.mu.Lock()
	for _, o := range c.pending {
		if o.lo+o.n > a.sectors() {
			// Without a master a server may offer what the volume was before it grew.
			c.mu.Unlock()
			p.whenAwake(a.cancel)
			return false
		}
	}
	c.conn = a
	again := append([]*operation(nil), c.pending...)
	c.mu.Unlock()
	for _, o := range again {
		c.w.history.again(o)
		a.submit(o)
	}
	return true
}

// leave gives the connection up. A zombie stays open at the server for a while.
func (c *client) leave(zombie bool) {
	c.mu.Lock()
	a := c.conn
	c.conn = nil
	if a != nil {
		a.over = true
	}
	c.mu.Unlock()
	switch {
	case a == nil:
	case zombie:
		time.AfterFunc(time.Duration(c.rng.Int64N(int64(zombieMax))), func() { a.p.whenAwake(a.cancel) })
	default:
		a.p.whenAwake(a.cancel)
	}
}

// ended hears that the server closed the connection.
func (a *attached) ended() {
	a.cancel()
	c := a.c
	c.mu.Lock()
	defer c.mu.Unlock()
	a.over = true
	if c.conn == a {
		c.conn = nil
	}
	select {
	case c.restless <- struct{}{}:
	default:
	}
}

// place draws where a request goes: mostly a few sectors that everybody fights for.
func (c *client) place() (lo, n int) { return c.within(sectors) }

// within is place in a volume of so many sectors.
func (c *client) within(sectors int) (lo, n int) {
	switch c.rng.IntN(10) {
	case 0:
		n = 1 + c.rng.IntN(64)
		return c.rng.IntN(sectors - n), n
	case 1:
		return sectors - 8, 8
	}
	n = 1 + c.rng.IntN(4)
	return c.rng.IntN(12), n
}

func (c *client) request(a *attached) {
	lo, n := c.within(a.sectors())
	if c.rng.IntN(3) == 0 || a.conn.ReadOnly() {
		c.mu.Lock()
		busy := a.reads >= pendingMax
		if !busy {
			a.reads++
		}
		c.mu.Unlock()
		if !busy {
			go a.read(lo, n)
		}
		return
	}
	c.mu.Lock()
	full := len(c.pending) >= pendingMax
	c.mu.Unlock()
	if full {
		return
	}
	o := &operation{client: c.i, lo: lo, n: n}
	c.w.history.begin(o)
	if c.rng.IntN(6) > 0 {
		o.val = o.id
	}
	c.mu.Lock()
	c.pending = append(c.pending, o)
	c.mu.Unlock()
	a.submit(o)
}

// submit sends a change over one connection.
func (a *attached) submit(o *operation) {
	w := &blockrepl.Write{Kind: blockrepl.OpWrite, Off: int64(o.lo * sector), Len: int64(o.n * sector)}
	switch {
	case o.val != 0:
		w.Data = a.conn.Alloc(o.n * sector)
		fill(w.Data, o.val)
	case o.id%2 == 0:
		w.Kind = blockrepl.OpTrim
	default:
		w.Kind = blockrepl.OpZero
	}
	w.Done = func(err error) { a.p.whenAwake(func() { a.answer(o, err) }) }
	a.p.whenAwake(func() { a.conn.Submit(a.ctx, w) })
}

// answer hears the outcome of one copy of a request.
func (a *attached) answer(o *operation, err error) {
	c := a.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if a.over || a.p.dead() || errors.Is(err, blockrepl.ErrAborted) {
		return // no reply reaches the client
	}
	for i, x := range c.pending {
		if x != o {
			continue
		}
		c.pending = append(c.pending[:i], c.pending[i+1:]...)
		if err == nil {
			c.w.history.end(o, a.p.m.name)
		}
		if o.done != nil {
			o.err = err
			close(o.done)
		} else if err != nil {
			c.w.history.refused(o)
			c.w.tell("client %d: operation %d is refused by %s: %v", c.i, o.id, a.p.m.name, err)
			c.w.refuse(err)
		}
		return
	}
}

func (a *attached) read(lo, n int) {
	c := a.c
	p := make([]byte, n*sector)
	o := &operation{client: c.i, read: true, lo: lo, n: n}
	if !c.stale {
		c.w.history.begin(o)
	}
	a.p.awake()
	done, err := a.conn.ReadNow(p, int64(lo*sector))
	if !done && err == nil {
		err = a.conn.ReadAt(a.ctx, p, int64(lo*sector))
	}
	a.p.awake() // what it has read it tells afterwards
	c.mu.Lock()
	defer c.mu.Unlock()
	a.reads--
	if err != nil || a.over || a.p.dead() {
		return
	}
	for i := range n {
		v, ok := value(p[i*sector : (i+1)*sector])
		if !ok {
			c.w.errorf("client %d reads a sector that nobody wrote at %s, sector %d: % x…", c.i, a.p.m.name, lo+i, p[i*sector:i*sector+16])
		}
		o.got = append(o.got, v)
	}
	if !c.stale {
		c.w.history.end(o, a.p.m.name)
	}
}

// readAll reads the whole volume at a machine and adds it to the history.
func (w *world) readAll(m *machine) {
	c := w.client(100+m.i, "final")
	c.mu.Lock()
	c.token = uint64(time.Since(w.begin))
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	p := m.process()
	var conn *blockrepl.Conn
	var err error
	if p == nil {
		w.fatalf("%s is off", m.name)
	}
	conn, err = p.srv.Volume(volumeName).Connect(ctx, blockrepl.ClientInfo{Addr: "final", Identity: "final", ReadOnly: true})
	if err != nil {
		w.fatalf("connect to %s: %v", m.name, err)
	}
	defer conn.Close()
	n := int(conn.Size() / sector)
	b := make([]byte, n*sector)
	o := &operation{client: 100 + m.i, read: true, n: n}
	w.history.begin(o)
	if err := conn.ReadAt(ctx, b, 0); err != nil {
		w.describe()
		w.fatalf("read all at %s: %v", m.name, err)
	}
	for i := range n {
		v, ok := value(b[i*sector : (i+1)*sector])
		if !ok {
			w.errorf("%s: sector %d holds what nobody wrote: % x…", m.name, i, b[i*sector:i*sector+16])
		}
		o.got = append(o.got, v)
	}
	m.read = b
	w.history.end(o, m.name)
}
