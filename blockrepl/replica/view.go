package replica

import (
	"cmp"
	"fmt"
	"maps"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// View is a snapshot for people and for status.
type View struct {
	Role    wire.Role
	State   Condition
	Reason  string
	Next    string // the command that gets on; "" when none is needed
	Blank   bool
	Config  wire.State // the volume's state c
	Epoch   record.Epoch
	Size    int64
	Holder  string
	Serving bool // a master that numbers and reads

	First, Last, Durable, Committed, Applied, Checkpoint record.Seq

	Resync   *ResyncMark
	Peers    []PeerView
	Counters map[string]uint64
}

// PeerView is one peer in a View. Durable, Applied and the lags are the master's
// knowledge, zero elsewhere.
type PeerView struct {
	Server     record.ServerID
	State      PeerState
	Reason     string
	For        time.Duration // in this state
	Heard      time.Duration // since it was last heard; 0: never since this server's start
	InSync     bool
	Durable    record.Seq
	Applied    record.Seq
	LagRecords uint64
	LagBytes   int64
}

// Condition is the one word on a volume. The text is status's vocabulary.
type Condition string

// The conditions.
const (
	Healthy    Condition = "healthy"
	Degraded   Condition = "degraded"
	CatchingUp Condition = "catching-up"
	Resyncing  Condition = "resyncing"
	Suspended  Condition = "suspended"
	Diverged   Condition = "diverged"
	SplitBrain Condition = "split-brain"
	FailedHere Condition = "failed"
)

// Commit is the commit number, for the frames that carry it.
func (r *Replica) Commit() record.Seq { return r.commit }

// Epoch is the epoch that this server leads or follows.
func (r *Replica) Epoch() record.Epoch { return r.hard.Following }

// Size is the volume's present size in bytes, as applied.
func (r *Replica) Size() int64 { return r.table.Size }

// Holder is the identity that holds a volume that is not shared, "" when none does.
func (r *Replica) Holder() string {
	if r.hard.State.Shared {
		return ""
	}
	if h := r.table.holder(); h != nil {
		return h.Identity
	}
	return ""
}

// Token is the highest token that an identity has written with, as applied; 0: none.
func (r *Replica) Token(identity string) uint64 {
	if len(identity) > identityMax {
		identity = identity[:identityMax]
	}
	if i, ok := r.table.find(identity); ok {
		return r.table.Entries[i].Token
	}
	return 0
}

// View says how the volume is doing here.
func (r *Replica) View(now Time) View {
	r.now = max(r.now, now)
	v := View{
		Role: r.role, Blank: r.blank(), Config: r.hard.State, Epoch: r.hard.Following,
		Size: r.table.Size, Holder: r.Holder(), Serving: r.role == wire.RoleMaster && r.m.serving,
		First: r.first, Last: r.last.Seq, Durable: r.durable, Committed: r.commit,
		Applied: r.applied, Checkpoint: r.hard.Checkpoint, Counters: maps.Clone(r.counters),
	}
	if r.hard.Resync != nil {
		m := *r.hard.Resync
		v.Resync = &m
	}
	if r.blank() {
		v.Config = r.cfg.Create
	}
	for _, p := range r.peers {
		w := PeerView{Server: p.id, State: p.state, Reason: p.reason, For: r.now.Sub(p.since),
			Heard: r.silence(p), InSync: inSync(&r.hard.State, p.id)}
		if r.role == wire.RoleMaster {
			w.Durable, w.Applied = p.durable, p.applied
			w.LagRecords = uint64(r.last.Seq - min(p.durable, r.last.Seq))
			if w.LagRecords > 0 {
				w.LagBytes = r.kept.above(p.durable)
			}
		}
		v.Peers = append(v.Peers, w)
	}
	v.State, v.Reason, v.Next = r.condition()
	return v
}

// silence is how long the peer was not heard, 0 when it never was.
func (r *Replica) silence(p *peer) time.Duration {
	if p.lastHeard == 0 {
		return 0
	}
	return r.now.Sub(p.lastHeard)
}

// condition names how the volume is doing, why, and what the operator can do.
func (r *Replica) condition() (Condition, string, string) {
	name := r.cfg.Create.Name
	switch {
	case r.role == wire.RoleFailed:
		if r.hole != 0 {
			return FailedHere, r.reason, fmt.Sprintf("start a server that has record %d, then restart this one; or promote another one that is in sync: blockrepl promote %s", r.hole, name)
		}
		return FailedHere, r.reason, "repair the disk, then restart this server; or promote another one: blockrepl promote " + name
	case !r.splitBy.IsZero():
		reason, next := fmt.Sprintf("this server and %v both went on alone", r.splitBy), "blockrepl resolve "+name+" --keep SERVER"
		if d := r.diskHangs(); d > 0 { // no command takes effect while it lasts
			reason = fmt.Sprintf("%s; no fsync of this server's journal has ended for %v", reason, d)
			next = "repair the disk, then restart this server; then: " + next
		}
		return SplitBrain, reason, next
	case r.role != wire.RoleMaster && r.diskHangs() > 0:
		reason, next := r.diskCondition(name, r.diskHangs())
		return Suspended, reason, next
	case r.forgot != "" && r.blank():
		if id := r.keeper(); !id.IsZero() { // an init would be refused
			return Diverged, fmt.Sprintf("%s; the volume exists on server %v", r.forgot, id), "see there what to do: blockrepl status " + name
		}
		return Diverged, r.forgot, "blockrepl init " + name + " with --keep, --zero or --from FILE"
	case r.forgot != "" && len(r.members()) == 1:
		return Diverged, r.forgot, "put " + r.right() + " back and restart; or take what is here for the whole: blockrepl promote " + name + " --accept-loss"
	case r.forgot != "" && r.hard.Resync == nil && len(r.hard.State.InSync) == 1 && inSync(&r.hard.State, r.cfg.Self):
		return Diverged, r.forgot + "; nobody else is in sync",
			"give it back what it lost; or, to go on without that: blockrepl promote " + name + " --accept-loss"
	case r.forgot != "" && r.hard.Resync == nil && r.nobodyElse():
		return Diverged, r.forgot + "; nor is that of any other server in sync",
			"give one back what it lost; or, to go on without that, on the one with the highest number: blockrepl promote " + name + " --accept-loss"
	case r.forgot != "" && r.hard.Resync == nil && r.hard.State.Master == r.cfg.Self:
		return Diverged, r.forgot, "on another server that is in sync: blockrepl promote " + name
	case r.forgot != "" && r.hard.Resync == nil:
		return Diverged, r.forgot, fmt.Sprintf("on the master: blockrepl forget %s %v", name, r.cfg.Self)
	case r.role == wire.RoleSlave && r.crowded() && r.hard.State.Master == r.cfg.Self:
		return Suspended, fmt.Sprintf("%d masterships began since all members were last in sync, most by restarts of the master; the history of them is nearly full, so none begins by itself any more", len(r.hard.History)),
			"find out why servers restart, start all members, then: blockrepl promote " + name
	case r.hard.Resync != nil:
		return Resyncing, "the image is being compared with the master's and copied where it differs; not promotable until that ends", ""
	}
	switch r.role {
	case wire.RoleMaster:
		return r.masterCondition(name)
	case wire.RoleCandidate:
		return r.candidateCondition(name)
	}
	return r.slaveCondition(name)
}

// right is what would be believed again if the operator put it back. With the image
// alone a journal would not agree that has noted what it lost.
func (r *Replica) right() string {
	if r.unlike {
		return "the right image"
	}
	return "data directory and image of the same moment"
}

// keeper is a server that holds the volume, zero when none is known.
func (r *Replica) keeper() record.ServerID {
	for _, p := range r.peers {
		if p.greeting != nil && !p.greeting.UUID.IsZero() {
			return p.id
		}
	}
	return record.ServerID{}
}

// nobodyElse reports that this server is in sync, and that no other one which is can
// be promoted, by what they said when they were linked.
func (r *Replica) nobodyElse() bool {
	for _, m := range r.hard.State.InSync {
		p := r.peer(m.ID)
		if m.ID != r.cfg.Self && (p == nil || p.greeting == nil || !p.greeting.Forgot && !p.greeting.Resyncing) {
			return false
		}
	}
	return inSync(&r.hard.State, r.cfg.Self)
}

// goes reports whether a pending change takes id out already; then it waits for
// another server.
func (r *Replica) goes(id record.ServerID) bool {
	st := r.shrinking()
	return !inSync(&st, id)
}

// stuck says what to do about a shrink that no majority can note any more, "" if
// there is none: servers that could have noted it are gone since it was asked for.
func (r *Replica) stuck(name string) string {
	c := r.m.change
	if c == nil || c.settled || c.state.Forced || !c.grow.ID.IsZero() {
		return ""
	}
	reach := 1
	for _, p := range r.peers {
		if p.joined && p.state != Down || contains(c.noted, p.id) {
			reach++
		}
	}
	if reach >= majority(len(c.state.Members)) {
		return ""
	}
	for _, m := range r.hard.State.InSync {
		if !inSync(&c.state, m.ID) {
			return fmt.Sprintf("bring more servers back; or, if %v will not be promoted: blockrepl forget %s %v --force", m.ID, name, m.ID)
		}
	}
	return ""
}

// backOrForget says what to do about a server that is waited for, with the flag that
// forget would ask for.
func (r *Replica) backOrForget(name string, id record.ServerID) string {
	return r.orForget(fmt.Sprintf("bring %v back", id), name, id)
}

// orForget is that where something else than to bring it back helps, too. While this
// server lacks a record it may be the one that has it.
func (r *Replica) orForget(help, name string, id record.ServerID) string {
	if r.role == wire.RoleMaster && max(r.m.hole, r.peer(id).past.hole) > r.applied {
		return help
	}
	if _, force := r.forgetting(id); force {
		return fmt.Sprintf("%s; or, to go on without it, if it will not be promoted: blockrepl forget %s %v --force", help, name, id)
	}
	return fmt.Sprintf("%s, or go on without it: blockrepl forget %s %v", help, name, id)
}

func (r *Replica) masterCondition(name string) (Condition, string, string) {
	if reason, next := r.holeCondition(name); reason != "" {
		return Suspended, reason, next
	}
	if d := r.diskHangs(); d > 0 { // before the rest: no command takes effect while it lasts
		reason, next := r.diskCondition(name, d)
		if !r.m.serving {
			reason = fmt.Sprintf("epoch %v has not begun: %s", r.epoch(), reason)
		}
		return Suspended, reason, next
	}
	if !r.m.serving {
		next := ""
		for _, p := range r.peers { // in the set, even when only a pending change waits for it
			if r.waited(p.id) && p.state == Down && !r.goes(p.id) {
				next = r.backOrForget(name, p.id)
				break
			}
		}
		if next == "" {
			next = r.stuck(name)
		}
		if reason, hung := r.hangCondition(name); next == "" && hung != "" {
			return Suspended, fmt.Sprintf("epoch %v has not begun: %s", r.epoch(), reason), hung
		}
		return Suspended, fmt.Sprintf("epoch %v begins when its first record is durable on %s", r.epoch(), r.awaited()), next
	}
	for _, p := range r.peers {
		if inSync(&r.hard.State, p.id) && (!p.joined || p.state == Down) && !r.goes(p.id) {
			return Suspended, fmt.Sprintf("writes wait for %v: %s", p.id, cmp.Or(p.reason, p.state.String())), r.backOrForget(name, p.id)
		}
	}
	if next := r.stuck(name); next != "" {
		return Suspended, "a change of the in-sync set waits until a majority has noted it", next
	}
	if id := r.cramped(0); !id.IsZero() {
		next := fmt.Sprintf("make room on the file systems of %v", id)
		if id != r.cfg.Self {
			next += fmt.Sprintf(", or go on without it: blockrepl forget %s %v", name, id)
		}
		return Suspended, fmt.Sprintf("no space on %v for more records; clients that write get ENOSPC", id), next
	}
	if reason, next := r.hangCondition(name); next != "" {
		return Suspended, reason, next
	}
	for _, p := range r.peers {
		if !inSync(&r.hard.State, p.id) {
			why := p.state.String()
			if p.reason != "" {
				why += ", " + p.reason
			}
			return Degraded, fmt.Sprintf("%v is not in sync: %s", p.id, why), ""
		}
	}
	return Healthy, "", ""
}

func (r *Replica) candidateCondition(name string) (Condition, string, string) {
	var silent, unbelieved []record.ServerID
	for _, m := range r.c.base.InSync {
		switch {
		case m.ID == r.cfg.Self || r.counts(m.ID) || contains(r.c.exclude, m.ID):
		case r.c.pledge(m.ID) == nil:
			silent = append(silent, m.ID)
		default:
			unbelieved = append(unbelieved, m.ID)
		}
	}
	silent = append(silent, r.rivals()...)
	if len(unbelieved) > 0 {
		return Suspended, fmt.Sprintf("epoch %v needs %s, whose past is not what others remember of it", r.c.epoch, names(unbelieved)),
			fmt.Sprintf("to resync it: blockrepl forget %s %v", name, unbelieved[0])
	}
	if d := r.overdue(r.c.tailing); len(silent) == 0 && r.c.kind == restarting && !r.c.tail.IsZero() && d > 0 {
		return Suspended, fmt.Sprintf("epoch %v begins when the records after number %d have come from %v, which has sent none for %v", r.c.epoch, r.last.Seq, r.c.tail, d),
			fmt.Sprintf("look at the log of %v and restart it; or, to go on without it, if it will not be promoted, and without records that nobody else has: blockrepl forget %s %v --force", r.c.tail, name, r.c.tail)
	}
	if len(silent) == 0 && !r.c.tail.IsZero() {
		return Suspended, fmt.Sprintf("epoch %v begins when the records after number %d have come from %v", r.c.epoch, r.last.Seq, r.c.tail), ""
	}
	if r.c.kind == promoting && r.now < r.c.wait {
		return Suspended, fmt.Sprintf("taking epoch %v when the lease has ended that the old master may still read under", r.c.epoch), ""
	}
	if len(silent) == 0 {
		if r.c.kind != restarting || r.now < r.c.wait {
			return Suspended, "taking epoch " + r.c.epoch.String(), ""
		}
		return Suspended, fmt.Sprintf("epoch %v needs the promises of a majority", r.c.epoch),
			fmt.Sprintf("start more servers; or, if none of them was promoted meanwhile: blockrepl promote %s --old-master-dead", name)
	}
	return Suspended, fmt.Sprintf("epoch %v needs the promise of %s", r.c.epoch, names(silent)),
		fmt.Sprintf("start %s; or, if it is gone for good: blockrepl forget %s %v --force", names(silent), name, silent[0])
}

func (r *Replica) slaveCondition(name string) (Condition, string, string) {
	if r.blank() {
		reason, next := r.uncreated(name)
		return Suspended, reason, next
	}
	p := r.peer(r.hard.State.Master)
	if !r.s.joined || p == nil || p.state == Down {
		why := "no master"
		if p != nil {
			why = fmt.Sprintf("no master: %v is %v", p.id, p.state)
			if p.reason != "" {
				why += ", " + p.reason
			}
		} else {
			return Suspended, why, "take over here: blockrepl promote " + name
		}
		if inSync(&r.hard.State, r.cfg.Self) {
			return Suspended, why, fmt.Sprintf("start %v, or take over here: blockrepl promote %s", p.id, name)
		}
		why += "; this server is not in sync"
		if others := r.othersInSync(); len(others) > 0 {
			return Suspended, why, fmt.Sprintf("on another server that is in sync (%s): blockrepl promote %s; or start %v", names(others), name, p.id)
		}
		return Suspended, why, fmt.Sprintf("start %v, the only one in sync; or, if it is gone for good, on the server with the highest number: blockrepl promote %s --accept-loss", p.id, name)
	}
	if !inSync(&r.hard.State, r.cfg.Self) {
		return CatchingUp, fmt.Sprintf("at number %d; not in sync yet", r.last.Seq), ""
	}
	if r.last.Seq < r.s.line {
		return CatchingUp, fmt.Sprintf("at number %d of %d", r.last.Seq, r.s.line), ""
	}
	if len(r.hard.State.InSync) < len(r.hard.State.Members) {
		return Degraded, "in sync: " + names(ids(r.hard.State.InSync)), ""
	}
	return Healthy, "", ""
}
