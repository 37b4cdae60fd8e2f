package blockrepl

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal"
	"github.com/blockrepl/blockrepl/journal/mutant"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: whoever reads the journal and finds a damaged record. Does: asks
// the other servers for it, one after the other. Goes to: journal.Replace, which
// takes only the very record that the chain of sums expects; so nobody decides
// here what a number means, and a peer that lies changes nothing.
type mender struct {
	v      *Volume
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	run chan struct{} // holds a token while a run of records is fetched: two would get into each other's way

	mu      sync.Mutex
	waiting map[record.Seq]chan *record.Record // capacity 1
	begun   map[record.Seq]bool                // in the background
	looking map[record.Seq]bool                // forLookup
	mended  uint64
}

func (m *mender) init(v *Volume) {
	m.v = v
	m.ctx, m.cancel = context.WithCancel(context.Background())
	m.run = make(chan struct{}, 1)
	m.waiting = map[record.Seq]chan *record.Record{}
	m.begun = map[record.Seq]bool{}
	m.looking = map[record.Seq]bool{}
}

// stop ends what is under way; nothing begins after it.
func (m *mender) stop() {
	m.mu.Lock()
	m.cancel() // under mu: begin starts nothing while Wait is under way
	m.mu.Unlock()
	m.wg.Wait()
}

// mend repairs the record that err says is damaged, and reports whether it did.
// It waits for other servers, but not for long.
func (m *mender) mend(err error) bool {
	var c *journal.CorruptError
	if !errors.As(err, &c) {
		return false
	}
	m.v.say(slog.LevelWarn, "journal record is damaged; asking the other servers for it", "seq", c.Seq, "err", err)
	for range mendTries {
		for _, p := range m.v.s.links.peers {
			if l := p.cur.Load(); l != nil && m.fetchRun(l, c.Seq) {
				return true
			}
		}
		if len(m.v.s.links.peers) == 0 || !sleep(m.ctx, mendAgain) {
			return false
		}
	}
	return false
}

// begin mends in the background, for a reader that cannot wait: the writer of the
// link over which the answer would have to come. Then the records are streamed on; or
// the state machine is told that they cannot be, where no other server has what is
// missing, or where the disk gives nothing that could be replaced. seq is where the
// reading began.
func (m *mender) begin(seq record.Seq, err error) {
	var c *journal.CorruptError
	if errors.As(err, &c) {
		seq = c.Seq
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ctx.Err() != nil || m.begun[seq] {
		return
	}
	m.begun[seq] = true
	m.wg.Go(func() {
		mended := m.mend(err)
		if c == nil {
			sleep(m.ctx, mendAgain) // a disk that fails is not asked again at once
		}
		m.mu.Lock()
		delete(m.begun, seq) // before those who wait go on
		m.mu.Unlock()
		switch {
		case mended:
			m.v.s.links.restream(m.v)
		case m.ctx.Err() == nil:
			m.v.logr.Error("journal record cannot be read and was not mended", "seq", seq, "err", err)
			m.v.in.post(replica.Unreadable{Seq: seq})
		}
	})
}

// forLookup mends in the background what hides the sum of record seq, and looks again.
// False when err is no damage, or the volume ends: nothing is under way then.
func (m *mender) forLookup(seq record.Seq, err error) bool {
	var c *journal.CorruptError
	m.mu.Lock()
	defer m.mu.Unlock()
	if !errors.As(err, &c) || m.ctx.Err() != nil {
		return false
	}
	if m.looking[seq] {
		return true // that one's answer is for all who ask
	}
	m.looking[seq] = true
	m.wg.Go(func() {
		m.mend(err)
		m.mu.Lock()
		delete(m.looking, seq) // before it looks: who asks from now on is answered anew
		m.mu.Unlock()
		pos, err := m.v.position(seq)
		m.v.looked(seq, pos, err)
	})
	return true
}

// fetchRun asks one server for a record and for the damaged ones behind it: a bad
// block of a table has many. Each is the proof of the one before, so the last comes
// first.
func (m *mender) fetchRun(l *link, seq record.Seq) bool {
	select {
	case m.run <- struct{}{}:
	default:
		select {
		case m.run <- struct{}{}:
		case <-m.ctx.Done():
			return false
		}
		if rec, err := m.v.log.Load().Get(seq); err == nil { // the run before had it
			rec.Free()
			<-m.run
			return true
		}
	}
	defer func() { <-m.run }()
	last := m.damagedThrough(seq)
	for at := last; at >= seq; at-- {
		if !m.fetch(l, at) {
			return false
		}
	}
	m.v.logr.Info("damaged journal records were fetched again", "peer", l.peer.id.String(), "seq", seq, "through", last)
	return true
}

// damagedThrough is the last of the damaged records that follow seq without a gap.
func (m *mender) damagedThrough(seq record.Seq) record.Seq {
	for n := 0; n < mendRun && m.ctx.Err() == nil; n++ {
		rec, err := m.v.log.Load().Get(seq + 1)
		if err == nil {
			rec.Free()
		}
		var c *journal.CorruptError
		if !errors.As(err, &c) {
			break
		}
		seq++
	}
	return seq
}

// fetch asks one server for one record.
func (m *mender) fetch(l *link, seq record.Seq) bool {
	answer := make(chan *record.Record, 1)
	m.mu.Lock()
	m.waiting[seq] = answer
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		delete(m.waiting, seq)
		m.mu.Unlock()
	}()
	l.out.control(m.v.tag, &wire.Fetch{Seq: seq})
	timer := time.NewTimer(mendWait)
	defer timer.Stop()
	select {
	case rec := <-answer:
		return rec != nil && m.replace(l, rec)
	case <-timer.C:
	case <-l.done:
	case <-m.ctx.Done():
	}
	return false
}

func (m *mender) replace(l *link, rec *record.Record) bool {
	if err := m.v.log.Load().Replace(rec); err != nil {
		m.v.say(slog.LevelWarn, "another server's record does not mend ours", "peer", l.peer.id.String(), "seq", rec.Seq, "err", err)
		return false
	}
	m.mu.Lock()
	m.mended++
	m.mu.Unlock()
	return true
}

func (m *mender) count() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mended
}

// deliver takes an answer.
func (m *mender) deliver(f *wire.Fetched) {
	m.mu.Lock()
	answer := m.waiting[f.Seq]
	m.mu.Unlock()
	if answer == nil {
		return
	}
	var rec *record.Record
	if len(f.Records) == 1 && f.Records[0].Seq == f.Seq {
		rec = f.Records[0]
	}
	select {
	case answer <- rec:
	default:
	}
}

// lend answers another server's Fetch.
func (m *mender) lend(l *link, f *wire.Fetch) {
	out := &wire.Fetched{Seq: f.Seq}
	if mutant.Is("lend another record than the one asked for") {
		f = &wire.Fetch{Seq: f.Seq - 1}
	}
	if recs, err := m.v.records(nil, f.Seq, f.Seq, 1, 0); err == nil && recs[0].Seq == f.Seq {
		out.Records = recs
	} else if err != nil {
		m.v.logr.Debug("a record that another server asks for is not here", "peer", l.peer.id.String(), "seq", f.Seq, "err", fmt.Sprint(err))
	}
	l.out.control(m.v.tag, out)
}
