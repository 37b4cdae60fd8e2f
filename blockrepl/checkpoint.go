package blockrepl

import (
	"sync/atomic"
	"time"

	"github.com/blockrepl/blockrepl/journal/mutant"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: the applier, as bytes that went to the image, and the loop, when it
// needs the image on disk. Does: fsyncs the image now and then, beside the
// applying. Goes to: the loop (ImageSynced), which stores the number. One
// goroutine a volume.
//
// No acknowledgement waits for it: it bounds the redo after a crash and lets
// records be trimmed.
type checkpointer struct {
	v     *Volume
	wake  chan struct{} // capacity 1
	quit  chan struct{} // closed by stop
	dirty atomic.Int64  // bytes applied since the last fsync began
	want  atomic.Uint64 // an fsync of this number is asked for; 0: no
}

func newCheckpointer(v *Volume) *checkpointer {
	return &checkpointer{v: v, wake: make(chan struct{}, 1), quit: make(chan struct{})}
}

func (c *checkpointer) notify() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// dirtied counts bytes that went to the image.
func (c *checkpointer) dirtied(n int64) {
	now := c.dirty.Add(n)
	if now == n || now >= checkpointBytes || c.want.Load() != 0 {
		c.notify()
	}
}

// ask wants an fsync once everything through seq is applied.
func (c *checkpointer) ask(seq record.Seq) {
	c.want.Store(uint64(seq))
	c.notify()
}

func (c *checkpointer) run() {
	timer := time.NewTimer(checkpointEvery)
	defer timer.Stop()
	timer.Stop()
	armed := false
	for {
		late := false
		select {
		case <-c.quit:
			return
		case <-c.wake:
		case <-timer.C:
			armed, late = false, true
		}
		want := c.want.Load()
		asked := want != 0 && c.v.app.applied.Load() >= want
		switch {
		case asked, c.dirty.Load() >= checkpointBytes, late && c.dirty.Load() > 0:
			if asked {
				c.want.CompareAndSwap(want, 0)
			}
			if err := c.sync(); err != nil {
				c.v.fail("image", err)
				return
			}
		case c.dirty.Load() > 0 && !armed:
			timer.Reset(checkpointEvery)
			armed = true
		}
	}
}

// sync makes what is applied now durable in the image.
func (c *checkpointer) sync() error {
	gen := c.v.in.generation()
	c.dirty.Store(0)
	seq := record.Seq(c.v.app.applied.Load())
	if mutant.Is("checkpoint without an fsync of the image") {
		c.v.in.synced(gen, seq, c.v.seen.take(c.v))
		return nil
	}
	if err := c.v.img.Sync(); err != nil {
		return err
	}
	c.v.in.synced(gen, seq, c.v.seen.take(c.v))
	return nil
}
