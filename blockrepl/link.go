package blockrepl

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
	"golang.org/x/sys/unix"
)

// Comes from: the network. Does: one connection to another server, for all
// volumes: reads and checks frames, and tells volumes of its beginning and end.
// Goes to: the volumes' inboxes. What is sent is in sender.go, how a link comes
// about in links.go.
//
// A link has three goroutines: the reader (run, in the goroutine that opened it),
// the writer and the watch. It ends as a whole: whoever closes it makes the others
// fail; run waits for them and then, as the last word of the session, posts LinkDown.
type link struct {
	links   *links
	peer    *peerLink
	session uint64
	inc     record.Incarnation
	up      replica.Time
	version uint16 // of the protocol, as agreed; there is only one yet, so nothing depends on it
	conn    net.Conn
	raw     net.Conn      // below TLS: closing it never waits
	heard   atomic.Int64  // replica.Time of the last bytes from the peer
	spoke   atomic.Int64  // likewise to the peer
	done    chan struct{} // closed when all of it has ended
	written chan struct{} // closed when the writer has ended

	out outbox // sender.go

	closing sync.Once
	reason  string // set once, before the connection is closed
}

func (l *link) log(level slog.Level, text string, args ...any) {
	args = append([]any{"peer", l.peer.id.String(), "session", l.session}, args...)
	l.links.s.opt.Logger.Log(context.Background(), level, text, args...)
}

// close ends the link for the given reason; the first one counts.
func (l *link) close(reason string) {
	l.closing.Do(func() {
		l.reason = reason
		l.out.close()
		l.raw.Close()
	})
}

// leave says good-bye for every volume and lets that go out, for a short time.
func (l *link) leave() {
	for _, v := range l.links.s.volumes {
		m := &wire.Leaving{Reason: "the server stops", Restart: true}
		if e := v.vow.Load(); e != nil {
			m.Vow = *e
		}
		l.out.control(v.tag, m)
	}
	l.out.close()
	t := time.NewTimer(leaveTimeout)
	defer t.Stop()
	select {
	case <-l.written:
	case <-t.C:
	}
}

// run is the link's life, from the handshake to LinkDown.
func (l *link) run() {
	volumes := l.links.s.volumes
	l.log(l.peer.upLevel(l.up), "link up", "addr", l.conn.RemoteAddr().String(), "incarnation", l.inc.String(), "version", l.version)
	var others sync.WaitGroup
	quit := make(chan struct{})
	for _, v := range volumes {
		d := l.peer.holdBack(v, l.links.s.opt.Clock())
		if d > 0 {
			others.Go(func() { l.upLater(v, d, quit) })
			continue
		}
		v.in.post(replica.LinkUp{Peer: l.peer.id, Session: l.session, Incarnation: l.inc})
	}
	others.Go(func() {
		defer close(l.written)
		l.runWriter()
	})
	others.Go(func() { l.watch(quit) })
	l.close(l.read())
	close(quit)
	others.Wait()
	l.down()
	for _, v := range volumes {
		v.in.post(replica.LinkDown{Peer: l.peer.id, Session: l.session, Reason: l.reason})
	}
	l.peer.cur.CompareAndSwap(l, nil)
	close(l.done)
}

// upLater lets a volume use the link that has closed several before. What the other
// side said to it meanwhile was dropped, so it is asked to begin anew.
func (l *link) upLater(v *Volume, d time.Duration, quit chan struct{}) {
	v.say(slog.LevelWarn, "volume closed the link again and again; it waits before it uses the new one", "peer", l.peer.id.String(), "wait", d)
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-quit:
		return
	case <-t.C:
	}
	v.in.post(replica.LinkUp{Peer: l.peer.id, Session: l.session, Incarnation: l.inc})
	l.out.control(v.tag, &wire.Query{})
}

// Read notes when the peer was heard. It is wire.Reader's source.
func (l *link) Read(p []byte) (int, error) {
	n, err := l.conn.Read(p)
	if n > 0 {
		l.heard.Store(int64(l.links.s.opt.Clock()))
	}
	return n, err
}

// read hands frames to their volumes until the link ends; it gives the reason.
func (l *link) read() string {
	r := wire.NewReader(l)
	for {
		f, err := r.Next()
		switch {
		case err == nil:
			l.dispatch(f)
		case errors.Is(err, io.EOF):
			return "the peer closed the link"
		case errors.Is(err, net.ErrClosed):
			return "closed"
		default:
			return err.Error()
		}
	}
}

