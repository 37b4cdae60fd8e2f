package bubble

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing/synctest"
	"time"
)

// socketBytes is what a connection holds on its way, in bytes. Beyond it Write waits.
const socketBytes = 256 << 10

// network carries the links between machines. One goroutine, drive, moves bytes;
// everything else happens under mu.
type network struct {
	rng  *rand.Rand    // the driver's own
	wake chan struct{} // capacity 1: something was sent

	mu        sync.Mutex
	listeners map[string]*listener
	pairs     map[[2]string]int      // connections so far between two machines
	live      map[string]*connection // connections with an open end
	halves    []*half                // with bytes or an end that is not delivered
	blocked   map[[2]string]bool
	due       deliveries
	order     uint64

	// What happens to bytes on their way; changed by the schedule.
	delay   time.Duration // up to
	corrupt float64       // probability that a segment has a flipped bit
	flips   int           // bits flipped so far
	dials   int           // attempts so far
}

// half is one direction of a connection.
type half struct {
	key      string
	from, to string
	cond     sync.Cond // on network.mu; both ends wait here

	fresh  []byte // written, not seen by the driver
	fin    bool   // the writer closed
	queue  []segment
	queued int
	last   time.Time // when the youngest segment of queue is due
	armed  bool      // a delivery is scheduled
	listed bool

	buf  []byte // delivered
	eof  bool
	err  error // reset
	dead bool  // the writing process died: what it writes now goes nowhere
}

// connection is two halves; it is forgotten when both ends are closed.
type connection struct {
	key    string
	halves [2]*half
	ends   int // open ones
}

type segment struct {
	data []byte
	fin  bool
}

type delivery struct {
	at    time.Time
	order uint64
	h     *half
}

type deliveries []delivery

func (d deliveries) Len() int { return len(d) }
func (d deliveries) Less(i, j int) bool {
	if c := d[i].at.Compare(d[j].at); c != 0 {
		return c < 0
	}
	return d[i].order < d[j].order
}
func (d deliveries) Swap(i, j int) { d[i], d[j] = d[j], d[i] }
func (d *deliveries) Push(x any)   { *d = append(*d, x.(delivery)) }
func (d *deliveries) Pop() any {
	x := (*d)[len(*d)-1]
	*d = (*d)[:len(*d)-1]
	return x
}

func newNetwork(seed uint64) *network {
	return &network{
		rng: rand.New(rand.NewPCG(seed, 'n')), wake: make(chan struct{}, 1), delay: time.Millisecond,
		listeners: map[string]*listener{}, pairs: map[[2]string]int{}, live: map[string]*connection{}, blocked: map[[2]string]bool{},
	}
}

func (n *network) notify() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// drive delivers until quit is closed. It is the only caller of synctest.Wait.
func (n *network) drive(quit chan struct{}) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		synctest.Wait()
		n.collect()
		wait, ok := n.deliver()
		if ok {
			continue
		}
		timer.Reset(wait)
		select {
		case <-quit:
			return
		case <-n.wake:
		case <-timer.C:
		}
	}
}

// collect takes all that was sent since the last time, in the order of the
// connections' names, and draws when it arrives.
func (n *network) collect() {
	n.mu.Lock()
	defer n.mu.Unlock()
	slices.SortFunc(n.halves, func(a, b *half) int { return cmp.Compare(a.key, b.key) })
	for _, h := range n.halves {
		for len(h.fresh) > 0 {
			k := len(h.fresh)
			if n.rng.IntN(4) == 0 {
				k = 1 + n.rng.IntN(k)
			}
			data := slices.Clone(h.fresh[:k])
			h.fresh = h.fresh[k:]
			if n.corrupt > 0 && n.rng.Float64() < n.corrupt {
				data[n.rng.IntN(k)] ^= 1 << n.rng.IntN(8)
				n.flips++
			}
			h.queue = append(h.queue, segment{data: data})
			h.queued += k
		}
		h.fresh = nil
		if h.fin {
			h.queue = append(h.queue, segment{fin: true})
		}
		h.listed = false
		n.armLocked(h)
	}
	n.halves = n.halves[:0]
}

// armLocked schedules the delivery of a half's oldest segment.
func (n *network) armLocked(h *half) {
	if h.armed || len(h.queue) == 0 || n.blocked[[2]string{h.from, h.to}] {
		return
	}
	h.armed = true
	at := time.Now().Add(time.Duration(n.rng.Int64N(int64(n.delay) + 1)))
	if at.Before(h.last) {
		at = h.last
	}
	h.last = at
	n.order++
	heap.Push(&n.due, delivery{at, n.order, h})
}

