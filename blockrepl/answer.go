package blockrepl

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
	"golang.org/x/time/rate"
)

// Comes from: a peer's HashQuery, at the master. Does: compares the hashes with
// its own image and reads what differs. Goes to: the peer, as ExtentData.
//
// The image goes on changing meanwhile. Each byte of the answer is at least as new
// as the query, and none is newer than Applied, which is taken after the last
// look: the applier raises it before it changes the image.

// answerer answers one query after the other, in one goroutine that the first
// query starts.
type answerer struct {
	v       *Volume
	queue   chan question
	start   sync.Once
	wg      sync.WaitGroup
	ctx     context.Context
	cancel  context.CancelFunc
	limit   *rate.Limiter
	sent    atomic.Uint64 // bytes that differed, for the counters
	dropped atomic.Uint64 // queries beyond answersMax
}

type question struct {
	link *link
	msg  *wire.HashQuery
}

func (a *answerer) init(v *Volume) {
	a.v = v
	a.queue = make(chan question, answersMax)
	a.ctx, a.cancel = context.WithCancel(context.Background())
	a.limit = rate.NewLimiter(resyncBusy, 2*resyncWindow)
}

// ask takes a query from a link's reader; it does not wait.
func (a *answerer) ask(l *link, m *wire.HashQuery) {
	a.start.Do(func() { a.wg.Go(a.run) })
	select {
	case a.queue <- question{l, m}:
	default:
		a.dropped.Add(1)
	}
}

func (a *answerer) stop() {
	a.start.Do(func() {}) // a query that comes now starts nothing
	a.cancel()
	a.wg.Wait()
}

func (a *answerer) run() {
	for {
		select {
		case <-a.ctx.Done():
			return
		case q := <-a.queue:
			if err := a.answer(q.link, q.msg); err != nil && a.ctx.Err() == nil {
				a.v.logr.Warn("hash query not answered", "peer", q.link.peer.id.String(), "offset", q.msg.Offset, "err", err)
			}
		}
	}
}

func (a *answerer) answer(l *link, m *wire.HashQuery) error {
	v := a.v
	if m.Epoch.Server != v.s.opt.ID || *v.epoch.Load() != m.Epoch || !v.stale.Load() {
		return nil // of another mastership, or before the redo has ended; it comes again
	}
	if m.Block != resyncBlock || m.Length <= 0 || m.Length > resyncWindow || int64(len(m.Hashes)) != (m.Length+m.Block-1)/m.Block {
		l.close("hash query of an unknown shape")
		return nil
	}
	// Who asks has applied nothing that is not committed here. Waiting for that
	// makes the answer at least as new as the question.
	if err := v.app.reach(a.ctx, record.Seq(v.commit.Load())); err != nil {
		return err
	}
	out := &wire.ExtentData{Epoch: m.Epoch, ID: m.ID, Offset: m.Offset, Length: m.Length}
	if err := a.compare(m, out); err != nil {
		return err
	}
	out.Applied = record.Seq(v.app.applying.Load())
	if err := a.pause(m.Length); err != nil {
		return nil
	}
	l.out.control(v.tag, out)
	return nil
}

// pause lets clients' work go first: while they write, resync has a budget.
func (a *answerer) pause(n int64) error {
	if !a.v.busy() {
		return nil
	}
	return a.limit.WaitN(a.ctx, int(n))
}

// compare puts into out what differs. A volume that has become smaller meanwhile
// has zeroes behind its end: the record that made it so is still to come for the
// peer.
func (a *answerer) compare(m *wire.HashQuery, out *wire.ExtentData) error {
	size := a.v.img.Size()
	n := min(m.Length, max(0, size-m.Offset))
	hashes, err := a.v.img.HashBlocks(nil, m.Offset, n, m.Block)
	if err != nil {
		return err
	}
	if n < m.Length {
		at := n / m.Block * m.Block
		out.Chunks = append(out.Chunks, wire.Chunk{Offset: m.Offset + at, Length: m.Length - at, Zero: true})
		hashes = hashes[:at/m.Block]
	}
	for i := 0; i < len(hashes); i++ {
		if hashes[i] == m.Hashes[i] {
			continue
		}
		first := i
		for i+1 < len(hashes) && hashes[i+1] != m.Hashes[i+1] && int64(i+1-first) < chunkBytes/m.Block {
			i++
		}
		off := m.Offset + int64(first)*m.Block
		end := min(m.Offset+int64(i+1)*m.Block, m.Offset+n)
		k, err := a.chunk(off, end-off)
		if err != nil {
			return err
		}
		out.Chunks = append(out.Chunks, k)
	}
	return nil
}

// chunk reads one extent that differs.
func (a *answerer) chunk(off, n int64) (wire.Chunk, error) {
	k := wire.Chunk{Offset: off, Length: n}
	data := record.Alloc(int(n))
	if err := a.v.img.ReadAt(data, off); err != nil {
		record.Free(data)
		return k, err
	}
	a.sent.Add(uint64(n))
	if record.IsZero(data) {
		record.Free(data)
		k.Zero = true
		return k, nil
	}
	k.Codec, k.Data = record.Pack(data)
	if k.Codec != record.CodecNone {
		record.Free(data)
	}
	return k, nil
}
