package replica

import (
	"fmt"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: promises. Does: before an epoch begins, fetches the records of the
// same past that a server of the new set holds beyond this journal's end. Goes to:
// beginEpoch, behind them.
//
// A master stores and sends at once, so after a crash a slave may well hold more of
// the last epoch than the master. Mostly nobody was told of those records. But a
// disk that lost what it had called durable leaves the same picture, and then they
// were acknowledged. To take the longer end is right both ways: what is not
// committed may be kept, what is must be. Nothing needs to be remembered for it.

// adopting reports whether the epoch must wait for records of a server of set.
func (r *Replica) adopting(set []wire.Member) bool {
	c := r.c
	if c.kind == creating || c.loss || c.resolve || c.ownTail || mutated("begin without the longest tail") {
		return false
	}
	var from *peer
	var end record.Seq
	for i := range c.pledges {
		p, g := r.peer(c.pledges[i].id), &c.pledges[i].greeting
		longer := p != nil && hasMember(set, p.id) && g.Following == r.hard.Following && !g.Resyncing &&
			g.Last.Seq > max(r.last.Seq, end) && g.First <= r.last.Seq+1
		if longer {
			from, end = p, g.Last.Seq
		}
	}
	if from == nil {
		return false
	}
	if contains(c.exclude, from.id) && c.tail == from.id && r.overdue(c.tailing) > 0 {
		// The operator lets it go, and its records with it. Had it sent them it would be
		// welcome all the same.
		c.mute = append(c.mute, from.id)
		c.tail = record.ServerID{}
		return true
	}
	if from.session == 0 {
		// It has to take part anyway: a promise without the records is none.
		c.drop(from.id)
		return true
	}
	if c.kind == promoting && r.now >= c.give {
		r.result(Result{ID: c.command, Err: fmt.Errorf("%w: promote to epoch %v: %v does not send the records %d..%d", ErrTimeout, c.epoch, from.id, r.last.Seq+1, end)})
		c.command = 0
		r.stepDown("records that another server holds did not come in time")
		return true
	}
	if c.tail != from.id || r.now >= c.tailAt {
		if c.tail != from.id {
			c.tailing = r.now
			r.note("fetching records that another server holds beyond this journal's end", "peer", from.id.String(), "first", uint64(r.last.Seq+1), "last", uint64(end))
		}
		c.tail, c.tailAt = from.id, r.now.Add(r.cfg.PeerTimeout/4)
		r.send(from, &wire.Request{Epoch: c.epoch, From: r.last.Seq + 1, To: end})
	}
	r.wake(c.tailAt)
	return true
}

// adopt takes the records that adopting asked for; false: they are not that.
func (r *Replica) adopt(p *peer, a *wire.Append) bool {
	c := r.c
	if r.role != wire.RoleCandidate || c.tail != p.id || a.Epoch != r.hard.Following {
		return false
	}
	for _, rec := range a.Records {
		if rec.Seq != r.last.Seq+1 {
			continue // twice, or a frame before it is lost: asked for again
		}
		if rec.Prev != r.last.Sum || rec.Epoch.Compare(r.hard.Following) > 0 || rec.Volume != r.hard.State.UUID {
			r.warn("the records beyond this journal's end do not continue it; going on without them", "peer", p.id.String(), "seq", uint64(rec.Seq))
			c.ownTail = true
			return true
		}
		r.push(rec)
		if rec.Origin == r.cfg.Self {
			r.found(rec)
		}
		c.tailing, c.tailAt = r.now, r.now.Add(r.cfg.PeerTimeout/4)
		c.give = max(c.give, r.now.Add(r.cfg.PeerTimeout))
	}
	return true
}

// lendTail sends the end of this journal to a candidate that has our promise: of an
// older epoch nothing is added to it any more.
func (r *Replica) lendTail(p *peer, q *wire.Request) {
	if q.From < r.first || q.From > q.To || q.To > r.durable {
		r.closeLink(p, fmt.Sprintf("it requests %d..%d before its epoch; kept are %d..%d", q.From, q.To, r.first, r.durable))
		return
	}
	r.out.Streams = append(r.out.Streams, Stream{To: p.id, Session: p.session, Epoch: r.hard.Following, From: q.From, End: q.To})
}

// drop takes a promise for not given.
func (c *candidate) drop(id record.ServerID) {
	for i := range c.pledges {
		if c.pledges[i].id == id {
			c.pledges = append(c.pledges[:i:i], c.pledges[i+1:]...)
			return
		}
	}
}

func hasMember(set []wire.Member, id record.ServerID) bool {
	for _, m := range set {
		if m.ID == id {
			return true
		}
	}
	return false
}
