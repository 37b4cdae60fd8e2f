package blockrepl

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal"
	"github.com/blockrepl/blockrepl/journal/record"
	"golang.org/x/time/rate"
)

// Comes from: the volumes' loops, as control messages (Sends) and as cursors over
// records (Streams). Does: packs both into frames, control first, then one frame
// of one volume after the other in turn; one writev each time it wakes.
// Goes to: the network, with the records' bytes as they were encoded once.
//
// Back-pressure: a slow peer's cursors stay where they are, since their records
// wait in the ring or the journal and cost nothing. Control messages are bounded;
// beyond that the link is closed.

// outbox is what a link has to send.
type outbox struct {
	overflow func(reason string) // closes the link; not called under mu

	mu      sync.Mutex
	wake    sync.Cond
	closed  bool
	queue   []outgoing
	bytes   int64
	cursors map[*Volume]*cursor
	ready   []*cursor // with records to send, each once, in turn
}

// outgoing is one control message.
type outgoing struct {
	tag   uint64
	msg   wire.Message
	bytes int64
}

// cursor is how far a volume's records went to this peer.
type cursor struct {
	v     *Volume
	epoch record.Epoch
	next  record.Seq // the first one not sent
	end   record.Seq
	ready bool        // Invariant: true iff it is in outbox.ready
	turn  *time.Timer // ends its wait for the limit of kept records; nil: it does not wait
	paid  bool        // its next frame of kept records has waited for the limit
}

func (o *outbox) init(overflow func(string)) {
	o.overflow = overflow
	o.wake.L = &o.mu
	o.cursors = map[*Volume]*cursor{}
}

// control appends a message; it never waits.
func (o *outbox) control(tag uint64, msg wire.Message) {
	n := messageBytes(msg)
	o.mu.Lock()
	full := len(o.queue) >= controlMax || o.bytes+n > controlBytesMax
	if !full && !o.closed {
		o.queue = append(o.queue, outgoing{tag, msg, n})
		o.bytes += n
		o.wake.Signal()
	}
	o.mu.Unlock()
	if full {
		o.overflow(fmt.Sprintf("%d messages wait for the peer, which does not read", controlMax))
	}
}

// messageBytes is about what a message takes, in bytes.
func messageBytes(msg wire.Message) int64 {
	n := int64(256)
	switch m := msg.(type) {
	case *wire.Forward:
		n += int64(recordBytes(m.Records))
	case *wire.Fetched:
		n += int64(recordBytes(m.Records))
	case *wire.ExtentData:
		for i := range m.Chunks {
			n += int64(len(m.Chunks[i].Data)) + 64
		}
	case *wire.HashQuery:
		n += int64(8 * len(m.Hashes))
	}
	return n
}

// stream moves a volume's cursor.
func (o *outbox) stream(v *Volume, st *replica.Stream) {
	o.mu.Lock()
	defer o.mu.Unlock()
	c := o.cursors[v]
	if st.From != 0 {
		if c == nil {
			c = &cursor{v: v}
			o.cursors[v] = c
		}
		c.next, c.turn, c.paid = st.From, nil, false
	}
	if c == nil || o.closed {
		return
	}
	c.epoch, c.end = st.Epoch, st.End
	o.queueLocked(c)
}

// queueLocked gives a cursor its turn, if it has something to send and does not wait.
func (o *outbox) queueLocked(c *cursor) {
	if c.ready || c.turn != nil || c.next > c.end || o.closed {
		return
	}
	c.ready = true
	o.ready = append(o.ready, c)
	o.wake.Signal()
}

// unstream forgets a volume's cursor: its numbers are about to mean other records.
func (o *outbox) unstream(v *Volume) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if c := o.cursors[v]; c != nil {
		c.end = 0
		delete(o.cursors, v)
	}
}

// later lets a cursor wait for its turn at the limit of kept records, whatever is
// numbered meanwhile. One that was moved behind at does not wait.
func (o *outbox) later(c *cursor, at cursor, d time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if c.next != at.next || c.epoch != at.epoch {
		o.queueLocked(c)
		return
	}
	var turn *time.Timer
	turn = time.AfterFunc(d, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		if c.turn == turn {
			c.turn, c.paid = nil, true
			o.queueLocked(c)
		}
	})
	c.turn = turn
}

// restream queues a volume's cursor again after missing records have come.
func (o *outbox) restream(v *Volume) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if c := o.cursors[v]; c != nil {
		o.queueLocked(c)
	}
}

func (o *outbox) close() {
	o.mu.Lock()
	o.closed = true
	o.wake.Broadcast()
	o.mu.Unlock()
}

// take waits for something to send: control messages, and a copy of the cursor
// whose turn it is.
func (o *outbox) take(dst []outgoing) (queue []outgoing, c *cursor, at cursor, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for !o.closed && len(o.queue) == 0 && len(o.ready) == 0 {
		o.wake.Wait()
	}
	if o.closed && len(o.queue) == 0 {
		return dst, nil, cursor{}, false
	}
	n, bytes := 0, int64(0)
	for n < len(o.queue) && (n == 0 || bytes+o.queue[n].bytes <= 4*frameBytes) {
		bytes += o.queue[n].bytes
		n++
	}
	dst = append(dst, o.queue[:n]...)
	o.bytes -= bytes
	rest := copy(o.queue, o.queue[n:])
	clear(o.queue[rest:])
	o.queue = o.queue[:rest]
	if len(o.ready) > 0 && !o.closed {
		c = o.ready[0]
		o.ready = o.ready[:copy(o.ready, o.ready[1:])]
		c.ready = false
		at = *c
	}
	return dst, c, at, true
}

