package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/nbd/nbdtest"
)

// load is clients that write and read until they are stopped. Each writes its own
// blocks, reads all, and reconnects when its connection is closed, as a kernel's
// client would: now and then it sends the unanswered again, at whichever server
// it is then attached to.
type load struct {
	t       *testing.T
	h       *history
	seed    uint64
	tokens  atomic.Uint64
	writes  atomic.Uint64 // completed
	reads   atomic.Uint64
	space   atomic.Uint64 // refused for lack of space
	opens   atomic.Uint64
	stopped chan struct{}
	wg      sync.WaitGroup
	workers []*worker

	mu   sync.Mutex
	home []*server // where clients go
}

// loadSetup is how many clients there are and what they do.
type loadSetup struct {
	clients int
	depth   int           // writes at once of each client
	reads   int           // reads between two batches
	pause   time.Duration // between two batches; 0: none
	wait    time.Duration // the longest that a request may take before the client gives up
	// roam makes each client choose any server at each reconnect; else it goes to
	// the first that takes it, in the order of home.
	roam bool
	// only is the one identity of all clients; "" = one each.
	only string
	// full allows ENOSPC replies.
	full bool
}

// startLoad begins the clients at the servers given.
func startLoad(t *testing.T, h *history, rng *rand.Rand, o loadSetup, servers ...*server) *load {
	t.Helper()
	if o.wait == 0 {
		o.wait = 40 * time.Second
	}
	l := &load{t: t, h: h, seed: rng.Uint64(), home: servers, stopped: make(chan struct{})}
	l.tokens.Store(uint64(time.Now().UnixNano()))
	for i := range o.clients {
		w := &worker{load: l, setup: o, index: i, rng: rand.New(rand.NewPCG(l.seed, uint64(i))), again: map[int]uint64{}}
		w.identity = o.only
		if w.identity == "" {
			w.identity = fmt.Sprintf("client%d", i)
		}
		for b := i; b < len(h.blocks); b += o.clients {
			w.blocks = append(w.blocks, b)
		}
		l.workers = append(l.workers, w)
		l.wg.Go(w.run)
	}
	t.Cleanup(l.stop)
	return l
}

// moveTo names the servers where clients go from their next reconnect on.
func (l *load) moveTo(servers ...*server) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.home = servers
}

func (l *load) servers() []*server {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.home
}

// stop ends the clients and waits for them. More than one call is fine.
func (l *load) stop() {
	select {
	case <-l.stopped:
	default:
		close(l.stopped)
		for _, w := range l.workers {
			w.hangUp()
		}
	}
	l.wg.Wait()
}

func (l *load) ended() bool {
	select {
	case <-l.stopped:
		return true
	default:
		return false
	}
}

// awaitWrites waits until n more writes have completed, and gives how long that took.
func (l *load) awaitWrites(c *cluster, n uint64, within time.Duration) time.Duration {
	l.t.Helper()
	began, from := time.Now(), l.writes.Load()
	c.await(within, fmt.Sprintf("%d more completed writes", n), func() (bool, string) {
		how := fmt.Sprintf("%d writes, %d reads, %d opens\n", l.writes.Load()-from, l.reads.Load(), l.opens.Load())
		for _, s := range c.servers {
			if v, err := s.volume(); err != nil {
				how += s.id + ": " + err.Error() + "\n"
			} else {
				how += s.id + ": " + summary(v) + "\n"
			}
		}
		return l.writes.Load() >= from+n || l.t.Failed(), how
	})
	if l.t.Failed() {
		l.t.FailNow() // a client said why
	}
	return time.Since(began)
}

// worker is one client.
type worker struct {
	load     *load
	setup    loadSetup
	index    int
	identity string
	rng      *rand.Rand
	blocks   []int
	again    map[int]uint64 // unanswered, by block: may be sent again

	mu   sync.Mutex
	conn *client
}

