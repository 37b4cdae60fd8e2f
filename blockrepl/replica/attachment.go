package replica

import (
	"fmt"
	"slices"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: Open and Gone of local clients, attach records of the log. Does:
// gives each connection an attachment, and each attachment its generation. Goes
// to: forward.go, which numbers or forwards only what is of a live generation.

// conn is one connection of a client that may write.
type conn struct {
	id  uint64
	att *attachment
}

// attachment is the connections of one client to this server.
type attachment struct {
	identity string
	token    uint64
	takeover bool
	gen      uint64 // number of its attach record; 0 until that is applied here
	asking   bool   // its attach record is under way
	ended    bool   // a newer generation was heard, or the last connection ended
	conns    int
	waiting  []*Op // until gen is known
}

// open joins a connection to its attachment. A newer token begins a new one; the
// volume is taken only by the first write.
func (r *Replica) open(ev Open) {
	id := ev.Identity
	if len(id) > identityMax {
		id = id[:identityMax]
	}
	for _, a := range r.f.atts {
		if a.identity == id && a.token == ev.Token && !a.ended {
			a.conns++
			a.takeover = a.takeover || ev.Takeover
			r.f.conns = append(r.f.conns, &conn{ev.Conn, a})
			return
		}
	}
	a := &attachment{identity: id, token: ev.Token, takeover: ev.Takeover, conns: 1}
	r.f.atts = append(r.f.atts, a)
	r.f.conns = append(r.f.conns, &conn{ev.Conn, a})
}

func (r *Replica) conn(id uint64) *conn {
	for _, c := range r.f.conns {
		if c.id == id {
			return c
		}
	}
	return nil
}

// gone ends a connection. What it had sent and nobody numbered is discarded.
func (r *Replica) gone(id uint64) {
	i := slices.IndexFunc(r.f.conns, func(c *conn) bool { return c.id == id })
	if i < 0 {
		return
	}
	c := r.f.conns[i]
	r.f.conns = slices.Delete(r.f.conns, i, i+1)
	drop := func(op *Op) bool { return op.Conn == id && op.att != nil }
	c.att.waiting = slices.DeleteFunc(c.att.waiting, drop)
	r.f.held = slices.DeleteFunc(r.f.held, drop)
	c.att.conns--
	if c.att.conns == 0 {
		r.detach(c.att)
	}
}

// detach ends an attachment whose last connection ended: the volume is free for
// another identity.
func (r *Replica) detach(a *attachment) {
	r.f.atts = slices.DeleteFunc(r.f.atts, func(b *attachment) bool { return a == b })
	if a.ended || a.gen == 0 && !a.asking {
		a.ended = true
		return
	}
	a.ended = true
	if a.gen == 0 {
		return // ended when its attach record is found (attached)
	}
	rec := record.NewState(record.KindMark, mark{Detach: true}.encode())
	r.route(&Op{Rec: rec, key: opKey{attachment: a.gen}})
	r.sendForwards()
}

// attach asks for the attachment's generation: a record like any other, so that
// it is ordered with the writes and outlives every master.
func (r *Replica) attach(a *attachment) {
	if a.asking {
		return
	}
	a.asking = true
	rec := record.NewState(record.KindMark, mark{Identity: a.identity, Token: a.token, Takeover: a.takeover}.encode())
	r.route(&Op{Rec: rec, att: a})
}

// admissibleMark decides who may attach: the holder's own identity always, with
// no older token; another when the volume is shared or free, when it takes over,
// or when the server that the holder wrote through is away.
func (r *Replica) admissibleMark(rec *record.Record) (wire.Code, string) {
	m, err := decodeMark(rec)
	if err != nil {
		return wire.CodeRange, err.Error()
	}
	if m.Detach {
		return 0, ""
	}
	if i, ok := r.numbered.find(m.Identity); ok {
		e := &r.numbered.Entries[i]
		if m.Token != 0 && m.Token < e.Token {
			return wire.CodeOldGeneration, fmt.Sprintf("token %d is older than %d", m.Token, e.Token)
		}
	}
	if r.hard.State.Shared || m.Takeover {
		return 0, ""
	}
	if h := r.numbered.holder(); h != nil && h.Identity != m.Identity && !r.away(h.Server) {
		return wire.CodeHeld, fmt.Sprintf("client %q holds the volume through server %v", h.Identity, h.Server)
	}
	return 0, ""
}

// away reports whether a server has been silent for peer_timeout of this mastership. One
// that was not heard before that began may be alive, with the client that holds the volume.
func (r *Replica) away(id record.ServerID) bool {
	p := r.peer(id)
	if p == nil {
		return false
	}
	heard := p.lastHeard
	if heard == 0 && r.m != nil {
		heard = r.m.since
	}
	return r.now.Sub(heard) > r.cfg.PeerTimeout
}

// tableChanged takes a numbered or received record into the table, and closes
// local connections whose generation it ends.
func (r *Replica) tableChanged(rec *record.Record) {
	r.numbered.apply(rec, r.hard.State.Shared)
	for _, a := range r.f.atts {
		if a.gen != 0 && !a.ended && !r.numbered.live(a.gen) {
			r.endAttachment(a, "a newer attachment was heard")
		}
	}
}

// endAttachment closes an attachment's connections without a reply and drops
// what they still wait for. What was forwarded may yet be numbered by nobody:
// the master's table refuses it.
func (r *Replica) endAttachment(a *attachment, why string) {
	a.ended = true
	for _, c := range r.f.conns {
		if c.att == a {
			r.out.Abort = append(r.out.Abort, Abort{c.id, why})
		}
	}
	a.waiting = nil
	r.f.held = slices.DeleteFunc(r.f.held, func(op *Op) bool { return op.att == a })
}

// attached gives the waiting changes their generation.
func (r *Replica) attached(a *attachment, gen record.Seq) {
	a.gen, a.asking = uint64(gen), false
	if a.ended || a.conns == 0 {
		a.ended = false
		r.detach(a)
		return
	}
	if !r.numbered.live(a.gen) {
		r.endAttachment(a, "a newer attachment was heard")
		return
	}
	ops := a.waiting
	a.waiting = nil
	for _, op := range ops {
		op.key.attachment = a.gen
		r.route(op)
	}
	r.sendForwards()
}

// refuseWaiting answers what waits for an attachment that is not given; the next
// write asks again.
func (r *Replica) refuseWaiting(a *attachment, err error) {
	ops := a.waiting
	a.waiting, a.asking = nil, false
	for _, op := range ops {
		op.stage = opDone
		r.out.Complete = append(r.out.Complete, Completion{op, err})
	}
}

// abortAll closes every client's connection without a reply.
func (r *Replica) abortAll(why string) {
	for _, c := range r.f.conns {
		r.out.Abort = append(r.out.Abort, Abort{c.id, why})
	}
}
