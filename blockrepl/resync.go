package blockrepl

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/image"
	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: Effects.Resync, on a server whose image must be replaced.
// Does: walks the image in windows, sends the hashes of their blocks to the
// master and writes what comes back different; fsyncs now and then, so that a
// restart goes on from there.
// Goes to: the loop, as ResyncProgress. The master's side is in answer.go.

// syncer runs at most one copying at a time. One goroutine while it does.
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

// copying is one order being carried out.
type copying struct {
	order   replica.ResyncOrder
	gen     uint64 // of the journal that the copied image belongs to
	began   replica.Time
	ctx     context.Context
	cancel  context.CancelFunc
	answers chan *wire.ExtentData
	done    chan struct{} // closed when its goroutine has ended

	high   record.Seq // highest number that any byte so far can hold
	copied atomic.Int64
	sent   atomic.Int64 // bytes that differed

	// The walk: windows under way, ascending by offset.
	windows []*window
	ask     int64  // where the next window begins
	unsaved int64  // bytes copied since the last fsync
	plain   []byte // scratch: one answer's data, decompressed
}

// window is one query under way.
type window struct {
	id       uint64
	off, len int64
	hashes   []uint64
	done     bool
	askedAt  replica.Time
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
	c := &copying{order: *o, gen: v.in.generation(), began: v.s.opt.Clock(), answers: make(chan *wire.ExtentData, 2*resyncInFlight), done: make(chan struct{}), high: o.High, ask: o.From}
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

// run copies from order.From to the end.
func (s *syncer) run(c *copying) error {
	if s.v.img.Size() != c.order.Size {
		if err := s.v.img.Resize(c.order.Size); err != nil {
			return err
		}
	}
	again := time.NewTicker(resyncAgain / 4)
	defer again.Stop()
	for {
		for len(c.windows) < resyncInFlight && c.ask < c.order.Size {
			if err := s.query(c); err != nil {
				return err
			}
		}
		if len(c.windows) == 0 {
			return s.save(c, true)
		}
		select {
		case m := <-c.answers:
			if err := s.take(c, m); err != nil {
				return err
			}
		case <-again.C:
			s.repeat(c)
		case <-c.ctx.Done():
			return c.ctx.Err()
		}
		if c.unsaved >= resyncSync {
			if err := s.save(c, false); err != nil {
				return err
			}
		}
	}
}

// query hashes the next window and asks the master to compare.
func (s *syncer) query(c *copying) error {
	w := &window{id: s.next.Add(1), off: c.ask, len: min(resyncWindow, c.order.Size-c.ask)}
	var err error
	if w.hashes, err = s.v.img.HashBlocks(nil, w.off, w.len, resyncBlock); err != nil {
		return err
	}
	c.ask += w.len
	c.windows = append(c.windows, w)
	s.send(c, w)
	return nil
}

func (s *syncer) send(c *copying, w *window) {
	w.askedAt = s.v.s.opt.Clock()
	s.v.s.links.send(c.order.To, c.order.Session, s.v.tag, &wire.HashQuery{
		Epoch: c.order.Epoch, ID: w.id, Offset: w.off, Block: resyncBlock, Length: w.len, Hashes: w.hashes,
	})
}

// repeat asks again what has not been answered for long: the master drops queries
// when it has too many.
func (s *syncer) repeat(c *copying) {
	now := s.v.s.opt.Clock()
	for _, w := range c.windows {
		if !w.done && now.Sub(w.askedAt) >= resyncAgain {
			s.send(c, w)
		}
	}
}

// take writes what an answer brings.
func (s *syncer) take(c *copying, m *wire.ExtentData) error {
	var w *window
	for _, x := range c.windows {
		if x.id == m.ID && !x.done {
			w = x
		}
	}
	if w == nil {
		return nil // answered twice
	}
	if m.Offset != w.off || m.Length != w.len {
		return fmt.Errorf("answer %d covers %d bytes at %d, asked were %d at %d", m.ID, m.Length, m.Offset, w.len, w.off)
	}
	changes := make([]image.Change, 0, len(m.Chunks))
	if c.plain == nil {
		c.plain = make([]byte, 0, resyncWindow)
	}
	c.plain = c.plain[:0]
	for i := range m.Chunks {
		var ch image.Change
		var err error
		if ch, c.plain, err = changeOf(&m.Chunks[i], w.off, w.len, c.plain); err != nil {
			return fmt.Errorf("answer %d: %w", m.ID, err)
		}
		changes = append(changes, ch)
		c.sent.Add(ch.Len)
	}
	if err := s.v.img.Apply(changes); err != nil {
		return err
	}
	w.done, w.hashes = true, nil
	c.high = max(c.high, m.Applied)
	for len(c.windows) > 0 && c.windows[0].done {
		c.copied.Store(c.windows[0].off + c.windows[0].len)
		c.unsaved += c.windows[0].len
		c.windows = c.windows[1:]
	}
	return nil
}

// changeOf checks a chunk and makes it a change of the image. Its data is that of the
// chunk, or lies behind plain, which is given back; a growing plain leaves earlier data
// where it is.
func changeOf(k *wire.Chunk, off, n int64, plain []byte) (image.Change, []byte, error) {
	if k.Length <= 0 || k.Length > n || k.Offset < off || k.Offset > off+n-k.Length {
		return image.Change{}, plain, fmt.Errorf("chunk of %d bytes at %d is not within %d bytes at %d", k.Length, k.Offset, n, off)
	}
	if k.Zero {
		return image.Change{Kind: record.KindTrim, Off: k.Offset, Len: k.Length}, plain, nil
	}
	data := k.Data
	if k.Codec != record.CodecNone || int64(len(data)) != k.Length {
		from := len(plain)
		out, err := record.Unpack(plain, k.Codec, k.Data, int(k.Length))
		if err != nil {
			return image.Change{}, plain, fmt.Errorf("chunk of %d bytes at %d: %w", k.Length, k.Offset, err)
		}
		plain, data = out, out[from:]
	}
	return image.Change{Kind: record.KindWrite, Off: k.Offset, Len: k.Length, Data: data}, plain, nil
}

// save makes what was copied durable, and tells how far it is.
func (s *syncer) save(c *copying, done bool) error {
	if err := s.v.img.Sync(); err != nil {
		return err
	}
	c.unsaved = 0
	if c.ctx.Err() != nil {
		return c.ctx.Err()
	}
	s.v.in.postIf(c.gen, replica.ResyncProgress{Order: c.order.ID, Offset: c.copied.Load(), Applied: c.high, Done: done})
	return nil
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
