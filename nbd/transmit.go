package nbd

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/blockrepl/blockrepl/nbd/internal/proto"
)

// errDisconnect ends transmission in the way the specification asks for: NBD_CMD_DISC.
var errDisconnect = errors.New("the client disconnected")

// errDraining ends reading because the server shuts down.
var errDraining = errors.New("the server is shutting down")

// batch gathers the replies of the requests that the reader answers by itself, until it runs out of buffered requests.
// Owned by the reader.
type batch struct {
	buf *buffer // nil: empty
	p   piece
}

// transmit is the reader of a connection: comes from input, goes to the disk and the outbox. It ends with the reason why
// no more requests are read.
//
// Requests that the disk can serve at once (ReadNow) are answered here, a batch of them with one system call; writes are
// submitted from here; everything else waits in a worker.
func (c *conn) transmit() error {
	for {
		if c.in.buffered() < proto.RequestLen {
			if !c.more() {
				c.flush()
			}
			if c.draining.Load() {
				return errDraining
			}
			if err := c.in.fill(proto.RequestLen); err != nil {
				if c.draining.Load() {
					return errDraining
				}
				return fmt.Errorf("read request: %w", err)
			}
		}
		if c.draining.Load() {
			return errDraining
		}
		h, ok := parseHeader(c.in.take(proto.RequestLen))
		if !ok {
			return fmt.Errorf("read request %d: wrong magic: %w", c.stats.requests.Load()+1, ErrProtocol)
		}
		c.stats.requests.Add(1)
		if h.cmd == proto.CmdDisc {
			return errDisconnect
		}
		if err := c.handle(&h); err != nil {
			if c.draining.Load() && errors.Is(err, os.ErrDeadlineExceeded) {
				return errDraining // in the middle of a payload; the requests before it are still answered
			}
			return err
		}
	}
}

// more looks for requests that came meanwhile, before the replies to the last ones go out: larger batches wake the client
// less often.
func (c *conn) more() bool {
	if c.batch.buf == nil || len(c.batch.p.b) >= gatherBytes || c.out.raw == nil {
		return false
	}
	return c.in.poll(c.out.raw) && c.in.buffered() >= proto.RequestLen
}

// handle answers one request or sends it on its way. An error ends the connection.
func (c *conn) handle(h *header) error {
	if r := c.check(h); r.errno != 0 {
		return c.refuse(h, r)
	}
	switch h.cmd {
	case proto.CmdRead:
		return c.read(h)
	case proto.CmdWrite:
		return c.write(h)
	case proto.CmdTrim, proto.CmdWriteZeroes:
		return c.change(h)
	}
	cost := int64(0)
	if h.cmd == proto.CmdBlockStatus {
		cost = classBytes(statusBytes)
	}
	if err := c.admit(cost); err != nil {
		return err
	}
	c.dispatch(newRequest(c, h, cost))
	return nil
}

// statusBytes is what the longest BLOCK_STATUS reply takes.
const statusBytes = proto.ChunkLen + 4 + 8*maxExtents

// admit waits until one more request that holds cost may be in flight.
func (c *conn) admit(cost int64) error {
	if c.quota.tryAcquire(cost) {
		return nil
	}
	c.flush() // what we wait for may depend on the client getting these
	if err := c.quota.acquire(c.ctx, cost); err != nil {
		return c.ended(err)
	}
	return nil
}

// refuse answers a request that does not reach the disk; the connection lives on.
func (c *conn) refuse(h *header, r refusal) error {
	c.logRefused(h, r.errno, errors.New(r.why))
	if h.cmd == proto.CmdWrite && h.length > 0 {
		if c.in.buffered() < int(h.length) {
			c.flush()
		}
		if err := c.in.discard(int64(h.length)); err != nil {
			return fmt.Errorf("skip the payload of a refused write of %d at %d: %w", h.length, h.off, err)
		}
	}
	if err := c.admit(0); err != nil {
		return err
	}
	c.out.small(func(b []byte) []byte { return c.appendError(b, h, r) }, 0)
	return nil
}

// read answers a read from the reader if the disk has the data at hand, else hands it to a worker.
func (c *conn) read(h *header) error {
	n := int(h.length)
	cost := classBytes(n)
	if err := c.admit(cost); err != nil {
		return err
	}
	c.stats.reads.Add(1)
	c.stats.readBytes.Add(uint64(n))
	if c.now != nil && n <= nowRead {
		var done bool
		if n <= smallRead {
			done = c.readSmall(h, cost)
		} else {
			done = c.readLarge(h, cost)
		}
		if done {
			return nil
		}
	}
	c.dispatch(newRequest(c, h, cost))
	return nil
}

