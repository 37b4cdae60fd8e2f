package blockrepl

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// links brings about one link with each other server: of two servers the one with
// the lower id dials, again and again; the other listens, and dials once, when it
// starts: the first one may just be waiting before its next attempt. A newer link
// replaces an older one, since who dials anew has lost the old one.
//
// Goroutines: one for each server that is dialled, one that accepts, one for each
// link that is being accepted or was. All end with stop.
type links struct {
	s        *Server
	nonce    wire.Nonce
	known    []record.ServerID
	peers    map[record.ServerID]*peerLink // fixed
	sessions atomic.Uint64
	ln       net.Listener
	shaking  shaking
	clock    sync.Mutex
	clockAt  replica.Time    // when a certificate's time was last told; guarded by clock
	ctx      context.Context // the server's life
	cancel   context.CancelFunc
	wg       sync.WaitGroup
}

// peerLink is what is kept of another server between links.
type peerLink struct {
	id   record.ServerID
	addr string
	cur  atomic.Pointer[link]

	installing sync.Mutex // one link at a time takes the place of another

	mu sync.Mutex
	// told is when each kind of trouble was logged that keeps links from coming up; empty
	// when there is one that holds.
	told  map[string]replica.Time
	said  string // the kind that was logged last
	why   error  // the last trouble; nil when there is a link
	flaps flaps
	// inc is the data directory that answered last, swapAt when a change of it was
	// told: two servers that take turns are not told each time.
	inc    record.Incarnation
	swapAt replica.Time
	blamed map[*Volume]blamed
	lacked []string // volumes that it counts on this server for, which lacks them; at most lackedMax
}

func newLinks(s *Server) *links {
	ls := &links{s: s, peers: map[record.ServerID]*peerLink{}, nonce: wire.Nonce(draw16(s.opt.Rand))}
	ls.ctx, ls.cancel = context.WithCancel(context.Background())
	for _, a := range s.opt.Servers {
		ls.known = append(ls.known, a.ID)
		if a.ID != s.opt.ID {
			ls.peers[a.ID] = &peerLink{id: a.ID, addr: a.Addr}
		}
	}
	// Sessions of an earlier run must not be taken for this one's: not even by a
	// volume's state, which does not outlive the run, but by people reading logs.
	ls.sessions.Store(s.opt.Rand() >> 40 << 8)
	return ls
}

// start listens and dials.
func (ls *links) start(ctx context.Context) error {
	if len(ls.peers) == 0 {
		return nil
	}
	ln, err := ls.s.opt.Net.Listen(ctx, ls.s.opt.Peers)
	if err != nil {
		return fmt.Errorf("listen for other servers on %s: %w", ls.s.opt.Peers, err)
	}
	ls.ln = ln
	ls.wg.Go(ls.accept)
	for _, p := range ls.peers {
		if ls.s.opt.ID.Compare(p.id) < 0 {
			ls.wg.Go(func() { ls.dial(p) })
		} else {
			ls.wg.Go(func() { ls.knock(p) })
		}
	}
	return nil
}

// stop closes all links and waits for their ends. With words, the other servers
// are told first that this one stops in order and will be back.
func (ls *links) stop(words bool) {
	ls.cancel()
	if ls.ln != nil {
		ls.ln.Close()
	}
	var all sync.WaitGroup
	for _, p := range ls.peers {
		if l := p.cur.Load(); l != nil {
			all.Go(func() {
				if words {
					l.leave()
				}
				l.close("this server stops")
			})
		}
	}
	all.Wait()
	ls.wg.Wait()
}

func (ls *links) send(to record.ServerID, session uint64, tag uint64, msg wire.Message) {
	if l := ls.link(to, session); l != nil {
		l.out.control(tag, msg)
	}
}

func (ls *links) stream(v *Volume, st *replica.Stream) {
	if l := ls.link(st.To, st.Session); l != nil {
		l.out.stream(v, st)
	}
}

// unstream forgets the cursors of a volume on all links.
func (ls *links) unstream(v *Volume) {
	for _, p := range ls.peers {
		if l := p.cur.Load(); l != nil {
			l.out.unstream(v)
		}
	}
}

// restream lets the cursors of a volume go on that found their records missing.
func (ls *links) restream(v *Volume) {
	for _, p := range ls.peers {
		if l := p.cur.Load(); l != nil {
			l.out.restream(v)
		}
	}
}

// whenAlone calls f when there is no link at all; it returns when ctx ends.
func (ls *links) whenAlone(ctx context.Context, f func()) {
	for sleep(ctx, aloneEvery) {
		alone := true
		for _, p := range ls.peers {
			alone = alone && p.cur.Load() == nil
		}
		if alone {
			f()
		}
	}
}

// close ends a link because volume v cannot go on over it. All volumes lose it for a
// moment; one that does so again and again uses a new link later each time.
func (ls *links) close(v *Volume, to record.ServerID, session uint64, reason string) {
	if l := ls.link(to, session); l != nil {
		l.peer.blame(v, ls.s.opt.Clock())
		l.close(reason)
	}
}

// blamed is how often a volume had to close the link to a server.
type blamed struct {
	times int
	at    replica.Time // the last time
}

