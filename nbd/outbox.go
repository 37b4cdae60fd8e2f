package nbd

import (
	"net"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// outbox gathers replies and writes many of them with one system call. Comes from: the reader (whole batches), workers
// and the disk's goroutines (single replies). Goes to: the socket.
//
//  1. A reply is appended to queue under mu.
//  2. Whoever holds the write token (writing) moves the queue to cur and writes cur. On a plain socket the reader takes the
//     token for an attempt that does not wait; everybody else wakes the connection's writer goroutine.
//  3. What is written gives back its buffers and its part of the quota.
//
// The reader never waits for a client to read: what the socket does not take at once it hands to the writer with the token.
// sendfile was considered and left out: a page that changes between reply and transmission would tear the read.
type outbox struct {
	conn  net.Conn
	raw   syscall.RawConn // nil: not a plain socket (TLS, a pipe)
	quota *quota
	fail  func(error) // told when the socket fails

	wake  chan struct{} // capacity 1: something for the writer goroutine
	stop  chan struct{} // closed when the writer goroutine is to end
	total atomic.Uint64 // bytes written

	mu      sync.Mutex
	queue   []piece
	tail    bool // the last piece of queue may grow (small replies)
	writing bool // the token is taken
	handoff bool // the token waits for the writer goroutine
	dead    bool // everything is dropped

	// Owned by the holder of the token.
	cur     []piece
	iov     []unix.Iovec
	waits   bool // sysWrite may wait for the socket
	n       int
	err     error
	sysFn   func(fd uintptr) bool
	scratch []byte // gathers pieces for a connection without writev
}

// piece is a run of bytes to send and what is given back once they are sent.
type piece struct {
	b    []byte
	buf  *buffer // nil: not the last piece of its buffer
	reqs int32
	cost int64
}

func (o *outbox) init(conn net.Conn, raw syscall.RawConn, q *quota, fail func(error)) {
	o.conn, o.raw, o.quota, o.fail = conn, raw, q, fail
	o.wake, o.stop = make(chan struct{}, 1), make(chan struct{})
	o.sysFn = o.sysWrite
}

// push queues pieces. The caller then kicks or flushes.
func (o *outbox) push(ps ...piece) {
	o.mu.Lock()
	if o.dead {
		o.mu.Unlock()
		o.giveBack(ps)
		return
	}
	o.queue = append(o.queue, ps...)
	o.tail = false
	o.mu.Unlock()
}

// small queues a reply of at most smallMax bytes that add appends, for one request that holds cost, and wakes the writer.
func (o *outbox) small(add func(b []byte) []byte, cost int64) {
	o.mu.Lock()
	if o.dead {
		o.mu.Unlock()
		o.quota.release(1, cost)
		return
	}
	p := o.roomLocked()
	p.b = add(p.b)
	p.reqs++
	p.cost += cost
	idle := !o.writing
	o.mu.Unlock()
	if idle {
		o.signal()
	}
}

// headed queues the head that add appends and the payload behind it, which accounts for both. The
// caller then kicks or flushes.
func (o *outbox) headed(add func(b []byte) []byte, payload piece) {
	o.mu.Lock()
	if o.dead {
		o.mu.Unlock()
		o.giveBack([]piece{payload})
		return
	}
	p := o.roomLocked()
	p.b = add(p.b)
	o.queue = append(o.queue, payload)
	o.tail = false
	o.mu.Unlock()
}

// smallMax is the most bytes that one small reply may take.
const smallMax = 256

// roomLocked gives a last piece that has room for one more small reply.
func (o *outbox) roomLocked() *piece {
	if o.tail {
		if p := &o.queue[len(o.queue)-1]; cap(p.b)-len(p.b) >= smallMax {
			return p
		}
	}
	buf := getBuffer(replyBytes)
	o.queue = append(o.queue, piece{b: buf.b[:0], buf: buf})
	o.tail = true
	return &o.queue[len(o.queue)-1]
}

func (o *outbox) signal() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// kick wakes the writer if there is something to write and nobody does.
func (o *outbox) kick() {
	o.mu.Lock()
	idle := !o.writing && len(o.queue) > 0
	o.mu.Unlock()
	if idle {
		o.signal()
	}
}

// flush writes what is queued as far as the socket takes it now; the writer goroutine does the rest.
func (o *outbox) flush() {
	if o.raw == nil {
		o.kick()
		return
	}
	o.mu.Lock()
	if o.writing || o.dead || len(o.queue) == 0 {
		o.mu.Unlock()
		return
	}
	o.writing = true
	o.mu.Unlock()
	o.run(false)
}

// runWriter is the writer goroutine of a connection. It ends when stop is closed.
func (o *outbox) runWriter() {
	for {
		select {
		case <-o.wake:
		case <-o.stop:
			return
		}
		o.mu.Lock()
		mine := o.handoff || !o.writing
		if mine {
			o.writing, o.handoff = true, false
		}
		o.mu.Unlock()
		if mine {
			o.run(true)
		}
	}
}

// run writes until nothing is left; the caller holds the token. Without waiting it may hand the token on.
func (o *outbox) run(wait bool) {
	o.waits = wait
	for {
		o.mu.Lock()
		if o.dead || (len(o.cur) == 0 && len(o.queue) == 0) {
			dropped := o.cur // only when dead
			if len(dropped) > 0 {
				o.cur = nil
			}
			o.writing = false // the next holder of the token may run from here
			o.mu.Unlock()
			o.giveBack(dropped)
			return
		}
		if len(o.cur) == 0 {
			o.cur, o.queue = o.queue, o.cur
			o.tail = false
		}
		o.mu.Unlock()

		done, err := o.write()
		if err != nil {
			o.fail(err) // makes the outbox dead
			continue
		}
		if !done && !wait {
			o.mu.Lock()
			o.handoff = true
			o.mu.Unlock()
			o.signal()
			return
		}
	}
}

// write sends cur, or its beginning, and gives back what was sent. done is false when the socket is full.
func (o *outbox) write() (done bool, err error) {
	n := 0
	if o.raw != nil {
		o.iov = o.iov[:0]
		for i := range o.cur[:min(len(o.cur), writevMax)] {
			b := o.cur[i].b
			o.iov = append(o.iov, unix.Iovec{Base: &b[0]})
			o.iov[i].SetLen(len(b))
		}
		o.n, o.err = 0, nil
		if err := o.raw.Write(o.sysFn); err != nil {
			return false, err
		}
		n, err, done = o.n, o.err, o.n > 0
		clear(o.iov)
	} else {
		n, err = o.conn.Write(o.gather())
		done = true
	}
	o.total.Add(uint64(n))
	o.sent(n)
	return done, err
}

// sysWrite is one writev; false asks the poller to wait for room.
func (o *outbox) sysWrite(fd uintptr) bool {
	for {
		n, err := writev(fd, o.iov)
		switch err {
		case 0:
			o.n = n
			return true
		case unix.EINTR:
		case unix.EAGAIN:
			return !o.waits
		default:
			o.err = err
			return true
		}
	}
}

// gather gives the beginning of cur as one slice: a large piece itself, or many small ones copied together, because each
// Write of a TLS connection is at least one record and one system call.
func (o *outbox) gather() []byte {
	if len(o.cur) == 1 || len(o.cur[0].b) >= smallRead {
		return o.cur[0].b
	}
	o.scratch = o.scratch[:0]
	for i := range o.cur {
		if len(o.scratch)+len(o.cur[i].b) > smallRead {
			break
		}
		o.scratch = append(o.scratch, o.cur[i].b...)
	}
	return o.scratch
}

// sent gives back the pieces in the first n bytes of cur.
func (o *outbox) sent(n int) {
	i := 0
	for i < len(o.cur) && n >= len(o.cur[i].b) {
		n -= len(o.cur[i].b)
		i++
	}
	o.giveBack(o.cur[:i])
	rest := copy(o.cur, o.cur[i:])
	clear(o.cur[rest:])
	o.cur = o.cur[:rest]
	if n > 0 {
		o.cur[0].b = o.cur[0].b[n:]
	}
}

// giveBack returns the buffers and the quota of pieces that were sent or dropped.
func (o *outbox) giveBack(ps []piece) {
	var reqs int32
	var cost int64
	for i := range ps {
		if ps[i].buf != nil {
			ps[i].buf.put()
		}
		reqs += ps[i].reqs
		cost += ps[i].cost
	}
	if reqs > 0 || cost > 0 {
		o.quota.release(reqs, cost)
	}
}

// kill drops everything queued, and whatever comes later.
func (o *outbox) kill() {
	o.mu.Lock()
	o.dead = true
	dropped := o.queue
	o.queue, o.tail = nil, false
	o.mu.Unlock()
	o.giveBack(dropped)
	o.signal() // a handed-on token: the writer drops cur
}

// busy reports whether something waits to be sent.
func (o *outbox) busy() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.writing || len(o.queue) > 0
}
