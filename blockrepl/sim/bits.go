package sim

import (
	"bufio"
	"bytes"
	"io"
	"sync"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: net.go, with a frame that is about to leave. Does: turns some of
// them into the very bytes that would be on the wire and back, so that nothing is
// shared between two servers and nothing is said that a frame cannot carry; flips
// bits of others, which the receiver must find. Goes to: the receiver.

// damaged is what is left of a frame whose bytes were changed on the way: it ends
// the link.
type damaged struct {
	wire.Message
	err error
}

// flipsMax is how many bits of a frame are flipped at most. CRC-32C finds any
// three of a frame's bits (Hamming distance 4 beyond any length that is allowed).
const flipsMax = 3

// readers are as large as a link's, so that wire.NewReader takes them as they are: to
// make one for each frame was a third of all that schedules allocate.
var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 256<<10) }}

// carry gives what arrives of msg: mostly msg itself.
func (s *Sim) carry(n *node, msg wire.Message) wire.Message {
	r, p := s.dice.bits, &s.prof
	flip := chance(r, p.corrupt) && !s.calm
	if !flip && !chance(r, p.encode) {
		return msg
	}
	w := &s.writer
	w.Reset()
	if err := w.Add(wire.Tag("vol"), msg); err != nil {
		s.fail("every message has a frame", "%v sends %T: %v", n.id, msg, err)
		return msg
	}
	s.frame = w.AppendTo(s.frame[:0])
	if flip {
		s.hit(fCorrupt, n)
		for range 1 + r.IntN(flipsMax) {
			bit := r.IntN(8 * len(s.frame))
			s.frame[bit/8] ^= 1 << (bit % 8)
		}
	}
	// Behind a frame whose length was changed there would be the next one.
	in := readers.Get().(*bufio.Reader)
	in.Reset(io.MultiReader(bytes.NewReader(s.frame), s.noise()))
	f, err := wire.NewReader(in).Next()
	readers.Put(in)
	switch {
	case flip && err == nil && bytes.Equal(s.frame, w.AppendTo(nil)):
		return f.Message // two flips of one bit
	case flip && err == nil:
		s.fail("bad bytes are refused", "a damaged %T from %v is taken for %+v", msg, n.id, f.Message)
	case flip:
		return damaged{msg, err}
	case err != nil:
		s.fail("every frame has a message", "%v sends %T: %v", n.id, msg, err)
	}
	return f.Message
}

// noise is what a reader that waits for too many bytes finds.
func (s *Sim) noise() io.Reader {
	return io.LimitReader(zeroes{}, 64)
}

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// broken ends a link over which a damaged frame came.
func (s *Sim) broken(n *node, l *link, from record.ServerID, d damaged) {
	s.tell(n.i, "a damaged frame from %v ends the link: %v", from, d.err)
	s.closeSession(n, l.session)
	n.post(replica.LinkDown{Peer: from, Session: l.session, Reason: d.err.Error()})
}