func (p *peerLink) blame(v *Volume, now replica.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.blamed == nil {
		p.blamed = map[*Volume]blamed{}
	}
	b := p.blamed[v]
	if now.Sub(b.at) > blameForgotten {
		b.times = 0
	}
	p.blamed[v] = blamed{b.times + 1, now}
}

// holdBack is how long v does not use a new link. Two servers' only volume harms
// nobody else.
func (p *peerLink) holdBack(v *Volume, now replica.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.blamed[v]
	if b.times <= 1 || len(v.s.volumes) == 1 || now.Sub(b.at) > blameForgotten {
		return 0
	}
	return min(holdBackMin<<min(b.times-2, 16), holdBackMax)
}

// link gives the present link if it is the session's.
func (ls *links) link(to record.ServerID, session uint64) *link {
	p := ls.peers[to]
	if p == nil {
		return nil
	}
	if l := p.cur.Load(); l != nil && l.session == session {
		return l
	}
	return nil
}

// accept takes links from other servers.
func (ls *links) accept() {
	pause := backoffMin
	for {
		conn, err := ls.ln.Accept()
		if err != nil {
			if ls.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			ls.s.opt.Logger.Warn("accept a link", "err", err)
			if !sleep(ls.ctx, pause) {
				return
			}
			pause = min(2*pause, backoffMax)
			continue
		}
		pause = backoffMin
		ls.shaking.enter(conn)
		ls.wg.Go(func() {
			l, err := ls.shake(conn, nil)
			ls.shaking.leave(conn) // it may not have got as far as a link
			if err != nil {
				err = withClock(err)
				conn.Close()
				ls.refused(conn.RemoteAddr().String(), err)
				return
			}
			l.run()
		})
	}
}

// shaking are the connections whose handshake is under way, the oldest first.
type shaking struct {
	mu   sync.Mutex
	list []net.Conn // at most handshakesMax
}

// enter adds one. At one too many the oldest makes room: a server is done within
// milliseconds, and who says nothing must not keep servers apart.
func (s *shaking) enter(conn net.Conn) {
	var oldest net.Conn
	s.mu.Lock()
	if len(s.list) == handshakesMax {
		oldest = s.list[0]
		s.list = slices.Delete(s.list, 0, 1)
	}
	s.list = append(s.list, conn)
	s.mu.Unlock()
	if oldest != nil {
		oldest.Close()
	}
}

func (s *shaking) leave(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.list, conn); i >= 0 {
		s.list = slices.Delete(s.list, i, i+1)
	}
}

// refused logs why somebody's link was not accepted. Who probes the port, or
// cannot agree, comes again and again: such lines are for debugging, but for a
// server of ours, whose trouble is told once.
func (ls *links) refused(addr string, err error) {
	var r *wire.RefusedError
	if errors.As(err, &r) {
		if p := ls.peers[r.Peer]; p != nil {
			p.troubled(ls, err)
			return
		}
	}
	if ls.outOfTime(err) {
		ls.s.opt.Logger.Warn("link not accepted", "addr", addr, "err", err)
		return
	}
	ls.s.opt.Logger.Debug("link not accepted", "addr", addr, "err", err)
}

// outOfTime reports whether err speaks of a certificate's time and that was not told
// for a while: the side that dialled hears no more than that it is refused.
func (ls *links) outOfTime(err error) bool {
	if !expired(err) {
		return false
	}
	ls.clock.Lock()
	defer ls.clock.Unlock()
	now := ls.s.opt.Clock()
	if ls.clockAt != 0 && now.Sub(ls.clockAt) < clockQuiet {
		return false
	}
	ls.clockAt = now
	return true
}

// expired reports whether a certificate of err's handshake is not valid yet, or no more.
func expired(err error) bool {
	var invalid x509.CertificateInvalidError
	return errors.As(err, &invalid) && invalid.Reason == x509.Expired
}

// withClock says, of a handshake that failed by a certificate, that a clock may be why.
func withClock(err error) error {
	var alert *net.OpError
	switch {
	case expired(err):
		return fmt.Errorf("%w; if this host's clock is wrong set it, else renew the certificate: blockrepl cert", err)
	case errors.As(err, &alert) && alert.Op == "remote error":
		return fmt.Errorf("%w; the other server refused the TLS handshake, and its log says why: if it does not take this one's certificate, its clock may be wrong", err)
	}
	return err
}

// knock dials a server that dials this one, once: what comes of it is that one's to
// say, which tries again.
func (ls *links) knock(p *peerLink) {
	if err := ls.dialOnce(p); err != nil {
		ls.s.opt.Logger.Debug("server not reached; it is waited for", "peer", p.id.String(), "err", err)
	}
}

// dial keeps a link to p.
func (ls *links) dial(p *peerLink) {
	wait := backoffMin
	for {
		began := ls.s.opt.Clock()
		if l := p.cur.Load(); l != nil { // it knocked
			select {
			case <-l.done:
			case <-ls.ctx.Done():
				return
			}
		} else if err := ls.dialOnce(p); err != nil {
			p.troubled(ls, err)
		}
		if ls.s.opt.Clock().Sub(began) > backoffCalm {
			wait = backoffMin
		}
		// Between half of it and all of it, so that servers that lost each other
		// at once do not come back at once.
		jitter := time.Duration(ls.s.opt.Rand() % uint64(wait/2))
		if !sleep(ls.ctx, wait/2+jitter) {
			return
		}
		wait = min(2*wait, backoffMax)
	}
}

