package blockrepl

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// flaps are the links to another server that broke soon after they were up, as where a
// firewall resets them. It happens as often as the back-off lets it, so after the first
// ones the log says that it does, then once a minute how often, and when a link holds;
// status says it all the time.
type flaps struct {
	total  uint64 // of this server's life
	row    int    // one after the other, none that held between
	going  bool   // it was told; ups and downs are for debugging meanwhile
	told   replica.Time
	fresh  int // since told, or in the row before
	last   replica.Time
	reason string
}

// broke counts a link that lived so long. fresh > 0: that many are to be told.
func (f *flaps) broke(now replica.Time, lived time.Duration, reason string) (fresh int) {
	if lived >= flapLife {
		f.row, f.fresh, f.going = 0, 0, false
		return 0
	}
	f.total++
	f.row++
	f.fresh++
	f.last, f.reason = now, reason
	if f.row < flapMany || f.going && now.Sub(f.told) < flapEvery {
		return 0
	}
	fresh = f.fresh
	f.going, f.told, f.fresh = true, now, 0
	return fresh
}

// over ends it when a link holds, or when none comes up any more; it gives how often
// links broke, 0 if that was not told.
func (f *flaps) over() (row int) {
	if f.going {
		row = f.row
	}
	f.row, f.fresh, f.going = 0, 0, false
	return row
}

// upLevel is how loud a link is that comes up.
func (p *peerLink) upLevel(now replica.Time) slog.Level {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.flaps.going && now.Sub(p.flaps.last) >= flapEvery { // it was away meanwhile
		p.flaps.over()
		p.told, p.said = nil, ""
	}
	if p.flaps.going {
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

// down logs the end of the link.
func (l *link) down() {
	p, now := l.peer, l.links.s.opt.Clock()
	level, fresh := slog.LevelInfo, 0
	l.holds(now) // the watch may not have looked

	// Else it is this server's doing, and the last one. One that a newer link replaces has
	// broken, too: on the other side, or another server has its id.
	if l.links.ctx.Err() == nil {
		p.mu.Lock()
		fresh = p.flaps.broke(now, now.Sub(l.up), l.reason)
		if p.flaps.going {
			level = slog.LevelDebug
		}
		p.mu.Unlock()
	}
	l.log(level, "link down", "reason", l.reason)
	if fresh > 0 {
		l.log(slog.LevelWarn, "link breaks again and again", "times", fresh, "reason", l.reason)
	}
}

// holds is called now and then while the link lives.
func (l *link) holds(now replica.Time) {
	if now.Sub(l.up) < flapLife {
		return
	}
	l.peer.mu.Lock()
	row := l.peer.flaps.over()
	l.peer.told, l.peer.said = nil, ""
	l.peer.mu.Unlock()
	if row > 0 {
		l.log(slog.LevelInfo, "link holds again", "broke", row)
	}
}

func (p *peerLink) status(now replica.Time) (trouble string, total uint64) {
	linked := p.cur.Load() != nil
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.flaps.going && (linked || now.Sub(p.flaps.last) < flapEvery):
		trouble = fmt.Sprintf("the link breaks again and again, %d times so far, the last one: %s", p.flaps.row, p.flaps.reason)
	case !linked && p.why != nil:
		trouble = p.why.Error()
	}
	return trouble, p.flaps.total
}

// troubled logs why there is no link, once for each kind of trouble, and once more when
// another kind came between, or links that broke, and that a minute ago.
func (p *peerLink) troubled(ls *links, err error) {
	if ls.ctx.Err() != nil {
		return
	}
	kind := "no link to server"
	var r *wire.RefusedError
	var dial *net.OpError
	switch {
	case errors.As(err, &r):
		kind = fmt.Sprintf("server does not agree (cause %d)", r.Cause)
	case errors.As(err, &dial) && dial.Op == "dial":
		kind = "server not reached" // news when it was: it may be starting, then refuse our certificate
	}
	now := ls.s.opt.Clock()
	p.mu.Lock()
	if p.flaps.going && now.Sub(p.flaps.last) >= flapEvery {
		p.flaps.over() // not even that any more
		p.told, p.said = nil, ""
	}
	at, told := p.told[kind]
	news := !told || p.said != kind && now.Sub(at) >= flapEvery
	if p.told == nil {
		p.told = map[string]replica.Time{}
	}
	if news {
		p.told[kind], p.said = now, kind
	}
	p.why = err
	p.mu.Unlock()
	if news {
		ls.s.opt.Logger.Warn(kind, "peer", p.id.String(), "err", err)
	} else {
		ls.s.opt.Logger.Debug(kind, "peer", p.id.String(), "err", err)
	}
}

// status says for status what keeps links to a server from coming up or from holding, ""
// while one holds or where the other server makes them, and how many have broken soon
// after they were up.
func (ls *links) status(id record.ServerID) (trouble string, flaps uint64) {
	if p := ls.peers[id]; p != nil {
		return p.status(ls.s.opt.Clock())
	}
	return "", 0
}
