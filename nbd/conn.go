package nbd

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Client is who is at the other end of a connection. Its fields do not change once Exports sees it.
type Client struct {
	ID         uint64    // of the connection, unique in this server
	Addr       string    // the peer's host without port, or "unix:uid=N"
	RemoteAddr net.Addr  //
	TLS        bool      // the connection is encrypted
	TLSName    string    // common name, else first DNS name, of the verified client certificate; else ""
	Listener   string    // network and address of the listener that accepted it; "" for ServeConn
	Since      time.Time // when it connected

	conn *conn
}

// Gone reports whether the peer has already closed the connection. It asks the kernel now, with one system call, and sees
// the end even behind requests that were not read yet. A program that numbers writes asks before it numbers one: what a
// departed client had sent must not run.
func (c *Client) Gone() bool {
	if c.conn == nil {
		return false
	}
	return c.conn.ctx.Err() != nil || (c.conn.raw != nil && peerGone(c.conn.raw))
}

// Abort closes the connection at once: nothing more is read and no reply is sent, not even a queued one. For fencing and
// for newer attachments. Safe from any goroutine, any number of times; the first reason is logged.
func (c *Client) Abort(reason error) {
	if c.conn != nil {
		c.conn.abort(reason)
	}
}

// conn is one connection, from accept to the last use of its disk.
//
// Goroutines: the one that serves it (handshake, then reader), a writer, and as many workers as it has had requests
// waiting at once. All end before serve returns.
type conn struct {
	server *Server
	client *Client
	log    *slog.Logger

	sock net.Conn        // as accepted
	raw  syscall.RawConn // of sock; nil for a pipe
	in   input
	out  outbox

	ctx    context.Context // the connection's life; its cause is why it ended
	cancel context.CancelCauseFunc

	handshake
	session // settled by negotiation
	disk    Disk
	now     NowReader // the disk, if it can

	quota quota
	batch batch // of the reader

	work    chan *request
	pending atomic.Int32 // dispatched and not finished
	workers int32        // of the reader
	wg      sync.WaitGroup

	draining atomic.Bool
	stats    counters
}

func newConn(s *Server, sock net.Conn, listener string) *conn {
	c := &conn{server: s, sock: sock, raw: rawConn(sock), quota: newQuota(s.limits, &s.budget)}
	c.client = &Client{
		ID: s.nextID.Add(1), Addr: peerAddr(sock, c.raw), RemoteAddr: sock.RemoteAddr(),
		Listener: listener, Since: time.Now(), conn: c,
	}
	c.log = s.log.With("client", c.client.ID, "addr", c.client.Addr)
	c.in.conn, c.in.buf = sock, make([]byte, inputBytes)
	c.ctx, c.cancel = context.WithCancelCause(s.ctx)
	return c
}

// abort ends the connection without a further reply.
func (c *conn) abort(reason error) {
	c.cancel(reason)
	c.out.kill()
	_ = c.sock.Close() // unblocks reader and writer; a second close is harmless
}

// serve runs the connection to its end.
func (c *conn) serve() {
	defer c.sock.Close()
	defer c.cancel(net.ErrClosed)
	if err := c.negotiate(); err != nil {
		c.logEnd("nbd negotiation ended", err)
		return
	}
	defer c.server.leave(c)
	c.quota.share = c.server.budget.open(c.info.Name)
	defer c.server.budget.close(c.info.Name)
	if c.server.comings.allow() {
		c.log.Info("nbd client attached", "export", c.info.Name, "size", c.info.Size, "readonly", c.info.ReadOnly,
			"tls", c.client.TLS, "unlogged", c.server.comings.skipped())
	}

	if c.client.TLS {
		c.out.conn, c.out.raw = c.in.conn, nil
	}
	c.work = make(chan *request, c.server.limits.MaxRequests)
	c.wg.Go(c.out.runWriter)
	err := c.transmit()
	if errors.Is(err, errDisconnect) || errors.Is(err, errDraining) {
		c.flush()
		// Everything that was begun is answered; only a server that must not wait any longer cuts this short.
		if e := c.quota.idle(c.ctx); e == nil && c.client.TLS {
			_ = c.out.conn.Close() // says goodbye inside TLS; the client may already be gone
		}
	}
	err = c.ended(err)
	c.abort(err)
	c.finish()
	c.logEnd("nbd client left", err)
}

// finish waits until the disk has ended every request and closes it.
func (c *conn) finish() {
	c.pushBatch()                          // into a dead outbox: gives back its buffer
	_ = c.quota.idle(context.Background()) // bounded by the disk: Done and ReadAt follow the end of ctx
	close(c.work)
	close(c.out.stop)
	c.wg.Wait()
	if err := c.disk.Close(); err != nil {
		c.log.Warn("close export", "export", c.info.Name, "err", err)
	}
}

// logEnd logs how a connection ended: what an operator should look at as a warning, the rest as information.
func (c *conn) logEnd(msg string, err error) {
	level, limit := slog.LevelInfo, &c.server.comings
	switch {
	case errors.Is(err, errDisconnect), errors.Is(err, errDraining), errors.Is(err, io.EOF), errors.Is(err, ErrServerClosed):
		if !c.attached {
			level = slog.LevelDebug
		}
	default:
		level, limit = slog.LevelWarn, &c.server.logLimit
	}
	if !c.log.Enabled(context.Background(), level) || !limit.allow() { // what is not written takes no room from what is
		return
	}
	c.log.Log(context.Background(), level, msg, "reason", err, "export", c.info.Name, "requests", c.stats.requests.Load(),
		"took", time.Since(c.client.Since).Round(time.Millisecond), "unlogged", limit.skipped())
}

// logRefused logs the rich error of a request that is answered with an errno.
func (c *conn) logRefused(h *header, errno uint32, err error) {
	if !c.server.logLimit.allow() {
		return
	}
	c.log.Warn("nbd request refused", "export", c.info.Name, "cmd", cmdName(h.cmd), "flags", h.flags, "off", h.off,
		"len", h.length, "errno", errnoText(errno), "err", err, "unlogged", c.server.logLimit.skipped())
}

// drain stops reading requests; what has been read is still answered.
func (c *conn) drain() {
	c.draining.Store(true)
	_ = c.sock.SetReadDeadline(time.Unix(1, 0)) // wakes the reader; an error means it is awake
}
