package blockrepl

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/blockrepl/blockrepl/blockrepl/image"
	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: the program, one Conn for each NBD connection. Does: makes records
// of writes in the caller's goroutine (compression runs in parallel), reads the
// image when a read may look at it (reads.go). Goes to: the volume's loop; back by
// Write.Done.

// ErrAborted says that a request must not be answered: the connection is, or has
// to be, closed without a reply, and the client asks again elsewhere.
var ErrAborted = errors.New("connection is closed without a reply")

// OldTokenError refuses a client that connects with an older token than one it has
// written with: none of its writes would ever be numbered.
type OldTokenError struct {
	Identity      string
	Token, Newest uint64
}

func (e *OldTokenError) Error() string {
	return fmt.Sprintf("client %q has written with token %d, newer than %d", e.Identity, e.Newest, e.Token)
}

// ClientInfo says who connects.
type ClientInfo struct {
	Addr     string // host, for people
	Identity string // certificate name, client= of the export, or address
	Token    uint64 // a newer one begins a newer generation; 0: none
	Takeover bool   // take the volume from another identity
	ReadOnly bool
	StaleOK  bool // answer reads at once, from this server's own prefix; read-only
	// Gone asks the kernel whether the peer has closed the connection. Nil: no.
	Gone func() bool
	// Abort closes the connection at once, without a reply. It must not block.
	Abort func(error)
}

// OpKind is what a Write does.
type OpKind uint8

// The kinds; zero is invalid.
const (
	OpWrite OpKind = iota + 1
	OpTrim
	OpZero
)

// Write is one change that a client asks for.
type Write struct {
	Kind     OpKind
	Off, Len int64
	Data     []byte // of OpWrite: from Alloc, taken over by Submit
	// Done is called once, from any goroutine, perhaps before Submit returns; it
	// must not block. nil: the change is fsynced in the journal of every in-sync
	// server, and every read that begins now sees it. ErrAborted: no answer may be given. Other errors
	// wrap a syscall.Errno.
	Done func(error)
}

// Conn is one connection of a client to a volume. Its methods are safe for
// concurrent use.
type Conn struct {
	v        *Volume
	id       uint64
	info     ClientInfo
	readOnly bool
	since    time.Time

	reads, writes atomic.Uint64

	mu    sync.Mutex
	dead  bool          // Invariant: once set, head stays nil
	gone  chan struct{} // closed with dead
	head  *op           // unanswered operations, the oldest first
	tail  *op
	stop  func() bool // ends the watch of the connection's context
	asked uint64      // the loop's own: round in which Gone was asked last
}

// op is one operation under way. The state machine gives back the address of its
// first field.
type op struct {
	replica.Op // must be first
	conn       *Conn
	done       func(error)
	at         replica.Time
	cost       int64
	prev, next *op
	finished   bool // guarded by conn.mu
}

func opOf(o *replica.Op) *op { return (*op)(unsafe.Pointer(o)) }

