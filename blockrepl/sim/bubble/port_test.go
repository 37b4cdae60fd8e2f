package bubble

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// A machine's end of the network: what the server under test dials, listens on, reads
// and writes. What happens to bytes on their way is decided in net_test.go.

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

// Dial is part of blockrepl.Net. A partition leaves it without an answer. A machine
// that stands still is connected to, as its kernel would do it, and says nothing.
func (p *port) Dial(ctx context.Context, addr string) (net.Conn, error) {
	to := hostOf(addr)
	p.n.mu.Lock()
	p.n.dials++
	blocked := p.n.blocked[[2]string{p.name, to}] || p.n.blocked[[2]string{to, p.name}] || p.n.paused[p.name]
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

func (a memAddr) String() string { return string(a) }

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

func (c *conn) LocalAddr() net.Addr { return memAddr(c.p.name) }

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
