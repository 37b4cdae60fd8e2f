package blockrepl

import (
	"slices"
	"sync"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: clients' goroutines, link readers, committer, applier, checkpointer,
// timers and the operator's commands.
// Does: gathers what happened to one volume while its loop was busy.
// Goes to: the volume's loop, which takes everything that waits at once.
//
// Bounds: operations by opsBytesMax, reads by readsMax, peers' messages by
// inboxBytesMax (each where it is posted, by waiting, or by dropping); what disk goroutines say
// is one number each; the rest is a few events a link, client or command.
type inbox struct {
	wake chan struct{} // capacity 1: something was posted

	mu     sync.Mutex
	room   sync.Cond // signalled when peers' messages were taken, and at close
	closed bool
	now    tidings
	spare  tidings // the arrays of the last round, for reuse
	// gen counts the resets of the journal: what applier and checkpointer did
	// before the last one speaks of another journal and is dropped.
	gen uint64
	// rounds counts what the loop took; stuck: it has not for inboxPatience while
	// there was no room.
	rounds uint64
	stuck  bool
}

// tidings is one round's worth.
type tidings struct {
	events  []replica.Event
	ops     []*op
	reads   []*readWait
	calls   []func()
	recv    int64 // bytes of peers' messages in events
	stored  uint64
	applied record.Seq
	missed  []*record.Record // with applied
	synced  record.Seq
	image   []replica.Sample // of the image, with synced
}

func newInbox() *inbox {
	in := &inbox{wake: make(chan struct{}, 1)}
	in.room.L = &in.mu
	return in
}

func (in *inbox) notify() {
	select {
	case in.wake <- struct{}{}:
	default:
	}
}

// take gives everything that waits. It is valid until the next take.
func (in *inbox) take() *tidings {
	in.mu.Lock()
	in.now, in.spare = in.spare, in.now
	t := &in.now
	clear(t.events)
	clear(t.ops)
	clear(t.reads)
	clear(t.calls)
	*t = tidings{events: t.events[:0], ops: t.ops[:0], reads: t.reads[:0], calls: t.calls[:0]}
	in.rounds++
	in.stuck = false
	if in.spare.recv > 0 {
		in.room.Broadcast()
	}
	in.mu.Unlock()
	return &in.spare
}

// post adds an event. It never waits.
func (in *inbox) post(ev replica.Event) {
	in.mu.Lock()
	if !in.closed {
		in.now.events = append(in.now.events, ev)
	}
	in.mu.Unlock()
	in.notify()
}

// postIf adds an event that speaks of the journal's generation gen.
func (in *inbox) postIf(gen uint64, ev replica.Event) {
	in.mu.Lock()
	if !in.closed && gen == in.gen {
		in.now.events = append(in.now.events, ev)
	}
	in.mu.Unlock()
	in.notify()
}

// receive adds a peer's message of n bytes. While too much is held it waits, so that
// the peer is slowed down, but not for a loop that hangs: other volumes' messages
// come behind it over the same link. Then records of the stream are dropped, which
// a slave asks for again; the rest is bounded by those who sent it.
func (in *inbox) receive(ev replica.Received, n int) {
	in.mu.Lock()
	defer in.notify()
	defer in.mu.Unlock()
	for in.now.recv > inboxBytesMax && !in.closed && !in.stuck {
		in.awaitRoomLocked()
	}
	if _, records := ev.Msg.(*wire.Append); in.closed || records && in.now.recv > inboxBytesMax {
		return
	}
	in.now.events = append(in.now.events, ev)
	in.now.recv += int64(n)
}

// awaitRoomLocked waits until the loop has taken what is there, or has not for
// inboxPatience.
func (in *inbox) awaitRoomLocked() {
	rounds := in.rounds
	late := time.AfterFunc(inboxPatience, func() {
		in.mu.Lock()
		defer in.mu.Unlock()
		if in.rounds == rounds {
			in.stuck = true
			in.room.Broadcast()
		}
	})
	in.room.Wait()
	late.Stop()
}

// submit adds a client's operation; false after close.
func (in *inbox) submit(o *op) bool {
	in.mu.Lock()
	ok := !in.closed
	if ok {
		in.now.ops = append(in.now.ops, o)
	}
	in.mu.Unlock()
	in.notify()
	return ok
}

// withdraw drops the operations of a connection that has ended: its share of
// opsBytesMax is given to others.
func (in *inbox) withdraw(c *Conn) {
	in.mu.Lock()
	in.now.ops = slices.DeleteFunc(in.now.ops, func(o *op) bool { return o.conn == c })
	in.mu.Unlock()
}

// read adds a read that waits for its turn; false after close.
func (in *inbox) read(w *readWait) bool {
	in.mu.Lock()
	ok := !in.closed
	if ok {
		in.now.reads = append(in.now.reads, w)
	}
	in.mu.Unlock()
	in.notify()
	return ok
}

// call has the loop run f between two rounds; false after close, then f never runs.
func (in *inbox) call(f func()) bool {
	in.mu.Lock()
	ok := !in.closed
	if ok {
		in.now.calls = append(in.now.calls, f)
	}
	in.mu.Unlock()
	in.notify()
	return ok
}

// stored, applied and synced keep the highest number only.

func (in *inbox) stored(id uint64) {
	in.mu.Lock()
	in.now.stored = max(in.now.stored, id)
	in.mu.Unlock()
	in.notify()
}

func (in *inbox) applied(gen uint64, seq record.Seq, missed []*record.Record) {
	in.mu.Lock()
	if gen == in.gen {
		in.now.applied = max(in.now.applied, seq)
		in.now.missed = append(in.now.missed, missed...)
	}
	in.mu.Unlock()
	in.notify()
}

func (in *inbox) synced(gen uint64, seq record.Seq, image []replica.Sample) {
	in.mu.Lock()
	if gen == in.gen && seq >= in.now.synced {
		in.now.synced, in.now.image = seq, image
	}
	in.mu.Unlock()
	in.notify()
}

// generation is to be read before work whose end is told to applied or synced.
func (in *inbox) generation() uint64 {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.gen
}

// reset begins a new generation.
func (in *inbox) reset() {
	in.mu.Lock()
	in.gen++
	in.now.applied, in.now.missed, in.now.synced, in.now.image = 0, nil, 0, nil
	in.mu.Unlock()
}

// close refuses what comes from now on and wakes who waits for room.
func (in *inbox) close() {
	in.mu.Lock()
	in.closed = true
	in.room.Broadcast()
	in.mu.Unlock()
	in.notify()
}

// drained reports whether the inbox is closed and empty: the loop ends.
func (in *inbox) drained() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.closed && len(in.now.events) == 0 && len(in.now.calls) == 0 && len(in.now.ops) == 0 && len(in.now.reads) == 0
}