// deliver delivers what is due, one segment; else it gives the time until then.
func (n *network) deliver() (time.Duration, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.due) == 0 {
		return time.Hour, false
	}
	if wait := time.Until(n.due[0].at); wait > 0 {
		return wait, false
	}
	h := heap.Pop(&n.due).(delivery).h
	h.armed = false
	if n.blocked[[2]string{h.from, h.to}] || len(h.queue) == 0 {
		return 0, true // lies there until the partition ends
	}
	s := h.queue[0]
	h.queue = h.queue[1:]
	h.queued -= len(s.data)
	if s.fin {
		h.eof = true
	} else {
		h.buf = append(h.buf, s.data...)
	}
	h.cond.Broadcast()
	n.armLocked(h)
	return 0, true
}

// block holds back all bytes of one direction; they are not lost, as TCP sends again.
func (n *network) block(from, to string, on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !on {
		delete(n.blocked, [2]string{from, to})
	} else {
		n.blocked[[2]string{from, to}] = true
	}
	n.rearmLocked()
}

// heal ends all partitions and damage.
func (n *network) heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.blocked)
	n.corrupt = 0
	n.rearmLocked()
}

func (n *network) rearmLocked() {
	// Every half with something in its queue is looked at again by collect.
	for _, h := range n.allLocked() {
		n.listLocked(h)
	}
	n.notify()
}

func (n *network) allLocked() []*half {
	var all []*half
	for _, w := range n.live {
		all = append(all, w.halves[0], w.halves[1])
	}
	slices.SortFunc(all, func(a, b *half) int { return cmp.Compare(a.key, b.key) })
	return all
}

func (n *network) listLocked(h *half) {
	if !h.listed {
		h.listed = true
		n.halves = append(n.halves, h)
	}
}

func (n *network) setDamage(p float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.corrupt = p
}

func (n *network) flipped() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.flips
}

func (n *network) setDelay(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delay = d
}

// reset breaks every connection between two machines, as a firewall does that forgot them.
func (n *network) reset(a, b string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, h := range n.allLocked() {
		if h.from == a && h.to == b || h.from == b && h.to == a {
			h.err = syscall.ECONNRESET
			h.cond.Broadcast()
		}
	}
}

// port is a process's network: it dies with it.
type port struct {
	n    *network
	name string
	dead bool // guarded by n.mu
	ls   []*listener
	all  map[*conn]bool
}

func (n *network) port(name string) *port { return &port{n: n, name: name, all: map[*conn]bool{}} }

// kill ends what the process says, at once. With silent, as when the power fails,
// its peers hear nothing of it; else their connections are reset.
func (p *port) kill(silent bool) {
	n := p.n
	n.mu.Lock()
	defer n.mu.Unlock()
	p.dead = true
	for _, l := range p.ls {
		if n.listeners[l.addr] == l {
			delete(n.listeners, l.addr)
		}
	}
	for c := range p.all {
		c.out.dead = true
		c.out.fresh = nil
		if !silent {
			c.out.err = syscall.ECONNRESET
			c.out.cond.Broadcast()
		}
		c.in.err = syscall.ECONNRESET
		c.in.cond.Broadcast()
	}
}

// Listen is part of blockrepl.Net.
func (p *port) Listen(_ context.Context, addr string) (net.Listener, error) {
	n := p.n
	n.mu.Lock()
	defer n.mu.Unlock()
	if p.dead {
		return nil, syscall.ENETDOWN
	}
	if n.listeners[addr] != nil {
		return nil, syscall.EADDRINUSE
	}
	l := &listener{p: p, addr: addr, queue: make(chan *conn, 64), closed: make(chan struct{})}
	n.listeners[addr] = l
	p.ls = append(p.ls, l)
	return l, nil
}

// Dial is part of blockrepl.Net. A partition leaves it without an answer.
func (p *port) Dial(ctx context.Context, addr string) (net.Conn, error) {
	to := hostOf(addr)
	p.n.mu.Lock()
	p.n.dials++
	blocked := p.n.blocked[[2]string{p.name, to}] || p.n.blocked[[2]string{to, p.name}]
	p.n.mu.Unlock()
	if blocked {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	n := p.n
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.listeners[addr]
	if l == nil || p.dead || len(l.queue) == cap(l.queue) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	}
	pair := [2]string{p.name, to}
	n.pairs[pair]++
	key := fmt.Sprintf("%s-%s-%06d", p.name, to, n.pairs[pair])
	there := &half{key: key + ">", from: p.name, to: to}
	back := &half{key: key + "<", from: to, to: p.name}
	there.cond.L, back.cond.L = &n.mu, &n.mu
	w := &connection{key: key, halves: [2]*half{there, back}, ends: 2}
	mine := &conn{p: p, w: w, in: back, out: there, remote: memAddr(addr)}
	theirs := &conn{p: l.p, w: w, in: there, out: back, remote: memAddr(p.name)}
	p.all[mine], l.p.all[theirs] = true, true
	n.live[key] = w
	l.queue <- theirs
	return mine, nil
}