// sent moves a cursor behind what went out, unless it was moved meanwhile, and
// queues it again when there is more.
func (o *outbox) sent(c *cursor, at cursor, next record.Seq) {
	o.mu.Lock()
	defer o.mu.Unlock()
	c.paid = false
	if c.next == at.next && c.epoch == at.epoch {
		c.next = next
	}
	o.queueLocked(c)
}

// runWriter sends until the link is closed. What it holds of records is one frame.
func (l *link) runWriter() {
	var (
		w     wire.Writer
		queue []outgoing
		recs  []*record.Record
		flat  []byte
	)
	for {
		var c *cursor
		var at cursor
		var ok bool
		clear(queue)
		queue, c, at, ok = l.out.take(queue[:0])
		if !ok {
			return
		}
		w.Reset()
		for _, m := range queue {
			if err := w.Add(m.tag, m.msg); err != nil {
				l.links.s.opt.Logger.Error("message not sent", "peer", l.peer.id.String(), "err", err)
			}
		}
		if c != nil {
			var err error
			clear(recs)
			if recs, err = l.addFrame(&w, c, at, recs[:0]); err != nil {
				l.close(fmt.Sprintf("volume %q: %v", c.v.name, err))
				return
			}
		}
		if w.Len() == 0 {
			continue
		}
		var err error
		if flat, err = l.write(&w, flat); err != nil {
			l.close(err.Error())
			return
		}
	}
}

// addFrame adds one Append of a cursor's volume.
func (l *link) addFrame(w *wire.Writer, c *cursor, at cursor, recs []*record.Record) ([]*record.Record, error) {
	if at.next > at.end || at.turn != nil {
		return recs, nil
	}
	if !at.paid {
		if d := at.v.catchUpDelay(at.next); d > 0 {
			l.out.later(c, at, d)
			return recs, nil
		}
	}
	recs, err := at.v.records(recs, at.next, at.end, frameRecords, frameBytes)
	if errors.Is(err, journal.ErrNotYet) {
		return recs, nil // the journal waits for space; restream goes on
	}
	if errors.Is(err, journal.ErrTrimmed) {
		return recs, fmt.Errorf("read records from %d to send them: %w", at.next, err)
	}
	if err != nil {
		at.v.mender.begin(at.next, fmt.Errorf("read records from %d to send them: %w", at.next, err))
		return recs, nil // restream goes on, or the state machine ends this stream
	}
	commit, floor := record.Seq(at.v.commit.Load()), record.Seq(at.v.floor.Load())
	// The loop publishes a new epoch before its commit number and before it touches
	// the journal: as long as the epoch is the cursor's, so are commit and records.
	if *at.v.epoch.Load() != at.epoch {
		l.out.unstream(at.v)
		return recs, nil
	}
	if err := w.Add(at.v.tag, &wire.Append{Epoch: at.epoch, Commit: commit, Floor: floor, Records: recs}); err != nil {
		return recs, err
	}
	l.out.sent(c, at, recs[len(recs)-1].Seq+1)
	return recs, nil
}

// catchUpDelay is how long the sending of kept records from next on must wait, so
// that clients' work goes first. What is in the ring is no catching up, nor what is not
// committed: clients wait for it.
func (v *Volume) catchUpDelay(next record.Seq) time.Duration {
	if v.ring.has(next) || next > record.Seq(v.commit.Load()) || !v.busy() {
		return 0
	}
	return v.catchUp.delay(time.Now())
}

// catchUpLimit is what kept records may be sent of a volume while its clients write:
// catchUpBusy, and twice what the clients write, since who gains nothing on them never
// comes to the end.
type catchUpLimit struct {
	steady *rate.Limiter // for all servers that catch up together

	mu   sync.Mutex
	more int64 // bytes beside it; at most catchUpMore
}

func newCatchUpLimit() catchUpLimit {
	return catchUpLimit{steady: rate.NewLimiter(catchUpBusy, 4*frameBytes)}
}

// wrote counts what clients wrote, in bytes.
func (l *catchUpLimit) wrote(n int64) {
	l.mu.Lock()
	l.more = min(l.more+2*n, catchUpMore)
	l.mu.Unlock()
}

// delay takes one frame's part of it, and gives how long that has to wait.
func (l *catchUpLimit) delay(now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.more >= frameBytes {
		l.more -= frameBytes
		return 0
	}
	return l.steady.ReserveN(now, frameBytes).DelayFrom(now)
}

// busy reports whether clients of any server have written lately.
func (v *Volume) busy() bool {
	at := replica.Time(v.busyAt.Load())
	return at != 0 && v.s.opt.Clock().Sub(at) < time.Second
}

// write sends what w collected, in one system call where the connection has
// writev. flat is scratch for the others.
func (l *link) write(w *wire.Writer, flat []byte) ([]byte, error) {
	if err := l.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return flat, fmt.Errorf("write to server %s: %w", l.peer.id, err)
	}
	var err error
	if tcp, ok := l.conn.(*net.TCPConn); ok {
		bufs := net.Buffers(w.Buffers())
		_, err = bufs.WriteTo(tcp)
	} else {
		flat = w.AppendTo(flat[:0])
		_, err = l.conn.Write(flat)
	}
	if err != nil {
		return flat, fmt.Errorf("write to server %s: %w", l.peer.id, err)
	}
	l.spoke.Store(int64(l.links.s.opt.Clock()))
	return flat, nil
}
