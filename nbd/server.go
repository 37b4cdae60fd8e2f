package nbd

import (
	"cmp"
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Options configure a Server.
type Options struct {
	Exports Exports      // required
	Logger  *slog.Logger // nil = slog.Default()
	TLSMode TLSMode
	// TLS has the server's certificate and, with ClientAuth and ClientCAs, what clients must show. A MinVersion of 0 means
	// TLS 1.3.
	TLS    *tls.Config
	Limits Limits
}

// Server serves NBD connections. Close or Shutdown ends its goroutines.
type Server struct {
	exports  Exports
	log      *slog.Logger
	tlsMode  TLSMode
	tls      atomic.Pointer[tlsSetup] // of handshakes that begin; nil: off
	limits   Limits
	budget   budget
	logLimit logLimit // of refusals
	comings  logLimit // of attaching and leaving

	ctx    context.Context // of all connections
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup // connections
	reaper sync.WaitGroup
	nextID atomic.Uint64

	accepted, refused atomic.Uint64

	mu         sync.Mutex
	closing    bool
	reaping    bool
	listeners  map[net.Listener]struct{}
	conns      map[*conn]*connState
	handshakes *list.List // of *conn, the oldest first
	clients    int        // conns that are opening or attached
}

// connState is what the server knows of a connection. Guarded by Server.mu.
type connState struct {
	waiting  *list.Element // in handshakes; nil when opening or attached
	attached bool          // in transmission
	sample   sample        // of the reaper
}

// NewServer checks the options. No goroutine runs before the first connection.
func NewServer(o Options) (*Server, error) {
	if o.Exports == nil {
		return nil, errors.New("nbd: new server: no exports")
	}
	l, err := o.Limits.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("nbd: new server: %w", err)
	}
	setup, err := serverTLS(o.TLSMode, o.TLS)
	if err != nil {
		return nil, fmt.Errorf("nbd: new server: %w", err)
	}
	s := &Server{
		exports: o.Exports, log: cmp.Or(o.Logger, slog.Default()), tlsMode: o.TLSMode, limits: l,
		listeners: map[net.Listener]struct{}{}, conns: map[*conn]*connState{}, handshakes: list.New(),
	}
	s.tls.Store(setup)
	s.budget.free = l.MaxBytes
	s.logLimit.tokens, s.comings.tokens = logBurst, logBurst
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	return s, nil
}

// Serve accepts connections from ln until ctx ends or the server is shut down or closed; it always closes ln. When ctx
// ends, the connections that came through ln are closed without a reply; use Shutdown to let them finish. The error is
// ErrServerClosed, the cause of ctx, or what ended the listener.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	if err := s.addListener(ln); err != nil {
		_ = ln.Close()
		return err
	}
	defer s.removeListener(ln)
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	name := ln.Addr().Network() + ":" + ln.Addr().String()
	pause := time.Duration(0)
	for {
		sock, err := ln.Accept()
		switch {
		case err == nil:
			pause = 0
			tune(sock, s.limits.KeepAlive)
			s.start(ctx, sock, name)
			continue
		case ctx.Err() != nil:
			return fmt.Errorf("serve %s: %w", name, context.Cause(ctx))
		case s.isClosing():
			return ErrServerClosed
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("serve %s: %w", name, err)
		}
		// Out of file descriptors or memory: what is being served goes on, and frees some.
		pause = min(max(2*pause, 5*time.Millisecond), acceptRetryMax)
		s.log.Error("accept failed, retrying", "listener", name, "err", err, "pause", pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		case <-s.ctx.Done():
		}
	}
}

// ServeConn serves one connection to its end and closes it. When ctx ends it is closed without a reply.
func (s *Server) ServeConn(ctx context.Context, sock net.Conn) error {
	c, err := s.register(sock, "")
	if err != nil {
		_ = sock.Close()
		return err
	}
	s.runConn(ctx, c)
	return nil
}

// start serves a connection in a goroutine of its own.
func (s *Server) start(ctx context.Context, sock net.Conn, listener string) {
	c, err := s.register(sock, listener)
	if err != nil {
		_ = sock.Close()
		return
	}
	go s.runConn(ctx, c) // counted in wg by register
}