// dialOnce opens a link and lives as long as it does.
func (ls *links) dialOnce(p *peerLink) error {
	ctx, cancel := context.WithTimeout(ls.ctx, dialTimeout)
	conn, err := ls.s.opt.Net.Dial(ctx, p.addr)
	cancel()
	if err != nil {
		return fmt.Errorf("dial server %s at %s: %w", p.id, p.addr, err)
	}
	l, err := ls.shake(conn, p)
	if err != nil {
		conn.Close()
		return fmt.Errorf("open a link to server %s at %s: %w", p.id, p.addr, withClock(err))
	}
	l.run()
	return nil
}

// shake does the handshakes and installs the link in its peer's place. p is the
// server that was dialled, nil when accepting.
func (ls *links) shake(raw net.Conn, p *peerLink) (*link, error) {
	ctx, cancel := context.WithTimeout(ls.ctx, handshakeTimeout)
	defer cancel()
	stop := context.AfterFunc(ls.ctx, func() { raw.Close() })
	defer stop()
	if err := raw.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return nil, err
	}
	unpace(raw)
	admit := func(h *wire.Hello) error { return ls.peers[h.Server].admit(ls, h.Incarnation) }
	side := wire.Side{Known: ls.known, Admit: admit, Hello: wire.Hello{
		VersionMin: wire.OldestVersion, VersionMax: wire.Version, Server: ls.s.opt.ID,
		Incarnation: ls.s.id.Incarnation, Nonce: ls.nonce, Cluster: ls.s.opt.Cluster, Software: "blockrepl " + ls.s.opt.Version,
	}}
	shake := wire.Accept
	if p != nil {
		side.Expect = p.id
		shake = wire.Dial
	}
	conn, err := ls.secure(ctx, raw, side.Expect)
	if err != nil {
		return nil, err
	}
	theirs, version, err := shake(conn, &side)
	if err != nil {
		return nil, err
	}
	if err := certified(conn, theirs.Server); err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	ls.shaking.leave(raw)
	if p == nil {
		p = ls.peers[theirs.Server]
	}
	return p.install(ls, &link{raw: raw, conn: conn, inc: theirs.Incarnation, version: version})
}

// counts notes that p counts on this server for a volume that is not here, and reports
// whether that is news.
func (p *peerLink) counts(volume string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if slices.Contains(p.lacked, volume) || len(p.lacked) == lackedMax {
		return false
	}
	p.lacked = append(p.lacked, volume)
	return true
}

// admit refuses a second server of p's id while the first one is heard: in the
// handshake, so that the second one's operator reads why.
func (p *peerLink) admit(ls *links, inc record.Incarnation) error {
	old := p.cur.Load()
	if old == nil || old.inc == inc || ls.s.opt.Clock().Sub(replica.Time(old.heard.Load())) >= ls.s.opt.PeerTimeout {
		return nil
	}
	return &wire.RefusedError{Peer: p.id, Cause: wire.CauseSameID,
		Reason: fmt.Sprintf("two servers are called %s: incarnation %s is linked, %s wants to be; give one another id", p.id, old.inc, inc)}
}

// newerLink is why a link ends that another one replaces.
const newerLink = "a newer link"

// install makes l the link of p, after the present one has ended.
func (p *peerLink) install(ls *links, l *link) (*link, error) {
	p.installing.Lock()
	defer p.installing.Unlock()
	inc := l.inc
	if err := p.admit(ls, inc); err != nil {
		return nil, err
	}
	now := ls.s.opt.Clock()
	if old := p.cur.Load(); old != nil {
		old.close(newerLink)
		<-old.done
	}
	if ls.ctx.Err() != nil {
		return nil, ErrStopped
	}
	l.links, l.peer, l.session = ls, p, ls.sessions.Add(1)
	l.up = now
	l.done, l.written = make(chan struct{}), make(chan struct{})
	l.heard.Store(int64(now))
	l.spoke.Store(int64(now))
	l.out.init(l.close)
	p.cur.Store(l)
	p.mu.Lock()
	p.why = nil
	if !p.flaps.going {
		p.told, p.said = nil, ""
	}
	was := p.inc
	p.inc = inc
	tell := was != record.Incarnation{} && was != inc && (p.swapAt == 0 || now.Sub(p.swapAt) >= swapQuiet)
	if tell {
		p.swapAt = now
	}
	p.mu.Unlock()
	if tell {
		ls.s.opt.Logger.Warn("another data directory answers under this server's id; if it was not replaced there are two servers of one id",
			"peer", p.id.String(), "incarnation", inc.String(), "before", was.String())
	}
	if ls.ctx.Err() != nil {
		l.close("this server stops") // stop may have looked before the link was there
	}
	return l, nil
}

// sleep waits; false when ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
