package blockrepl

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/image"
)

// Comes from: clients' reads. Does: looks at the image when what it finds there is
// sure to be current.
//
//	master, under its lease   at once: atomics before, the lease again behind
//	else                      a Read event; all reads that wait are one round
//	stale=ok                  at once, whatever prefix this server holds
//
// Goes to: the image, in the caller's goroutine.

// readWait is a read that waits for its round.
type readWait struct {
	conn *Conn
	turn chan uint64 // capacity 1: Volume.mixed as it was when the turn was given
}

// ReadNow reads without waiting, neither for other servers nor for a disk; false
// when that is not possible, and p is undefined then.
func (c *Conn) ReadNow(p []byte, off int64) (bool, error) {
	if err := c.checkRead(off, int64(len(p))); err != nil {
		return false, err
	}
	mixed, ok := c.mayLook()
	if !ok {
		return false, nil
	}
	done, err := c.v.img.ReadNow(p, off)
	if err = c.v.unanswerable(err); err != nil || !done || !c.wasCurrent(mixed) {
		return false, err
	}
	c.reads.Add(1)
	return true, nil
}

// ReadAt fills p with what every write left that completed anywhere before the
// call. It waits for that, as long as ctx lives.
func (c *Conn) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := c.checkRead(off, int64(len(p))); err != nil {
		return err
	}
	c.reads.Add(1)
	return c.look(ctx, func() error {
		return c.v.img.ReadAt(p, off)
	})
}

func (c *Conn) checkRead(off, n int64) error {
	if off < 0 || n < 0 || off > c.Size()-n {
		return fmt.Errorf("read of volume %q: %d bytes at %d, the volume has %d: %w", c.v.name, n, off, c.Size(), syscall.EINVAL)
	}
	return nil
}

// mayLook reports whether the image is current now; the number is for wasCurrent,
// which says whether it still was when it had been looked at.
//
// On the master every write that completed anywhere has a number up to commit,
// because the loop publishes that before it tells anyone; so an image that holds
// commit is current as long as no other master can have committed: under the
// lease, which is looked at after the image.
func (c *Conn) mayLook() (mixed uint64, ok bool) {
	v := c.v
	if c.info.StaleOK {
		mixed = v.mixed.Load()
		return mixed, v.stale.Load()
	}
	return 0, v.lease.Load() != 0 && v.app.applied.Load() >= v.commit.Load()
}

func (c *Conn) wasCurrent(mixed uint64) bool {
	v := c.v
	if c.info.StaleOK {
		return v.stale.Load() && v.mixed.Load() == mixed
	}
	return int64(v.s.opt.Clock()) < v.lease.Load()
}

// lookNow runs see if the image is current now, and reports whether it still was
// afterwards.
func (c *Conn) lookNow(see func() error) (bool, error) {
	mixed, ok := c.mayLook()
	if !ok {
		return false, nil
	}
	err := c.v.unanswerable(see())
	return c.wasCurrent(mixed), err
}

// unanswerable keeps a failing image from being told to a client: an error reply
// ends the client's file system, while another server has the same bytes. The
// server's part in the volume ends instead, as it does when the image cannot be
// written. Where nobody else is in sync a failed read is told: nobody else can
// answer, and the rest of the image can still be read.
func (v *Volume) unanswerable(err error) error {
	if err == nil {
		return nil // before e is allocated
	}
	var e *image.Error
	switch {
	case !errors.As(err, &e):
		return err
	case errors.Is(err, image.ErrClosed), errors.Is(err, image.ErrRange):
	case v.alone.Load() && !errors.Is(err, image.ErrFailed) && !errors.Is(err, image.ErrNoSpace):
		v.blind.note(v, e)
		return err
	default:
		v.fail("image", err)
	}
	return fmt.Errorf("%w: %w", ErrAborted, err)
}

// look runs see when the image is current; it waits for that, at most for the io
// timeout.
func (c *Conn) look(ctx context.Context, see func() error) error {
	began := c.v.s.opt.Clock()
	for {
		if ok, err := c.lookNow(see); ok {
			return err
		}
		var err error
		var ok bool
		if c.info.StaleOK {
			err = c.waitStale(ctx)
		} else {
			ok, err = c.lookInTurn(ctx, see)
		}
		if ok || err != nil {
			return err
		}
		if waited := c.v.s.opt.Clock().Sub(began); waited > c.v.s.opt.IOTimeout {
			c.cutOff(fmt.Sprintf("a read has waited for %v", waited))
			return ErrAborted
		}
	}
}

// lookInTurn waits for a read round; false when the image stopped being readable
// meanwhile and the read must begin again.
func (c *Conn) lookInTurn(ctx context.Context, see func() error) (bool, error) {
	v := c.v
	if !c.enterGate(ctx) {
		return false, ErrAborted
	}
	defer v.clients.gate.Release(1)
	w := &readWait{conn: c, turn: make(chan uint64, 1)}
	if !v.in.read(w) {
		return false, ErrAborted
	}
	late := time.NewTimer(v.s.opt.IOTimeout)
	defer late.Stop()
	select {
	case mixed := <-w.turn:
		err := v.unanswerable(see())
		return v.mixed.Load() == mixed, err
	case <-late.C:
		// Not by the sweep: a loop that hangs may not have taken the read in yet.
		c.cutOff(fmt.Sprintf("a read has waited for %v", v.s.opt.IOTimeout))
		return false, ErrAborted
	case <-c.gone:
		return false, ErrAborted
	case <-ctx.Done():
		return false, ErrAborted
	}
}

// enterGate waits until fewer than readsMax reads are under way, at most for the io
// timeout; false when the read must not be answered.
func (c *Conn) enterGate(ctx context.Context) bool {
	gate, timeout := c.v.clients.gate, c.v.s.opt.IOTimeout
	if gate.TryAcquire(1) {
		return true
	}
	wait, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if gate.Acquire(wait, 1) == nil {
		return true
	}
	if ctx.Err() == nil {
		c.cutOff(fmt.Sprintf("a read has waited for %v behind %d others", timeout, readsMax))
	}
	return false
}

// waitStale waits a little while the image is no prefix: during a resync and
// before the redo after a start.
func (c *Conn) waitStale(ctx context.Context) error {
	t := time.NewTimer(staleAgain)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-c.gone:
		return ErrAborted
	case <-ctx.Done():
		return ErrAborted
	}
}

// round makes one round of all reads that wait; its id, 0 if there are none.
func (cs *clients) round(waits []*readWait) uint64 {
	if len(waits) == 0 {
		return 0
	}
	cs.roundID++
	cs.mu.Lock()
	cs.rounds[cs.roundID] = append([]*readWait(nil), waits...)
	cs.mu.Unlock()
	return cs.roundID
}

// grant gives a round its turn.
func (cs *clients) grant(id uint64) {
	mixed := cs.v.mixed.Load()
	cs.mu.Lock()
	waits := cs.rounds[id]
	delete(cs.rounds, id)
	cs.mu.Unlock()
	for _, w := range waits {
		w.turn <- mixed
	}
}