func (w *worker) hangUp() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.conn != nil {
		w.conn.close()
	}
}

// keep makes c the connection that hangUp closes; false when the load has ended.
func (w *worker) keep(c *client) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conn = c
	return !w.load.ended()
}

const reconnectEvery = 20 * time.Millisecond

func (w *worker) run() {
	for attempt := w.index; !w.load.ended(); attempt++ {
		servers := w.load.servers()
		s := servers[attempt%len(servers)]
		if w.setup.roam {
			s = servers[w.rng.IntN(len(servers))]
		}
		err := w.session(s)
		var refused *errnoError
		if errors.As(err, &refused) {
			w.load.t.Errorf("client %s at %s: %v", w.identity, s.id, err)
			return
		}
		var bad *badRead
		if errors.As(err, &bad) {
			w.load.t.Errorf("client %s at %s: %v", w.identity, s.id, err)
			return
		}
		select {
		case <-w.load.stopped:
			return
		case <-time.After(reconnectEvery):
		}
	}
}

// badRead is a read that the history does not allow.
type badRead struct{ error }

// session is one connection, from its opening until it breaks.
func (w *worker) session(s *server) error {
	c, err := dialWithin(s, fmt.Sprintf("client=%s&token=%d&takeover", w.identity, w.load.tokens.Add(1)), min(w.setup.wait, openWait))
	if err != nil {
		return err
	}
	defer c.close()
	if !w.keep(c) || c.readOnly() {
		return nil
	}
	w.load.opens.Add(1)
	for !w.load.ended() {
		c.deadline(w.setup.wait)
		if err := w.batch(c); err != nil {
			return err
		}
		for range w.setup.reads {
			if err := w.read(c); err != nil {
				return err
			}
		}
		if w.setup.pause > 0 {
			select {
			case <-w.load.stopped:
			case <-time.After(w.setup.pause):
			}
		}
	}
	return nil
}

// batch writes to some of the client's blocks at once, and takes the answers.
func (w *worker) batch(c *client) error {
	var requests []nbdtest.Request
	writes := map[uint64]uint64{} // offset → version
	for range w.setup.depth {
		block := w.blocks[w.rng.IntN(len(w.blocks))]
		off := uint64(w.load.h.at(block))
		if _, twice := writes[off]; twice {
			continue
		}
		version, unanswered := w.again[block]
		if !unanswered || w.rng.IntN(2) == 0 {
			version = w.load.h.ask(block)
		}
		w.again[block] = version
		writes[off] = version
		r := nbdtest.Request{Cmd: operation(version), Off: off, Length: blockBytes}
		if r.Cmd == cmdWrite {
			r.Data = w.load.h.content(block, version)
		}
		if w.rng.IntN(4) == 0 {
			r.Flags = flagFUA
		}
		requests = append(requests, r)
	}
	if _, err := c.Send(requests...); err != nil {
		return err
	}
	for range requests {
		rep, err := c.Recv()
		if err != nil {
			return err
		}
		block := int((int64(rep.Request.Off) - w.load.h.base) / blockBytes)
		if rep.Errno == errnoSpace && w.setup.full {
			w.load.space.Add(1)
			continue
		}
		if rep.Errno != 0 {
			return &errnoError{"write", int64(rep.Request.Off), rep.Errno, rep.Message}
		}
		w.load.h.completed(block, writes[rep.Request.Off])
		delete(w.again, block)
		w.load.writes.Add(1)
	}
	return nil
}

// read reads some block, anyone's, and checks it.
func (w *worker) read(c *client) error {
	block := w.rng.IntN(len(w.load.h.blocks))
	floor := w.load.h.floor(block)
	p, err := c.read(w.load.h.at(block), blockBytes)
	if err != nil {
		return err
	}
	if err := w.load.h.check(block, floor, p); err != nil {
		return &badRead{err}
	}
	w.load.reads.Add(1)
	return nil
}