// readSmall reads straight behind the reply's header in the batch.
func (c *conn) readSmall(h *header, cost int64) bool {
	n, head := int(h.length), c.readHeadLen()
	if c.batch.buf != nil && cap(c.batch.p.b)-len(c.batch.p.b) < head+n {
		c.flush()
	}
	if c.batch.buf == nil {
		c.batch.buf = getBuffer(batchBytes)
		c.batch.p = piece{b: c.batch.buf.b[:0], buf: c.batch.buf}
	}
	p := &c.batch.p
	at := len(p.b)
	data := p.b[at+head : at+head+n]
	done, err := c.now.ReadNow(data, int64(h.off))
	switch {
	case err != nil:
		if c.hang(err) {
			c.quota.release(1, cost)
			return true
		}
		c.logRefused(h, Errno(err, false), err)
		p.b = c.appendReadError(p.b, h, err)
	case !done:
		return false
	case c.structured && h.flags&proto.CmdFlagDF == 0 && isZero(data):
		p.b = appendHole(p.b, proto.ChunkFlagDone, h.cookie, h.off, n)
	default:
		c.appendReadHead(p.b, h)
		p.b = p.b[:at+head+n]
	}
	p.reqs++
	p.cost += cost
	return true
}

// readLarge reads into a buffer of its own.
func (c *conn) readLarge(h *header, cost int64) bool {
	buf := getBuffer(int(h.length))
	done, err := c.now.ReadNow(buf.b[:h.length], int64(h.off))
	if err == nil && !done {
		buf.put()
		return false
	}
	c.pushBatch()
	c.answerRead(h, buf, cost, err)
	c.out.flush() // at once, while the data is in this core's cache
	return true
}

// write takes the payload and submits it.
func (c *conn) write(h *header) error {
	n := int(h.length)
	if err := c.admit(int64(n)); err != nil {
		return err
	}
	data := c.disk.Alloc(n)
	if c.in.buffered() < n {
		c.flush()
	}
	if err := c.in.readFull(data); err != nil {
		c.disk.Free(data)
		c.quota.release(1, int64(n))
		return fmt.Errorf("read the payload of a write of %d at %d: %w", n, h.off, err)
	}
	if err := c.stillThere(); err != nil {
		c.disk.Free(data)
		c.quota.release(1, int64(n))
		return err
	}
	r := newRequest(c, h, int64(n))
	r.w.Op, r.w.Off, r.w.Len, r.w.Data = OpWrite, int64(h.off), int64(n), data
	r.w.FUA, r.w.NoHole, r.w.FastZero = h.flags&proto.CmdFlagFUA != 0, false, false
	c.stats.writes.Add(1)
	c.stats.writeBytes.Add(uint64(n))
	c.submit(r)
	return nil
}

// change submits a trim or a zero.
func (c *conn) change(h *header) error {
	if err := c.admit(0); err != nil {
		return err
	}
	if err := c.stillThere(); err != nil {
		c.quota.release(1, 0)
		return err
	}
	r := newRequest(c, h, 0)
	r.w.Op, r.w.Off, r.w.Len, r.w.Data = OpZero, int64(h.off), int64(h.length), nil
	if h.cmd == proto.CmdTrim {
		r.w.Op = OpTrim
	}
	r.w.FUA, r.w.NoHole, r.w.FastZero = h.flags&proto.CmdFlagFUA != 0, h.flags&proto.CmdFlagNoHole != 0, h.flags&proto.CmdFlagFastZero != 0
	c.stats.writes.Add(1)
	c.submit(r)
	return nil
}

// submit gives a change to the disk. It may wait there, so nothing that is ready may stay behind.
func (c *conn) submit(r *request) {
	if c.batch.buf != nil {
		c.pushBatch()
		c.out.kick()
	}
	c.disk.Submit(c.ctx, &r.w)
}

// stillThere refuses to submit what a client has sent before it closed the connection: it may have sent the same change
// to another server meanwhile, and newer ones after it. The kernel is asked each time: a third of a microsecond, and a
// cached answer would be wrong exactly when this process was stopped in between.
func (c *conn) stillThere() error {
	if c.client.Gone() {
		return fmt.Errorf("submit: %w", ErrPeerClosed)
	}
	return nil
}

