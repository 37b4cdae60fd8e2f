package bubble

import (
	"cmp"
	"container/heap"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"testing/synctest"
	"time"
)

// socketBytes is what a connection holds on its way, in bytes. Beyond it Write waits.
const socketBytes = 256 << 10

// network carries the links between machines. One goroutine, drive, moves bytes;
// everything else happens under mu.
type network struct {
	rng  *rand.Rand    // the driver's own
	wake chan struct{} // capacity 1: something was sent

	mu        sync.Mutex
	listeners map[string]*listener
	pairs     map[[2]string]int      // connections so far between two machines
	live      map[string]*connection // connections with an open end
	halves    []*half                // with bytes or an end that is not delivered
	blocked   map[[2]string]bool
	paused    map[string]bool // machines that stand still: bytes to and from them wait
	due       deliveries
	order     uint64

	// What happens to bytes on their way; changed by the schedule.
	delay   time.Duration // up to
	corrupt float64       // probability that a segment has a flipped bit
	flips   int           // bits flipped so far
	dials   int           // attempts so far
}

// half is one direction of a connection.
type half struct {
	key      string
	from, to string
	cond     sync.Cond // on network.mu; both ends wait here

	fresh  []byte // written, not seen by the driver
	fin    bool   // the writer closed
	queue  []segment
	queued int
	last   time.Time // when the youngest segment of queue is due
	armed  bool      // a delivery is scheduled
	listed bool

	buf  []byte // delivered
	eof  bool
	err  error // reset
	dead bool  // the writing process died: what it writes now goes nowhere
}

// connection is two halves; it is forgotten when both ends are closed.
type connection struct {
	key    string
	halves [2]*half
	ends   int // open ones
}

type segment struct {
	data []byte
	fin  bool
}

type delivery struct {
	at    time.Time
	order uint64
	h     *half
}

type deliveries []delivery

func (d deliveries) Len() int { return len(d) }
func (d deliveries) Less(i, j int) bool {
	if c := d[i].at.Compare(d[j].at); c != 0 {
		return c < 0
	}
	return d[i].order < d[j].order
}
func (d deliveries) Swap(i, j int) { d[i], d[j] = d[j], d[i] }
func (d *deliveries) Push(x any)   { *d = append(*d, x.(delivery)) }
func (d *deliveries) Pop() any {
	x := (*d)[len(*d)-1]
	*d = (*d)[:len(*d)-1]
	return x
}

func newNetwork(seed uint64) *network {
	return &network{
		rng: rand.New(rand.NewPCG(seed, 'n')), wake: make(chan struct{}, 1), delay: time.Millisecond,
		listeners: map[string]*listener{}, pairs: map[[2]string]int{}, live: map[string]*connection{}, blocked: map[[2]string]bool{}, paused: map[string]bool{},
	}
}

func (n *network) notify() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// drive delivers until quit is closed. It is the only caller of synctest.Wait.
func (n *network) drive(quit chan struct{}) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		synctest.Wait()
		n.collect()
		wait, ok := n.deliver()
		if ok {
			continue
		}
		timer.Reset(wait)
		select {
		case <-quit:
			return
		case <-n.wake:
		case <-timer.C:
		}
	}
}

// collect takes all that was sent since the last time, in the order of the
// connections' names, and draws when it arrives.
func (n *network) collect() {
	n.mu.Lock()
	defer n.mu.Unlock()
	slices.SortFunc(n.halves, func(a, b *half) int { return cmp.Compare(a.key, b.key) })
	for _, h := range n.halves {
		for len(h.fresh) > 0 {
			k := len(h.fresh)
			if n.rng.IntN(4) == 0 {
				k = 1 + n.rng.IntN(k)
			}
			data := slices.Clone(h.fresh[:k])
			h.fresh = h.fresh[k:]
			if n.corrupt > 0 && n.rng.Float64() < n.corrupt {
				data[n.rng.IntN(k)] ^= 1 << n.rng.IntN(8)
				n.flips++
			}
			h.queue = append(h.queue, segment{data: data})
			h.queued += k
		}
		h.fresh = nil
		if h.fin {
			h.queue = append(h.queue, segment{fin: true})
		}
		h.listed = false
		n.armLocked(h)
	}
	n.halves = n.halves[:0]
}

// armLocked schedules the delivery of a half's oldest segment.
func (n *network) armLocked(h *half) {
	if h.armed || len(h.queue) == 0 || n.heldLocked(h) {
		return
	}
	h.armed = true
	at := time.Now().Add(time.Duration(n.rng.Int64N(int64(n.delay) + 1)))
	if at.Before(h.last) {
		at = h.last
	}
	h.last = at
	n.order++
	heap.Push(&n.due, delivery{at, n.order, h})
}

// deliver delivers what is due, one segment; else it gives the time until then.
func (n *network) deliver() (time.Duration, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.due) == 0 {
		return time.Hour, false
	}
	if wait := time.Until(n.due[0].at); wait > 0 {
		return wait, false
	}
	h := heap.Pop(&n.due).(delivery).h
	h.armed = false
	if n.heldLocked(h) || len(h.queue) == 0 {
		return 0, true // lies there until the partition ends
	}
	s := h.queue[0]
	h.queue = h.queue[1:]
	h.queued -= len(s.data)
	if s.fin {
		h.eof = true
	} else {
		h.buf = append(h.buf, s.data...)
	}
	h.cond.Broadcast()
	n.armLocked(h)
	return 0, true
}

// heldLocked reports whether what is in a half stays there for now.
func (n *network) heldLocked(h *half) bool {
	return n.blocked[[2]string{h.from, h.to}] || n.paused[h.from] || n.paused[h.to]
}

// pause holds back all bytes to and from a machine.
func (n *network) pause(name string, on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.paused[name] = on
	n.rearmLocked()
}

// block holds back all bytes of one direction; they are not lost, as TCP sends again.
func (n *network) block(from, to string, on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !on {
		delete(n.blocked, [2]string{from, to})
	} else {
		n.blocked[[2]string{from, to}] = true
	}
	n.rearmLocked()
}

// heal ends all partitions and damage.
func (n *network) heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.blocked)
	n.corrupt = 0
	n.rearmLocked()
}

func (n *network) rearmLocked() {
	// Every half with something in its queue is looked at again by collect.
	for _, h := range n.allLocked() {
		n.listLocked(h)
	}
	n.notify()
}

func (n *network) allLocked() []*half {
	var all []*half
	for _, w := range n.live {
		all = append(all, w.halves[0], w.halves[1])
	}
	slices.SortFunc(all, func(a, b *half) int { return cmp.Compare(a.key, b.key) })
	return all
}

func (n *network) listLocked(h *half) {
	if !h.listed {
		h.listed = true
		n.halves = append(n.halves, h)
	}
}

func (n *network) setDamage(p float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.corrupt = p
}

func (n *network) flipped() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.flips
}

func (n *network) setDelay(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delay = d
}

// reset breaks every connection between two machines, as a firewall does that forgot them.
func (n *network) reset(a, b string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, h := range n.allLocked() {
		if h.from == a && h.to == b || h.from == b && h.to == a {
			h.err = syscall.ECONNRESET
			h.cond.Broadcast()
		}
	}
}
