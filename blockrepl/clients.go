package blockrepl

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/journal/mutant"
	"golang.org/x/sync/semaphore"
)

// clients are a volume's connections, and what the loop does for them.
type clients struct {
	v    *Volume
	room *semaphore.Weighted // bytes of unanswered operations
	gate *semaphore.Weighted // reads under way

	mu     sync.Mutex // guards the maps; no callback runs under it, and nothing waits
	conns  map[uint64]*Conn
	rounds map[uint64][]*readWait // reads that wait for their turn
	closed bool
	next   uint64

	// The loop's own.
	batch   uint64 // rounds with operations
	roundID uint64
}

func (cs *clients) init(v *Volume) {
	cs.v = v
	cs.conns = map[uint64]*Conn{}
	cs.rounds = map[uint64][]*readWait{}
	cs.room = semaphore.NewWeighted(opsBytesMax)
	cs.gate = semaphore.NewWeighted(readsMax)
}

// add registers a connection and tells the state machine of it; false when the
// volume is stopping or has failed.
func (cs *clients) add(c *Conn) bool {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if cs.closed {
		return false
	}
	cs.next++
	c.id = cs.next
	cs.conns[c.id] = c
	if !c.readOnly { // before anybody can find c and end it
		cs.v.in.post(replica.Open{Conn: c.id, Identity: c.info.Identity, Token: c.info.Token, Takeover: c.info.Takeover})
	}
	return true
}

func (cs *clients) remove(c *Conn) {
	cs.mu.Lock()
	delete(cs.conns, c.id)
	cs.mu.Unlock()
}

func (cs *clients) list() []*Conn {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	all := make([]*Conn, 0, len(cs.conns))
	for _, c := range cs.conns {
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b *Conn) int { return cmp.Compare(a.id, b.id) })
	return all
}

// admit gives the state machine's part of those operations whose connections
// still live. Each connection is asked once a round, by one system call: a server
// that wakes from a long sleep must not number what its clients gave up long ago.
func (cs *clients) admit(dst []*replica.Op, ops []*op) []*replica.Op {
	if len(ops) == 0 {
		return dst
	}
	cs.batch++
	for _, o := range ops {
		c := o.conn
		if c.asked != cs.batch {
			c.asked = cs.batch
			if c.info.Gone() && !mutant.Is("number what a closed connection had sent") {
				c.abandon(ErrAborted)
			}
		}
		select {
		case <-c.gone:
		default:
			dst = append(dst, &o.Op)
			if mutant.Is("answer a write that is not committed") {
				cs.finish(o, nil)
			}
		}
	}
	return dst
}

// complete answers an operation.
func (cs *clients) complete(done replica.Completion) {
	if done.Op.Conn == 0 {
		return
	}
	o := opOf(done.Op)
	if err, ok := cs.errno(done.Err); ok {
		cs.finish(o, err)
	} else {
		o.conn.cutOff(done.Err.Error())
	}
}

// errno gives a client's error the number that its protocol knows. For any other
// reason no error is told: the client is sent away and asks again.
func (cs *clients) errno(err error) (_ error, ok bool) {
	var no syscall.Errno
	switch {
	case err == nil:
		return nil, true
	case errors.Is(err, replica.ErrNoSpace):
		no = syscall.ENOSPC
	case errors.Is(err, replica.ErrHeld):
		no = syscall.EPERM
	case errors.Is(err, replica.ErrRange):
		no = syscall.ENOSPC
	default:
		return nil, false
	}
	return fmt.Errorf("write to volume %q: %w: %w", cs.v.name, err, no), true
}

func (cs *clients) finish(o *op, err error) {
	if !o.conn.pull(o) {
		return
	}
	cs.room.Release(o.cost)
	o.done(err)
}

// abort closes a connection that the state machine names.
func (cs *clients) abort(id uint64, reason string) {
	cs.mu.Lock()
	c := cs.conns[id]
	cs.mu.Unlock()
	if c == nil {
		return
	}
	cs.v.say(slog.LevelInfo, "client is sent away without a reply", "client", c.info.Identity, "addr", c.info.Addr, "reason", reason)
	c.cutOff(reason)
}

// abortAll closes all connections, and refuses new ones.
func (cs *clients) abortAll(reason string) {
	cs.mu.Lock()
	cs.closed = true
	cs.mu.Unlock()
	for _, c := range cs.list() {
		c.cutOff(reason)
	}
}

// runSweep sends clients away in time. It has a goroutine of its own because the
// loop may be what they wait for: a journal whose fsync hangs stops it.
func (v *Volume) runSweep() {
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		select {
		case <-v.sweepEnd:
			return
		case <-t.C:
			v.clients.sweep(v.s.opt.Clock())
			v.sayLate()
		}
	}
}

// sweep closes the connections whose oldest change has waited for the io timeout:
// their clients shall look for another server. Reads see to that themselves
// (reads.go); here those are forgotten whose connections have ended.
func (cs *clients) sweep(now replica.Time) {
	limit := cs.v.s.opt.IOTimeout
	late := map[*Conn]replica.Time{}
	for _, c := range cs.list() {
		if at, ok := c.oldest(); ok && now.Sub(at) > limit {
			late[c] = at
		}
	}
	cs.mu.Lock()
	for id, waits := range cs.rounds {
		waits = slices.DeleteFunc(waits, func(w *readWait) bool {
			select {
			case <-w.conn.gone:
				return true
			default:
				return false
			}
		})
		if cs.rounds[id] = waits; len(waits) == 0 {
			delete(cs.rounds, id)
		}
	}
	cs.mu.Unlock()
	for c, at := range late {
		cs.v.say(slog.LevelWarn, "request waited too long; closing the connection without a reply",
			"client", c.info.Identity, "addr", c.info.Addr, "waited", now.Sub(at))
		c.cutOff(fmt.Sprintf("a request has waited for %v", now.Sub(at)))
	}
}
