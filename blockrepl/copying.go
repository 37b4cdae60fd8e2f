package blockrepl

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/image"
	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/mutant"
	"github.com/blockrepl/blockrepl/journal/record"
	"golang.org/x/sync/errgroup"
)

// Comes from: an order to copy (resync.go). Does: walks the image in windows, in
// three stages beside each other:
//
//	hash   reads windows ahead of the answers, and hashes their blocks
//	walk   sends the hashes, and writes what comes back different
//	save   fsyncs what was written
//
// Goes to: the loop, as ResyncProgress, so that a restart goes on from there. The
// master's side is in answer.go.

// copying is one order being carried out.
type copying struct {
	order   replica.ResyncOrder
	gen     uint64 // of the journal that the copied image belongs to
	began   replica.Time
	ctx     context.Context
	cancel  context.CancelFunc
	answers chan *wire.ExtentData
	done    chan struct{} // closed when its goroutines have ended

	copied atomic.Int64 // everything below is copied
	sent   atomic.Int64 // bytes that differed

	room   chan struct{} // one for each window between its hashing and its end
	hashed chan *window  // closed by hash behind the last
	saves  chan progress // closed by walk behind the last

	// What follows is walk's.
	windows []*window  // under way, ascending by offset
	high    record.Seq // highest number that any byte so far can hold
	unsaved int64      // bytes copied since the last fsync was ordered
	plain   []byte     // scratch: the data of one chunk, decompressed
}

// window is one query under way.
type window struct {
	id       uint64
	off, len int64
	hashes   []uint64
	done     bool
	askedAt  replica.Time
}

// progress is what an fsync makes durable.
type progress struct {
	offset int64
	high   record.Seq
	done   bool
}

// run copies from order.From to the end, when it is this volume's turn.
func (s *syncer) run(c *copying) error {
	select {
	case s.v.s.copyings <- struct{}{}:
		defer func() { <-s.v.s.copyings }()
	case <-c.ctx.Done():
		return c.ctx.Err()
	}
	if s.v.img.Size() != c.order.Size {
		if err := s.v.resizeImage(c.order.Size); err != nil {
			return err
		}
	}
	c.room, c.hashed, c.saves = make(chan struct{}, resyncInFlight), make(chan *window), make(chan progress)
	g, ctx := errgroup.WithContext(c.ctx)
	g.Go(func() error { return s.hash(ctx, c) })
	g.Go(func() error { return s.walk(ctx, c) })
	g.Go(func() error { return s.save(ctx, c) })
	return g.Wait()
}

// hash prepares the queries, at most resyncInFlight ahead of what is copied.
func (s *syncer) hash(ctx context.Context, c *copying) error {
	defer close(c.hashed)
	for off := c.order.From; off < c.order.Size; {
		select {
		case c.room <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		w := &window{id: s.next.Add(1), off: off, len: min(resyncWindow, c.order.Size-off)}
		var err error
		if w.hashes, err = s.v.img.HashBlocks(nil, w.off, w.len, resyncBlock); err != nil {
			return err
		}
		off += w.len
		select {
		case c.hashed <- w:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// walk asks the master and writes its answers.
func (s *syncer) walk(ctx context.Context, c *copying) error {
	defer close(c.saves)
	again := time.NewTicker(resyncAgain / 4)
	defer again.Stop()
	for hashed := c.hashed; hashed != nil || len(c.windows) > 0; {
		select {
		case w, ok := <-hashed:
			if !ok {
				hashed = nil
				continue
			}
			c.windows = append(c.windows, w)
			s.send(c, w)
		case m := <-c.answers:
			if err := s.take(c, m); err != nil {
				return err
			}
			if err := c.handOver(ctx, false); err != nil {
				return err
			}
		case <-again.C:
			s.repeat(c)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return c.handOver(ctx, true)
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
	for i := range m.Chunks {
		ch, plain, err := changeOf(&m.Chunks[i], w.off, w.len, c.plain)
		if err != nil {
			return fmt.Errorf("answer %d: %w", m.ID, err)
		}
		c.plain = plain
		if err := s.v.img.Apply([]image.Change{ch}); err != nil {
			return err
		}
		c.sent.Add(ch.Len)
	}
	w.done, w.hashes = true, nil
	c.high = max(c.high, m.Applied)
	for len(c.windows) > 0 && c.windows[0].done {
		c.copied.Store(c.windows[0].off + c.windows[0].len)
		c.unsaved += c.windows[0].len
		c.windows = c.windows[1:]
		<-c.room
	}
	return nil
}

// within refuses a chunk that reaches out of the n bytes at off.
func within(k *wire.Chunk, off, n int64) error {
	if k.Length <= 0 || k.Length > n || k.Offset < off || k.Offset > off+n-k.Length {
		return fmt.Errorf("chunk of %d bytes at %d is not within %d bytes at %d", k.Length, k.Offset, n, off)
	}
	return nil
}

// changeOf checks a chunk and makes it a change of the image. Its data is the chunk's,
// or is decompressed into plain, which is given back.
func changeOf(k *wire.Chunk, off, n int64, plain []byte) (image.Change, []byte, error) {
	if err := within(k, off, n); err != nil {
		return image.Change{}, plain, err
	}
	if k.Zero {
		return image.Change{Kind: record.KindTrim, Off: k.Offset, Len: k.Length}, plain, nil
	}
	data := k.Data
	if k.Codec != record.CodecNone || int64(len(data)) != k.Length {
		var err error
		if plain, err = record.Unpack(plain[:0], k.Codec, k.Data, int(k.Length)); err != nil {
			return image.Change{}, plain, fmt.Errorf("chunk of %d bytes at %d: %w", k.Length, k.Offset, err)
		}
		data = plain
	}
	return image.Change{Kind: record.KindWrite, Off: k.Offset, Len: k.Length, Data: data}, plain, nil
}

// handOver gives what was copied to save, when that is enough or all of it. It waits
// for the fsync before only when twice as much is unsaved.
func (c *copying) handOver(ctx context.Context, all bool) error {
	p := progress{offset: c.copied.Load(), high: c.high, done: all}
	switch {
	case all, c.unsaved >= 2*resyncSync:
		select {
		case c.saves <- p:
		case <-ctx.Done():
			return ctx.Err()
		}
	case c.unsaved >= resyncSync:
		select {
		case c.saves <- p:
		default:
			return nil
		}
	default:
		return nil
	}
	c.unsaved = 0
	return nil
}

// save makes what was copied durable, and tells how far that is.
func (s *syncer) save(ctx context.Context, c *copying) error {
	for p := range c.saves {
		if !mutant.Is("note extents as copied without an fsync") {
			if err := s.v.img.Sync(); err != nil {
				return err
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if p.done {
			s.v.finding.resynced(s.v)
		}
		s.v.in.postIf(c.gen, replica.ResyncProgress{Order: c.order.ID, Offset: p.offset, Applied: p.high, Done: p.done})
	}
	return nil
}