// register makes a connection known. If too many are negotiating, the one that has been at it longest makes room: an
// honest client is done within milliseconds.
func (s *Server) register(sock net.Conn, listener string) (*conn, error) {
	c := newConn(s, sock, listener)
	c.out.init(sock, c.raw, &c.quota, c.abort)
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		c.cancel(ErrServerClosed)
		return nil, ErrServerClosed
	}
	s.accepted.Add(1)
	var victim *conn
	if s.handshakes.Len() >= s.limits.MaxHandshakes {
		victim = s.handshakes.Remove(s.handshakes.Front()).(*conn)
		s.conns[victim].waiting = nil
	}
	s.conns[c] = &connState{waiting: s.handshakes.PushBack(c)}
	s.wg.Add(1)
	if !s.reaping {
		s.reaping = true
		s.reaper.Go(s.runReaper)
	}
	s.mu.Unlock()
	if victim != nil {
		s.refused.Add(1)
		victim.abort(fmt.Errorf("more than %d connections are negotiating: %w", s.limits.MaxHandshakes, ErrLimit))
	}
	return c, nil
}

// runConn owns the connection and ends with it.
func (s *Server) runConn(ctx context.Context, c *conn) {
	defer s.wg.Done()
	stop := context.AfterFunc(ctx, func() { c.abort(context.Cause(ctx)) })
	defer stop()
	c.serve()
	s.mu.Lock()
	defer s.mu.Unlock()
	if w := s.conns[c].waiting; w != nil {
		s.handshakes.Remove(w)
	}
	delete(s.conns, c)
}

// enter moves a connection from negotiating to opening an export, which may wait long.
func (s *Server) enter(c *conn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.conns[c]
	switch {
	case s.closing:
		return ErrServerClosed
	case st.waiting == nil:
		return fmt.Errorf("open: %w", ErrLimit) // it has just been chosen to make room
	case s.clients >= s.limits.MaxClients:
		s.refused.Add(1)
		return fmt.Errorf("%d clients have an export open: %w", s.clients, ErrLimit)
	}
	s.handshakes.Remove(st.waiting)
	st.waiting = nil
	s.clients++
	return nil
}

// attach marks a connection as in transmission: Shutdown lets it finish.
func (s *Server) attach(c *conn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return ErrServerClosed
	}
	s.conns[c].attached = true
	return nil
}

// leave undoes enter; the connection may go on negotiating.
func (s *Server) leave(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.conns[c]
	if st.waiting != nil {
		return // it never entered
	}
	s.clients--
	st.attached = false
	st.waiting = s.handshakes.PushBack(c)
}

// Shutdown ends the server gracefully: no connection is accepted and no request read any more, requests that were read
// are answered, then the connections are closed. When ctx ends first, the rest is dropped without a reply and the error is
// that of ctx; clients send again what was not answered.
func (s *Server) Shutdown(ctx context.Context) error {
	for _, c := range s.stop() {
		c.drain()
	}
	done := make(chan struct{})
	go func() { s.wg.Wait(); close(done) }()
	select {
	case <-done:
		s.cancel(ErrServerClosed)
		s.reaper.Wait()
		return nil
	case <-ctx.Done():
	}
	s.abortAll()
	<-done
	s.reaper.Wait()
	return fmt.Errorf("shut down nbd server: %w", ctx.Err())
}

// Close ends the server at once: every connection is closed without a reply. It returns when their goroutines have ended.
// Idempotent.
func (s *Server) Close() error {
	s.stop()
	s.abortAll()
	s.wg.Wait()
	s.reaper.Wait()
	return nil
}

// stop closes the listeners and the connections that are not in transmission, and gives the others.
func (s *Server) stop() []*conn {
	s.mu.Lock()
	s.closing = true
	var attached, rest []*conn
	for c, st := range s.conns {
		if st.attached {
			attached = append(attached, c)
		} else {
			rest = append(rest, c)
		}
	}
	for ln := range s.listeners {
		_ = ln.Close() // Serve reports it
	}
	s.mu.Unlock()
	for _, c := range rest {
		c.abort(ErrServerClosed)
	}
	return attached
}

func (s *Server) abortAll() {
	s.cancel(ErrServerClosed)
	s.mu.Lock()
	all := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		all = append(all, c)
	}
	s.mu.Unlock()
	for _, c := range all {
		c.abort(ErrServerClosed)
	}
}

func (s *Server) isClosing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

func (s *Server) addListener(ln net.Listener) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return ErrServerClosed
	}
	s.listeners[ln] = struct{}{}
	return nil
}

func (s *Server) removeListener(ln net.Listener) {
	_ = ln.Close() // already closed in most cases
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listeners, ln)
}

// Stats gives a snapshot.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	st := Stats{Handshakes: s.handshakes.Len(), Accepted: s.accepted.Load(), Refused: s.refused.Load()}
	for c, cs := range s.conns {
		if cs.attached {
			st.Conns = append(st.Conns, c.snapshot())
		}
	}
	s.mu.Unlock()
	s.budget.mu.Lock()
	st.BudgetBytes = s.budget.free
	s.budget.mu.Unlock()
	slices.SortFunc(st.Conns, func(a, b ConnStats) int { return cmp.Compare(a.ID, b.ID) })
	return st
}