func (l *link) dispatch(f wire.Frame) {
	v := l.links.s.byTag[f.Tag]
	if v == nil { // a keep-alive, or a volume that this server does not have
		if g, ok := f.Message.(*wire.Greeting); ok {
			l.lacks(f.Tag, g)
		}
		return
	}
	switch m := f.Message.(type) {
	case *wire.HashQuery:
		v.answer.ask(l, m)
	case *wire.ExtentData:
		v.sync.deliver(l.session, m)
	case *wire.Fetch:
		v.mender.lend(l, m)
	case *wire.Fetched:
		v.mender.deliver(m)
	case *wire.SizeQuery:
		v.examine(l, m)
	case *wire.SizeAnswer:
		v.sizing.deliver(m)
	case *wire.Append:
		v.in.receive(replica.Received{Peer: l.peer.id, Session: l.session, Msg: m}, recordBytes(m.Records))
	case *wire.Forward:
		v.in.receive(replica.Received{Peer: l.peer.id, Session: l.session, Msg: m}, recordBytes(m.Records))
	default:
		v.in.receive(replica.Received{Peer: l.peer.id, Session: l.session, Msg: m}, 0)
	}
}

// lacks tells the other server, which counts on this one for a volume, that it is not
// there: dropped without a word, it would be taken for one that is silent.
func (l *link) lacks(tag uint64, g *wire.Greeting) {
	members := g.State.Members
	if g.UUID.IsZero() { // of a blank server: what its configuration says
		members = g.Servers
	}
	self := l.links.s.opt.ID
	if wire.Tag(g.Name) != tag || !slices.Contains(members, self) {
		return
	}
	l.out.control(tag, &wire.Leaving{Reason: fmt.Sprintf("volume %q is not in the configuration of server %s", g.Name, self)})
	if l.peer.counts(g.Name) {
		l.links.s.opt.Logger.Warn("another server counts on this one for a volume that is not in the configuration: add it, or correct the list of its servers there",
			"peer", l.peer.id.String(), "volume", g.Name)
	}
}

func recordBytes(recs []*record.Record) int {
	n := 0
	for _, r := range recs {
		n += len(r.Raw)
	}
	return n
}

// watch closes a link over which nothing comes, and sends a little over one that
// has been idle, so that the other side can tell silence from death.
func (l *link) watch(quit chan struct{}) {
	timeout := l.links.s.opt.PeerTimeout
	t := time.NewTicker(timeout)
	defer t.Stop()
	for {
		select {
		case <-quit:
			return
		case <-t.C:
		}
		now := l.links.s.opt.Clock()
		if silent := now.Sub(replica.Time(l.heard.Load())); silent > 4*timeout {
			l.close(fmt.Sprintf("nothing was heard for %v", silent.Round(time.Millisecond)))
			return
		}
		if now.Sub(replica.Time(l.spoke.Load())) >= timeout {
			l.out.control(0, &wire.Heartbeat{})
		}
		l.holds(now)
	}
}

// unpace takes congestion control that paces, such as BBR, from a link within this
// host: there is no bottleneck to find, and its timers cost CPU (three servers on one
// host: 5 % of a write of 4 KiB).
func unpace(conn net.Conn) {
	t, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	local, remote := t.LocalAddr().(*net.TCPAddr), t.RemoteAddr().(*net.TCPAddr)
	if !remote.IP.IsLoopback() && !remote.IP.Equal(local.IP) {
		return
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno") // every kernel has it, for every user
	})
}

// secure does the TLS handshake, when keys are configured.
func (ls *links) secure(ctx context.Context, conn net.Conn, dialled record.ServerID) (net.Conn, error) {
	cfg := ls.s.opt.TLS
	if cfg == nil {
		return conn, nil
	}
	var t *tls.Conn
	if dialled.IsZero() {
		t = tls.Server(conn, cfg)
	} else {
		cfg = cfg.Clone()
		cfg.ServerName = dialled.String()
		t = tls.Client(conn, cfg)
	}
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("TLS handshake: %w", err)
	}
	return t, nil
}

// certified checks that the certificate is that of the server that speaks.
func certified(conn net.Conn, id record.ServerID) error {
	t, ok := conn.(*tls.Conn)
	if !ok {
		return nil
	}
	certs := t.ConnectionState().PeerCertificates
	if len(certs) == 0 {
		return fmt.Errorf("server %s showed no certificate", id)
	}
	if err := certs[0].VerifyHostname(id.String()); err != nil {
		return fmt.Errorf("server %s showed the certificate of another: %w", id, err)
	}
	return nil
}
