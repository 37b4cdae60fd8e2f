package blockrepl

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/blockrepl/blockrepl/blockrepl/image"
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
	a.limit = rate.NewLimiter(resyncBusy, queryMax)
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
	if !a.may(m) {
		return nil // it comes again
	}
	if m.Block != resyncBlock || m.Length <= 0 || m.Length > queryMax || int64(len(m.Hashes)) != (m.Length+m.Block-1)/m.Block {
		l.close("hash query of an unknown shape")
		return nil
	}
	// Who asks has applied nothing that is not committed here. Waiting for that
	// makes the answer at least as new as the question.
	if err := v.app.reach(a.ctx, record.Seq(v.commit.Load())); err != nil {
		return err
	}
	out := &wire.ExtentData{Epoch: m.Epoch, ID: m.ID, Offset: m.Offset, Length: m.Length}
	read, err := a.compare(m, out)
	if err != nil {
		v.blind.stop(v, l.peer.id, m.Offset, a.narrow(err))
		return nil // it comes again
	}
	v.blind.pass(l.peer.id, m.Offset)
	out.Applied = record.Seq(v.app.applying.Load())
	if !a.may(m) {
		return nil // the loop publishes before the image is touched: what was read may be another past's
	}
	if err := a.pause(read); err != nil {
		return nil
	}
	l.out.control(v.tag, out)
	return nil
}

// narrow finds the first block that cannot be read in the extent where err says that
// reading failed: that much is to be written over by whoever gives it up.
func (a *answerer) narrow(err error) error {
	var e *image.Error
	if !errors.As(err, &e) {
		return err
	}
	block := make([]byte, narrowBlock)
	for off := e.Extent.Lo; off < e.Extent.Hi; off += narrowBlock {
		if err := a.v.img.ReadAt(block[:min(narrowBlock, e.Extent.Hi-off)], off); err != nil {
			return err
		}
	}
	return err // meanwhile all of it can be read
}

// may reports whether the image is what m asks for: of this server's present
// mastership, and not before the redo has ended.
func (a *answerer) may(m *wire.HashQuery) bool {
	return a.v.img != nil && m.Epoch.Server == a.v.s.opt.ID && *a.v.epoch.Load() == m.Epoch && a.v.stale.Load()
}

// pause lets clients' work go first: while they write, resync has a budget.
func (a *answerer) pause(n int64) error {
	if !a.v.busy() {
		return nil
	}
	return a.limit.WaitN(a.ctx, int(n))
}

// compare puts into out what differs, and gives how many bytes it had to read. A
// volume that has become smaller meanwhile has zeroes behind its end: the record that
// made it so is still to come for the peer.
func (a *answerer) compare(m *wire.HashQuery, out *wire.ExtentData) (read int64, err error) {
	end := m.Offset + min(m.Length, max(0, a.v.img.Size()-m.Offset))
	for off := m.Offset; off < end; off += chunkBytes {
		n, err := a.piece(m, out, off, min(chunkBytes, end-off))
		if err != nil {
			return read, err
		}
		read += n
	}
	if end < m.Offset+m.Length {
		out.Chunks = append(out.Chunks, wire.Chunk{Offset: end, Length: m.Offset + m.Length - end, Zero: true})
	}
	return read, nil
}

// piece compares n bytes at off. They are read once: what was hashed is what is sent.
func (a *answerer) piece(m *wire.HashQuery, out *wire.ExtentData, off, n int64) (read int64, err error) {
	data, taken := record.Alloc(int(n)), false
	defer func() {
		if !taken {
			record.Free(data)
		}
	}()
	hole, err := a.v.img.ReadUnlessHole(data, off)
	if err != nil {
		return 0, err
	}
	first := len(out.Chunks)
	for at := int64(0); at < n; at += m.Block {
		length := min(m.Block, n-at)
		switch compareBlock(data[at:at+length], hole, m.Hashes[(off-m.Offset+at)/m.Block]) {
		case differs:
			a.sent.Add(uint64(length))
			join(out, first, off+at, length, false)
		case isZero:
			a.sent.Add(uint64(length))
			join(out, 0, off+at, length, true)
		}
	}
	if hole {
		return 0, nil
	}
	for i := first; i < len(out.Chunks); i++ {
		k := &out.Chunks[i]
		if k.Zero {
			continue
		}
		k.Codec, k.Data = record.Pack(data[k.Offset-off:][:k.Length])
		taken = taken || k.Codec == record.CodecNone
	}
	return n, nil
}

// join lengthens the last chunk, if it is one of those from first on and of the same
// kind, or begins one.
func join(out *wire.ExtentData, first int, off, n int64, zero bool) {
	if last := len(out.Chunks) - 1; last >= first {
		if k := &out.Chunks[last]; k.Zero == zero && k.Offset+k.Length == off {
			k.Length += n
			return
		}
	}
	out.Chunks = append(out.Chunks, wire.Chunk{Offset: off, Length: n, Zero: zero})
}

// zeroHash is the hash of a whole block of zeroes.
var zeroHash = image.Hash(make([]byte, resyncBlock))

// comparison is the outcome of one block.
type comparison int

const (
	same comparison = iota
	differs
	isZero // and differs
)

// compareBlock compares a block of the image with the peer's hash of it. What p holds
// of a hole does not count.
func compareBlock(p []byte, hole bool, theirs uint64) comparison {
	whole := len(p) == resyncBlock
	if hole && !whole {
		clear(p)
	}
	zero := hole || record.IsZero(p)
	var equal bool
	if whole && (zero || theirs == zeroHash) {
		equal = zero && theirs == zeroHash // no need to hash: a new server's blank disk
	} else {
		equal = image.Hash(p) == theirs
	}
	switch {
	case equal:
		return same
	case zero:
		return isZero
	default:
		return differs
	}
}
