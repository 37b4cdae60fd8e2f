package sim

import (
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// cursor is how far the records went over a node's link to one peer.
type cursor struct {
	session uint64
	epoch   record.Epoch
	next    record.Seq // the first one not sent; 0: no cursor
	end     record.Seq
	armed   bool // an evPump is on the heap
}

// stream moves a cursor, as the sender does.
func (n *node) stream(st *replica.Stream) {
	l := n.s.link(st.Session)
	if l.closed[l.end(n.i)] {
		return
	}
	j := index(st.To)
	c := &n.cursors[j]
	if st.From != 0 {
		if c.session != st.Session {
			*c = cursor{session: st.Session}
		}
		c.next = st.From
	}
	if c.next == 0 || c.session != st.Session {
		return
	}
	c.epoch, c.end = st.Epoch, st.End
	n.armPump(j)
}

func (n *node) armPump(j int8) {
	c := &n.cursors[j]
	if !c.armed && c.next <= c.end {
		c.armed = true
		n.after(n.s.dice.net.Int64N(int64(300*time.Microsecond)), event{what: evPump, p: j, a: c.session})
	}
}

// pump sends one Append.
func (n *node) pump(ev *event) {
	c := &n.cursors[ev.p]
	if c.session != ev.a || !c.armed {
		return
	}
	if n.paused {
		n.after(n.wakes(), *ev)
		return
	}
	c.armed = false
	if c.next > c.end {
		return
	}
	if n.epoch != c.epoch {
		*c = cursor{}
		return
	}
	a := &wire.Append{Epoch: c.epoch, Commit: n.commit, Floor: n.floor}
	for q := c.next; q <= c.end && len(a.Records) <= n.s.dice.net.IntN(frameMax); q++ {
		rec := n.journal.os.get(q)
		if rec == nil {
			break
		}
		if p := n.unreadable(q, q); p != nil {
			seq := q
			if p.hard {
				seq = c.next
			}
			n.mend(p, seq, forPeer)
			return // goes on when it is mended, or its link ends
		}
		a.Records = append(a.Records, rec)
	}
	if len(a.Records) == 0 {
		n.s.tell(n.i, "record %v to send to %v is not kept", c.next, serverIDs[ev.p])
		session := c.session
		n.s.closeSession(n, session)
		n.post(replica.LinkDown{Peer: serverIDs[ev.p], Session: session, Reason: "record not kept"})
		return
	}
	c.next += record.Seq(len(a.Records))
	n.s.send(n, c.session, a)
	n.armPump(ev.p)
}
