package replica

import (
	"fmt"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: the clock. Does: tells of a disk that hangs below a process that goes on:
// nobody is silent, nothing fails, and writes wait. Goes to: status; nothing is decided
// by it, for it may also be that a disk is only slow.

// hangs is for how long a server that is linked, and that writes wait for, has made
// nothing durable although it lacks something; 0 when it has, or not for longer than
// peer_timeout.
func (r *Replica) hangs(p *peer) time.Duration {
	if !inSync(&r.hard.State, p.id) || r.goes(p.id) || p.state == Down || p.joined && p.durable >= r.last.Seq {
		return 0
	}
	return r.overdue(p.moved)
}

// diskHangs is that of this server's journal.
func (r *Replica) diskHangs() time.Duration {
	if len(r.storing) == 0 {
		return 0
	}
	return r.overdue(r.synced)
}

// overdue is the time since at, in seconds, when it is longer than peer_timeout, else 0.
func (r *Replica) overdue(at Time) time.Duration {
	if d := r.now.Sub(at); d > r.cfg.PeerTimeout {
		return d.Round(time.Second)
	}
	return 0
}

// hangCondition names the other server whose disk writes wait for, "" when there is none.
func (r *Replica) hangCondition(name string) (reason, next string) {
	for _, p := range r.peers {
		d := r.hangs(p)
		if d == 0 {
			continue
		}
		reason = fmt.Sprintf("writes wait for %v: it answers, and has acknowledged nothing above number %d for %v", p.id, p.durable, d)
		if !p.joined {
			reason = fmt.Sprintf("%v is linked, and has not joined the epoch for %v", p.id, d)
		}
		return reason, r.orForget(fmt.Sprintf("repair or restart %v", p.id), name, p.id)
	}
	return "", ""
}

// holeCondition names a record that writes wait for and that nobody can send: it was
// never acknowledged by all, and goes with this mastership. "" when there is none.
func (r *Replica) holeCondition(name string) (reason, next string) {
	for _, p := range r.peers {
		hole := p.past.hole // it cannot join
		if p.ackEpoch == r.epoch() && p.durable < r.m.hole {
			hole = r.m.hole
		}
		if hole <= r.applied || !inSync(&r.hard.State, p.id) || r.goes(p.id) {
			continue
		}
		reason = fmt.Sprintf("writes wait for %v, which lacks record %d: it cannot be read in this server's journal, and no other server has it", p.id, hole)
		next = fmt.Sprintf("on another server that is in sync (%s), when this one is stopped or cut off: blockrepl promote %s --old-master-dead", names(r.othersInSync()), name)
		return reason, next
	}
	return "", ""
}

// diskCondition says that this server's own journal has hung for d.
func (r *Replica) diskCondition(name string, d time.Duration) (reason, next string) {
	reason = fmt.Sprintf("no fsync of this server's journal has ended for %v; the last durable number is %d", d, r.durable)
	next = "repair the disk, then restart this server"
	others := r.othersInSync()
	switch {
	case r.role == wire.RoleMaster && len(others) > 0:
		next = fmt.Sprintf("on another server that is in sync (%s), when this one is stopped or cut off: blockrepl promote %s --old-master-dead", names(others), name)
	case r.role == wire.RoleSlave && r.s.joined && inSync(&r.hard.State, r.cfg.Self):
		next = fmt.Sprintf("on the master: blockrepl forget %s %v; or %s", name, r.cfg.Self, next)
	}
	return reason, next
}

// othersInSync are the servers in sync but this one and the master.
func (r *Replica) othersInSync() []record.ServerID {
	var out []record.ServerID
	for _, m := range r.hard.State.InSync {
		if m.ID != r.cfg.Self && m.ID != r.hard.State.Master {
			out = append(out, m.ID)
		}
	}
	return out
}