func hostOf(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		panic(err)
	}
	return host
}

type memAddr string

func (a memAddr) Network() string { return "mem" }
func (a memAddr) String() string  { return string(a) }

type listener struct {
	p      *port
	addr   string
	queue  chan *conn
	once   sync.Once
	closed chan struct{}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		n := l.p.n
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.listeners[l.addr] == l {
			delete(n.listeners, l.addr)
		}
	})
	return nil
}

func (l *listener) Addr() net.Addr { return memAddr(l.addr) }

// conn is one end of a connection.
type conn struct {
	p       *port
	w       *connection
	in, out *half
	remote  memAddr

	closed         bool // guarded by network.mu, as are the deadlines
	rdead, wdead   time.Time
	rtimer, wtimer *time.Timer
}

func (c *conn) Read(b []byte) (int, error) {
	n := c.p.n
	n.mu.Lock()
	defer n.mu.Unlock()
	for {
		switch {
		case c.closed:
			return 0, net.ErrClosed
		case len(c.in.buf) > 0:
			k := copy(b, c.in.buf)
			c.in.buf = c.in.buf[k:]
			c.in.cond.Broadcast() // room for the writer
			return k, nil
		case c.in.err != nil:
			return 0, &net.OpError{Op: "read", Net: "tcp", Err: c.in.err}
		case c.in.eof:
			return 0, io.EOF
		case passed(c.rdead):
			return 0, os.ErrDeadlineExceeded
		}
		c.in.cond.Wait()
	}
}

func passed(t time.Time) bool { return !t.IsZero() && !time.Now().Before(t) }

func (c *conn) Write(b []byte) (int, error) {
	n := c.p.n
	n.mu.Lock()
	defer n.mu.Unlock()
	h := c.out
	for sent := 0; ; {
		switch {
		case c.closed:
			return sent, net.ErrClosed
		case h.err != nil:
			return sent, &net.OpError{Op: "write", Net: "tcp", Err: h.err}
		case passed(c.wdead):
			return sent, os.ErrDeadlineExceeded
		case h.dead:
			return len(b), nil
		case sent == len(b):
			return sent, nil
		}
		if room := socketBytes - len(h.fresh) - h.queued - len(h.buf); room > 0 {
			k := min(room, len(b)-sent)
			h.fresh = append(h.fresh, b[sent:sent+k]...)
			sent += k
			n.listLocked(h)
			n.notify()
			continue
		}
		h.cond.Wait()
	}
}

func (c *conn) Close() error {
	n := c.p.n
	n.mu.Lock()
	defer n.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	delete(c.p.all, c)
	if c.w.ends--; c.w.ends == 0 {
		delete(n.live, c.w.key)
	}
	for _, t := range []*time.Timer{c.rtimer, c.wtimer} {
		if t != nil {
			t.Stop()
		}
	}
	c.in.buf = nil
	if !c.out.dead && c.out.err == nil {
		c.out.fin = true
		n.listLocked(c.out)
		n.notify()
	}
	// The other end's writes are answered by a reset.
	c.in.err = errors.Join(c.in.err, syscall.EPIPE)
	c.in.cond.Broadcast()
	c.out.cond.Broadcast()
	return nil
}

func (c *conn) LocalAddr() net.Addr  { return memAddr(c.p.name) }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *conn) SetReadDeadline(t time.Time) error {
	return c.deadline(&c.rdead, &c.rtimer, c.in, t)
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	return c.deadline(&c.wdead, &c.wtimer, c.out, t)
}

func (c *conn) deadline(at *time.Time, timer **time.Timer, h *half, t time.Time) error {
	n := c.p.n
	n.mu.Lock()
	defer n.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	*at = t
	if *timer != nil {
		(*timer).Stop()
		*timer = nil
	}
	if !t.IsZero() {
		*timer = time.AfterFunc(time.Until(t), func() {
			n.mu.Lock()
			defer n.mu.Unlock()
			h.cond.Broadcast()
		})
	}
	h.cond.Broadcast()
	return nil
}
