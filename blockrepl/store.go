package blockrepl

import (
	"errors"
	"fmt"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/journal"
	"github.com/blockrepl/blockrepl/journal/mutant"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: the loop, Effects.Stores. Does: brings each batch to the journal in
// order, and what follows from it to ring, applier and senders.
// Goes to: the committer.
//
// A batch that finds no space waits in memory, and all behind it: nothing of it is
// durable, so nobody is told so, and writes wait as they do for a server that is
// away. It is tried again with every round. Any other error is final.

// backlog is the batches that wait for space. It is the loop's own.
type backlog struct {
	list  []replica.Store
	bytes int64
}

// store takes one batch. Once one was not taken for another reason than space,
// none is any more: the journal would have a hole.
func (v *Volume) store(s *replica.Store) {
	if v.dead {
		return
	}
	v.clientsWrote(s.Records)
	err := v.openLog(s)
	if err == nil {
		v.follow(s)
		if len(v.waiting.list) > 0 {
			v.postpone(s)
			return
		}
		err = v.write(s)
	}
	switch {
	case err == nil:
	case errors.Is(err, journal.ErrNoSpace):
		v.note(&replica.Note{Text: noSpace, Args: []any{"err", err}, Warn: true})
		v.full.Store(true)
		v.postpone(s)
	default:
		v.kill(s, err)
	}
}

// clientsWrote notes clients' changes, before which other work stands back.
func (v *Volume) clientsWrote(recs []*record.Record) {
	var n int64
	for _, r := range recs {
		if r.Kind.ChangesImage() {
			n += int64(len(r.Raw))
		}
	}
	if n > 0 {
		v.busyAt.Store(int64(v.s.opt.Clock()))
		v.catchUp.wrote(n)
	}
}

func (v *Volume) kill(s *replica.Store, err error) {
	v.dead = true
	v.waiting = backlog{}
	v.fail("journal", fmt.Errorf("store batch %d of %d records: %w", s.ID, len(s.Records), err))
}

// openLog gives the volume its log, once its uuid is known.
func (v *Volume) openLog(s *replica.Store) error {
	if s.Hard == nil || s.Hard.State.UUID.IsZero() || v.uuid.Load() != nil {
		return nil
	}
	id := s.Hard.State.UUID
	log, err := v.s.journal.Log(id)
	if err != nil {
		return fmt.Errorf("open journal of volume %s: %w", id, err)
	}
	v.log.Store(log)
	v.uuid.Store(&id)
	return nil
}

// follow does what a batch means for everything but the journal.
func (v *Volume) follow(s *replica.Store) {
	if s.Cut != nil {
		v.ring.cut(s.Cut.Seq)
		v.s.links.unstream(v)
	}
	if s.Reset != nil {
		v.ring.clear()
		v.s.links.unstream(v)
		if !mutant.Is("apply on over a reset") {
			v.app.reset(s.Reset.Seq)
		}
		v.in.reset()
		v.mixed.Add(1)
	}
	v.ring.add(s.Records, record.Seq(v.app.applied.Load()))
}

// write hands a batch to the journal, and to the committer to wait for.
func (v *Volume) write(s *replica.Store) error {
	log := v.log.Load()
	// Urgent: what is numbered must be kept. Clients' writes that do not fit are
	// refused by the state machine, which knows the free space of all servers.
	b := journal.Batch{Records: s.Records, Meta: metaOps(s), Reset: s.Reset, Urgent: true}
	if s.Cut != nil {
		b.Cut = &journal.Cut{After: *s.Cut, Quarantine: quarantineID(v.s.opt.Wall(), log.Last().Seq), Reason: "another server's past was chosen", Time: v.s.opt.Wall().UnixNano()}
	}
	p, err := log.Write(b)
	if err != nil {
		return err
	}
	v.com.queue <- storing{id: s.ID, pending: p, last: log.Last(), hard: s.Hard}
	return nil
}

// postpone keeps a batch until there is space.
func (v *Volume) postpone(s *replica.Store) {
	v.waiting.list = append(v.waiting.list, *s)
	v.waiting.bytes += int64(recordBytes(s.Records)) + 1024
	if v.waiting.bytes > backlogMax {
		v.kill(s, fmt.Errorf("%d bytes wait for space: %w", v.waiting.bytes, journal.ErrNoSpace))
	}
}

// retry writes what waited for space.
func (v *Volume) retry() {
	for len(v.waiting.list) > 0 {
		s := &v.waiting.list[0]
		err := v.write(s)
		if errors.Is(err, journal.ErrNoSpace) {
			return
		}
		if err != nil {
			v.kill(s, err)
			return
		}
		v.waiting.bytes -= int64(recordBytes(s.Records)) + 1024
		v.waiting.list[0] = replica.Store{}
		v.waiting.list = v.waiting.list[1:]
		if len(v.waiting.list) == 0 {
			v.waiting = backlog{}
			v.full.Store(false)
			v.note(&replica.Note{Text: spaceAgain})
			v.s.links.restream(v) // what was neither in the ring nor in the journal is now
		}
	}
}

// quarantineID names a tail that is set aside: by its time, for people, and its end.
func quarantineID(now time.Time, last record.Seq) string {
	return fmt.Sprintf("%s-%d", now.UTC().Format("20060102T150405.000"), last)
}

// trim lets records go. What waits for space is trimmed by a later call, and so is
// what ends among damaged records, which nobody may have needed until now.
func (v *Volume) trim(upto record.Seq) {
	if v.dead || len(v.waiting.list) > 0 {
		return
	}
	err := v.log.Load().Trim(upto)
	var c *journal.CorruptError
	switch {
	case err == nil:
	case errors.As(err, &c):
		v.mender.begin(upto, err)
	default:
		v.dead = true
		v.fail("journal", fmt.Errorf("trim through %d: %w", upto, err))
	}
}