// done is the Write.Done of the request.
func (r *request) done(err error) {
	c := r.conn
	if c == nil {
		panic("nbd: bug: Write.Done was called twice")
	}
	c.answer(r, err)
}

// dispatch gives a request to a worker. There are as many workers as there have been requests at once, so none waits
// behind another.
func (c *conn) dispatch(r *request) {
	if n := c.pending.Add(1); n > c.workers && int(c.workers) < c.server.limits.MaxRequests {
		c.workers++
		c.wg.Go(c.runWorker)
	}
	c.work <- r
}

// runWorker serves requests that may wait. It ends when work is closed, at the end of the connection.
func (c *conn) runWorker() {
	for r := range c.work {
		c.serveOne(r)
		c.pending.Add(-1)
	}
}

// serveOne does what needs waiting and answers.
func (c *conn) serveOne(r *request) {
	switch r.cmd {
	case proto.CmdRead:
		buf := getBuffer(int(r.length))
		err := c.disk.ReadAt(c.ctx, buf.b[:r.length], int64(r.off))
		c.answerRead(&r.header, buf, r.cost, err)
		r.free()
		c.out.kick()
	case proto.CmdFlush:
		c.answer(r, c.disk.Flush(c.ctx))
	case proto.CmdCache:
		c.answer(r, c.disk.Cache(c.ctx, int64(r.off), int64(r.length)))
	case proto.CmdBlockStatus:
		c.serveStatus(r)
	}
}

func (c *conn) serveStatus(r *request) {
	limit := maxExtents
	if r.flags&proto.CmdFlagReqOne != 0 {
		limit = 1
	}
	exts, err := c.disk.Extents(c.ctx, int64(r.off), int64(r.length), limit)
	if err != nil {
		c.answer(r, err)
		return
	}
	buf := getBuffer(statusBytes)
	c.out.push(piece{b: c.appendStatus(buf.b[:0], &r.header, exts), buf: buf, reqs: 1, cost: r.cost})
	r.free()
	c.out.kick()
}

// answer ends a request that has no data in its reply.
func (c *conn) answer(r *request, err error) {
	if err == nil {
		c.out.small(func(b []byte) []byte { return appendSimple(b, r.cookie, 0) }, r.cost)
		r.free()
		return
	}
	if c.hang(err) {
		c.quota.release(1, r.cost)
		r.free()
		return
	}
	errno := Errno(err, r.cmd == proto.CmdWriteZeroes && r.flags&proto.CmdFlagFastZero != 0)
	if errno != proto.ENOTSUP { // the expected answer to a fast zero
		c.logRefused(&r.header, errno, err)
	}
	c.out.small(func(b []byte) []byte { return c.appendError(b, &r.header, refusal{errno, errnoText(errno)}) }, r.cost)
	r.free()
}

// answerRead ends a read whose data is in buf, or that failed. The caller then kicks or flushes the outbox.
func (c *conn) answerRead(h *header, buf *buffer, cost int64, err error) {
	switch {
	case err != nil && c.hang(err):
		buf.put()
		c.quota.release(1, cost)
	case err != nil:
		buf.put()
		c.logRefused(h, Errno(err, false), err)
		c.out.small(func(b []byte) []byte { return c.appendReadError(b, h, err) }, cost)
	case c.structured && h.flags&proto.CmdFlagDF == 0:
		c.answerSparse(h, buf, cost)
	default:
		c.answerWhole(h, buf, cost)
	}
}

// hang reports whether err must not be answered, and then closes the connection.
func (c *conn) hang(err error) bool {
	if !hangs(err) {
		return false
	}
	c.abort(err)
	return true
}

// pushBatch moves the batch to the outbox. One that has to wait there gets a buffer of its size, since that is what its
// requests were charged for.
func (c *conn) pushBatch() {
	if c.batch.buf == nil {
		return
	}
	p := c.batch.p
	c.batch = batch{}
	if len(p.b) == 0 {
		p.buf.put()
		return
	}
	if c.out.busy() && classBytes(len(p.b)) < batchBytes {
		fit := getBuffer(len(p.b))
		copy(fit.b, p.b)
		p.buf.put()
		p.b, p.buf = fit.b[:len(p.b)], fit
	}
	c.out.push(p)
}

// flush sends what the reader has answered so far.
func (c *conn) flush() {
	c.pushBatch()
	c.out.flush()
}

// ended prefers the reason of an abort over the error that it caused.
func (c *conn) ended(err error) error {
	if cause := context.Cause(c.ctx); cause != nil {
		return cause
	}
	return err
}
