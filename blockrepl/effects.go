package blockrepl

import (
	"errors"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
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
		v.s.links.close(v, c.Peer, c.Session, v.name+": "+c.Reason)
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
	for _, l := range e.Lookups {
		v.lookUp(l)
	}
	if e.Resync != nil {
		v.order(e.Resync)
	}
	if e.Trim != 0 {
		v.trim(e.Trim)
	}
	if e.Fail != nil {
		v.app.close()
		v.fail(e.Fail.What, e.Fail.Err)
	}
	for i := range e.Results {
		v.results.deliver(e.Results[i])
	}
	for i := range e.Notes {
		v.note(&e.Notes[i])
	}
}

// lookUp answers a question for the header sum of an old record.
func (v *Volume) lookUp(l replica.Lookup) {
	pos, err := v.position(l.Seq)
	if l.Mend && err != nil && v.mender.forLookup(l.Seq, err) {
		return
	}
	v.looked(l.Seq, pos, err)
}

func (v *Volume) looked(seq record.Seq, pos record.Pos, err error) {
	if err != nil {
		v.logr.Debug("record looked up is not there", "seq", seq, "err", err)
	}
	v.in.post(replica.Looked{Seq: seq, Pos: pos, OK: err == nil})
}

func (v *Volume) position(seq record.Seq) (record.Pos, error) {
	log := v.log.Load()
	if log == nil {
		return record.Pos{}, errors.New("the journal is not open")
	}
	return log.Position(seq)
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