// Connect opens the volume for one connection of a client; ctx is that
// connection's. It waits until the volume has come into being. A volume that
// another identity holds is offered read-only. It waits, like a read, until Size is at
// least what any client saw before; without a master, or during a resync, for peer_timeout
// only. ErrAborted: it failed on this server, or that took longer than the io timeout.
// OldTokenError: the client has written with a newer token, as far as this server knows.
func (v *Volume) Connect(ctx context.Context, info ClientInfo) (*Conn, error) {
	if info.Gone == nil {
		info.Gone = func() bool { return false }
	}
	if info.Abort == nil {
		info.Abort = func(error) {}
	}
	select {
	case <-v.created:
	case <-v.broken:
		return nil, v.closed()
	case <-v.loopDone:
		return nil, ErrStopped
	case <-ctx.Done():
		return nil, fmt.Errorf("volume %q: wait until it is created: %w", v.name, ctx.Err())
	}
	readOnly, holder, err := v.Offers(ctx, info)
	if err != nil {
		return nil, err
	}
	if holder != "" {
		v.say(slog.LevelWarn, "volume is held by another client; offered read-only", "holder", holder, "client", info.Identity, "addr", info.Addr)
	}
	c := &Conn{v: v, info: info, since: v.s.opt.Wall(), gone: make(chan struct{}), readOnly: readOnly}
	if !v.clients.add(c) {
		return nil, v.closed()
	}
	c.stop = context.AfterFunc(ctx, func() { c.abandon(ErrAborted) })
	err = c.settle(ctx)
	if err == nil && !readOnly {
		// Now this server has seen what the client wrote elsewhere.
		err = v.checkToken(ctx, info)
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// checkToken refuses a token that the master would refuse with the first write, and
// for good: then the client could only be sent away without a word. A server that
// nobody has told of the newer one yet lets it in, and that happens.
func (v *Volume) checkToken(ctx context.Context, info ClientInfo) error {
	if info.Token == 0 {
		return nil
	}
	newest, err := askLoop(ctx, v, func() uint64 { return v.rep.Token(info.Identity) })
	if err != nil || info.Token >= newest {
		return err
	}
	return &OldTokenError{info.Identity, info.Token, newest}
}

// settle waits like a read, so that a server which is behind does not offer the size of
// before a resize that completed. Without a master it does not go on waiting: the
// requests will, and a client must find a server at which they can. What it is offered
// then it would also have, had it come before the resize. Nor during a resync: that may
// take hours, and began with the master's size.
func (c *Conn) settle(ctx context.Context) error {
	if c.info.StaleOK {
		return nil
	}
	v := c.v
	began := v.s.opt.Clock()
	for {
		wait, cancel := context.WithTimeout(ctx, v.s.opt.PeerTimeout)
		err := c.look(wait, func() error { return nil })
		late := wait.Err() != nil
		cancel()
		if err == nil || ctx.Err() != nil || !late || c.ended() {
			return err
		}
		view, err := v.view(ctx)
		if err != nil {
			return err
		}
		switch view.State {
		case replica.Healthy, replica.Degraded, replica.CatchingUp:
		default:
			return nil
		}
		if v.s.opt.Clock().Sub(began) > v.s.opt.IOTimeout {
			return fmt.Errorf("%w: volume %q on this server has been behind for %v", ErrAborted, v.name, v.s.opt.IOTimeout)
		}
	}
}

// ended reports whether the connection was closed on this side.
func (c *Conn) ended() bool {
	select {
	case <-c.gone:
		return true
	default:
		return false
	}
}

// closed says why nobody is let in any more.
func (v *Volume) closed() error {
	if why := v.failed.Load(); why != nil {
		return fmt.Errorf("%w: volume %q failed on this server: %s", ErrAborted, v.name, *why)
	}
	return ErrStopped
}

// Offers reports whether Connect would offer the volume read-only now, and who holds
// it, if that is why. OldTokenError: Connect would refuse.
func (v *Volume) Offers(ctx context.Context, info ClientInfo) (readOnly bool, holder string, err error) {
	switch {
	case info.ReadOnly, info.StaleOK:
		return true, "", nil
	case info.Takeover:
		return false, "", v.checkToken(ctx, info)
	}
	view, err := v.view(ctx)
	if err != nil {
		return false, "", err
	}
	if view.Holder != "" && view.Holder != info.Identity {
		return true, view.Holder, nil
	}
	return false, "", v.checkToken(ctx, info)
}

// FastZero reports whether zeroes of any length take this server a moment.
func (v *Volume) FastZero() bool { return v.img != nil && v.img.FastZero() }

// ReadOnly reports whether writes are refused.
func (c *Conn) ReadOnly() bool { return c.readOnly }

// Size is the volume's present size in bytes.
func (c *Conn) Size() int64 { return c.v.size.Load() }

// Alloc gives a buffer of n bytes for the payload of a write.
func (c *Conn) Alloc(n int) []byte { return record.Alloc(n) }

// Free gives back a buffer of Alloc that was not submitted.
func (c *Conn) Free(p []byte) { record.Free(p) }

// Submit starts a change. It waits while the volume has too much under way; ctx
// is the connection's.
func (c *Conn) Submit(ctx context.Context, w *Write) {
	if err := c.checkWrite(w); err != nil {
		record.Free(w.Data)
		w.Done(err)
		return
	}
	c.writes.Add(1)
	o := &op{conn: c, done: w.Done, cost: opCost + int64(len(w.Data)), at: c.v.s.opt.Clock()}
	if err := c.v.clients.room.Acquire(ctx, o.cost); err != nil {
		record.Free(w.Data)
		w.Done(ErrAborted)
		return
	}
	o.Conn, o.Rec = c.id, draftOf(w)
	if !c.push(o) {
		c.v.clients.room.Release(o.cost)
		w.Done(ErrAborted)
		return
	}
	if !c.v.in.submit(o) {
		c.v.clients.finish(o, ErrAborted)
	}
	if c.ended() {
		c.v.in.withdraw(c) // abandon may not have found it there
	}
}

func (c *Conn) checkWrite(w *Write) error {
	switch {
	case c.readOnly:
		return fmt.Errorf("write to volume %q: read-only here: %w", c.v.name, syscall.EPERM)
	case w.Off < 0 || w.Len <= 0 || w.Kind == OpWrite && (int64(len(w.Data)) != w.Len || w.Len > record.MaxPayload):
		return fmt.Errorf("write to volume %q: %d bytes at %d: %w", c.v.name, w.Len, w.Off, syscall.EINVAL)
	case w.Off > c.Size()-w.Len:
		return fmt.Errorf("write to volume %q: %d bytes at %d, the volume has %d: %w", c.v.name, w.Len, w.Off, c.Size(), syscall.ENOSPC)
	}
	return nil
}

func draftOf(w *Write) *record.Record {
	switch w.Kind {
	case OpTrim:
		return record.NewTrim(w.Off, w.Len)
	case OpZero:
		return record.NewZero(w.Off, w.Len)
	}
	return record.NewWrite(w.Off, w.Data)
}

// Flush returns when everything completed before it is on stable storage: at
// once, since nothing completes earlier.
func (c *Conn) Flush(context.Context) error {
	select {
	case <-c.gone:
		return ErrAborted
	default:
		return nil
	}
}

// Cache is a hint that the range will be read; the kernel's read-ahead serves it.
func (c *Conn) Cache(_ context.Context, off, n int64) error { return c.checkRead(off, n) }

// Extents describes [off, off+n) with at most limit segments; it may stop early.
func (c *Conn) Extents(ctx context.Context, off, n int64, limit int) ([]image.Segment, error) {
	if err := c.checkRead(off, n); err != nil {
		return nil, err
	}
	var segs []image.Segment
	err := c.look(ctx, func() (err error) {
		segs, err = c.v.img.Extents(off, n, limit)
		return err
	})
	return segs, err
}

// Close ends the connection; what it still has under way is not answered.
func (c *Conn) Close() error {
	c.stop()
	c.abandon(ErrAborted)
	return nil
}

// abandon ends the connection on this side: unanswered operations end with
// ErrAborted, and those that are not numbered or forwarded are dropped.
func (c *Conn) abandon(err error) {
	c.mu.Lock()
	if c.dead {
		c.mu.Unlock()
		return
	}
	c.dead = true
	list := c.head
	c.head, c.tail = nil, nil
	for o := list; o != nil; o = o.next {
		o.finished = true
	}
	close(c.gone)
	c.mu.Unlock()

	c.v.clients.remove(c)
	if !c.readOnly {
		c.v.in.post(replica.Gone{Conn: c.id})
		c.v.in.withdraw(c) // before there is room for others
	}
	for o := list; o != nil; o = o.next {
		c.v.clients.room.Release(o.cost)
		o.done(err)
	}
}

// cutOff closes the connection without a reply.
func (c *Conn) cutOff(reason string) {
	err := fmt.Errorf("%w: %s", ErrAborted, reason)
	c.info.Abort(err)
	c.abandon(err)
}

// push appends an operation to the unanswered ones; false when c is dead.
func (c *Conn) push(o *op) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead {
		return false
	}
	o.prev = c.tail
	if c.tail == nil {
		c.head = o
	} else {
		c.tail.next = o
	}
	c.tail = o
	return true
}

// pull takes an operation out; false when it has ended already.
func (c *Conn) pull(o *op) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if o.finished {
		return false
	}
	o.finished = true
	if o.prev == nil {
		c.head = o.next
	} else {
		o.prev.next = o.next
	}
	if o.next == nil {
		c.tail = o.prev
	} else {
		o.next.prev = o.prev
	}
	o.prev, o.next = nil, nil
	return true
}

// oldest is when the oldest unanswered operation came; false if there is none.
func (c *Conn) oldest() (replica.Time, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.head == nil {
		return 0, false
	}
	return c.head.at, true
}
