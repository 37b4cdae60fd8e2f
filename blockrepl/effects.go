package blockrepl

import (
	"fmt"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/journal"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: the volume's loop, after a round of Steps. Does: hands each effect
// to who carries it out, Stores first; nothing here waits but the journal, when
// the disk is behind. Goes to: journal and committer, links, applier, clients.

func (v *Volume) carryOut(e *replica.Effects) {
	for i := range e.Stores {
		v.store(&e.Stores[i])
	}
	for _, c := range e.CloseLinks {
		v.s.links.close(c.Peer, c.Session, v.name+": "+c.Reason)
	}
	for i := range e.Sends {
		m := &e.Sends[i]
		v.s.links.send(m.To, m.Session, v.tag, m.Msg)
	}
	for i := range e.Streams {
		st := &e.Streams[i]
		v.s.links.stream(v, st)
	}
	if e.Apply != 0 {
		v.app.to(e.Apply)
	}
	if e.SyncImage != 0 {
		v.check.ask(e.SyncImage)
	}
	for i := range e.Complete {
		v.clients.complete(e.Complete[i])
	}
	for _, id := range e.Reads {
		v.clients.grant(id)
	}
	for _, a := range e.Abort {
		v.clients.abort(a.Conn, a.Reason)
	}
	for _, seq := range e.Lookups {
		v.lookUp(seq)
	}
	if e.Resync != nil {
		v.order(e.Resync)
	}
	if e.Trim != 0 {
		v.trim(e.Trim)
	}
	for i := range e.Results {
		v.results.deliver(e.Results[i])
	}
	for i := range e.Notes {
		v.note(&e.Notes[i])
	}
}

// store hands one batch to the journal and to the ring. Once a batch was not
// taken none is any more: the journal would have a hole.
func (v *Volume) store(s *replica.Store) {
	if v.dead {
		return
	}
	if err := v.tryStore(s); err != nil {
		v.dead = true
		v.fail("journal", fmt.Errorf("store batch %d of %d records: %w", s.ID, len(s.Records), err))
	}
}

func (v *Volume) tryStore(s *replica.Store) error {
	log := v.log.Load()
	if s.Hard != nil && !s.Hard.State.UUID.IsZero() && v.uuid.Load() == nil {
		var err error
		if log, err = v.s.journal.Log(s.Hard.State.UUID); err != nil {
			return fmt.Errorf("open journal of volume %s: %w", s.Hard.State.UUID, err)
		}
		v.log.Store(log)
		id := s.Hard.State.UUID
		v.uuid.Store(&id)
	}
	// Urgent: what is numbered must be kept. Clients' writes that do not fit are
	// refused by the state machine, which knows the free space of all servers.
	b := journal.Batch{Records: s.Records, Meta: metaOps(s), Urgent: true}
	if s.Cut != nil {
		b.Cut = &journal.Cut{After: *s.Cut, Quarantine: v.quarantineID(log), Reason: "another server's past was chosen", Time: v.s.opt.Wall().UnixNano()}
		v.ring.cut(s.Cut.Seq)
		v.s.links.unstream(v)
	}
	if s.Reset != nil {
		b.Reset = s.Reset
		v.ring.clear()
		v.s.links.unstream(v)
		v.app.reset(s.Reset.Seq)
		v.in.reset()
		v.mixed.Add(1)
	}
	p, err := log.Write(b)
	if err != nil {
		return err
	}
	v.ring.add(s.Records)
	v.com.queue <- storing{id: s.ID, pending: p, last: log.Last(), hard: s.Hard}
	return nil
}

// quarantineID names a tail that is set aside: by its time, for people, and its end.
func (v *Volume) quarantineID(log *journal.Log) string {
	return fmt.Sprintf("%s-%d", v.s.opt.Wall().UTC().Format("20060102T150405.000"), log.Last().Seq)
}

// lookUp answers a question for the header sum of an old record.
func (v *Volume) lookUp(seq record.Seq) {
	ev := replica.Looked{Seq: seq}
	if log := v.log.Load(); log != nil {
		rec, err := log.Get(seq)
		if err == nil {
			ev.Pos, ev.OK = rec.Pos(), true
		} else {
			v.logr.Debug("record looked up is not there", "seq", seq, "err", err)
		}
	}
	v.in.post(ev)
}

func (v *Volume) trim(upto record.Seq) {
	if v.dead {
		return
	}
	if err := v.log.Load().Trim(upto); err != nil {
		v.dead = true
		v.fail("journal", fmt.Errorf("trim through %d: %w", upto, err))
	}
}

// note writes a state change to the log and to the recent events.
func (v *Volume) note(n *replica.Note) {
	if n.Warn {
		v.logr.Warn(n.Text, n.Args...)
	} else {
		v.logr.Info(n.Text, n.Args...)
	}
	v.s.events.add(v.s.opt.Wall(), v.name, n)
}
