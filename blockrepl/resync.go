package blockrepl

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/blockrepl/blockrepl/blockrepl/image"
	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
)

// Comes from: Effects.Resync, on a server whose image must be replaced, and the
// links, as answers. Does: begins and ends the copying, and hands it the answers;
// those to verify's queries go to verify. Goes to: copying.go.

// syncer runs at most one copying at a time.
type syncer struct {
	v      *Volume
	ctx    context.Context
	cancel context.CancelFunc
	next   atomic.Uint64 // ids of queries, never used again

	mu  sync.Mutex
	cur *copying // nil when none was ordered yet
	// waits are the queries of verify, by id; each channel has capacity 1.
	waits map[uint64]chan *wire.ExtentData
}

func (s *syncer) init(v *Volume) {
	s.v = v
	s.ctx, s.cancel = context.WithCancel(context.Background())
}

// order carries out the effect. It does not wait: a new copying waits itself for
// the end of the one before.
func (v *Volume) order(o *replica.ResyncOrder) {
	s := &v.sync
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.cur
	if old != nil {
		old.cancel()
	}
	if o.Stop || s.ctx.Err() != nil {
		return
	}
	v.mixed.Add(1)
	c := &copying{order: *o, gen: v.in.generation(), began: v.s.opt.Clock(), answers: make(chan *wire.ExtentData, 2*resyncInFlight), done: make(chan struct{}), high: o.High}
	c.ctx, c.cancel = context.WithCancel(s.ctx)
	c.copied.Store(o.From)
	s.cur = c
	go func() {
		defer close(c.done)
		defer c.cancel()
		if old != nil {
			<-old.done
		}
		if err := s.run(c); err != nil && c.ctx.Err() == nil {
			s.failed(c, err)
		}
	}()
}

// failed tells a failing image from a failing answer.
func (s *syncer) failed(c *copying, err error) {
	var e *image.Error
	if errors.As(err, &e) {
		s.v.fail("image", fmt.Errorf("resync: %w", err))
		return
	}
	s.v.logr.Warn("resync interrupted", "from", c.order.To.String(), "err", err)
	s.v.s.links.close(s.v, c.order.To, c.order.Session, "resync: "+err.Error())
}

func (s *syncer) stop() {
	s.cancel()
	s.mu.Lock()
	cur := s.cur
	s.mu.Unlock()
	if cur != nil {
		<-cur.done
	}
}

// deliver takes an answer of the master; one that nobody waits for is dropped.
func (s *syncer) deliver(session uint64, m *wire.ExtentData) {
	s.mu.Lock()
	c, wait := s.cur, s.waits[m.ID]
	s.mu.Unlock()
	if wait != nil {
		select {
		case wait <- m:
		default: // answered twice
		}
		return
	}
	if c == nil || c.order.Session != session || c.order.Epoch != m.Epoch {
		return
	}
	select {
	case c.answers <- m:
	case <-c.ctx.Done():
	}
}

// expect gives an id for a query, and where its answer will come.
func (s *syncer) expect() (uint64, <-chan *wire.ExtentData) {
	id, ch := s.next.Add(1), make(chan *wire.ExtentData, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waits == nil {
		s.waits = map[uint64]chan *wire.ExtentData{}
	}
	s.waits[id] = ch
	return id, ch
}

func (s *syncer) unexpect(id uint64) {
	s.mu.Lock()
	delete(s.waits, id)
	s.mu.Unlock()
}

// status is the copying for GET /v1/status, nil when none runs.
func (s *syncer) status() *ResyncStatus {
	s.mu.Lock()
	c := s.cur
	s.mu.Unlock()
	if c == nil || c.ctx.Err() != nil {
		return nil
	}
	st := &ResyncStatus{Source: c.order.To.String(), DoneBytes: c.copied.Load(), TotalBytes: c.order.Size, SentBytes: c.sent.Load()}
	took := s.v.s.opt.Clock().Sub(c.began).Seconds()
	if done := st.DoneBytes - c.order.From; done > 0 {
		st.LeftSeconds = took / float64(done) * float64(st.TotalBytes-st.DoneBytes)
	}
	return st
}
