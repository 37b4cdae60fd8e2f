package blockrepl

import (
	"bytes"
	"context"
	"errors"
	"os"
	"sync/atomic"
	"testing"

	"github.com/blockrepl/blockrepl/blockrepl/image"
	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Repaired was said of bytes that a power cut could still take back.
func TestVerifyCallsNothingRepairedThatIsNotOnDisk(t *testing.T) {
	var on atomic.Bool
	c := newCluster(t, 2, nil)
	c.change = func(o *Options) {
		if o.ID != mustID("b") {
			return
		}
		o.OpenImage = func(i image.Options) (*image.Image, error) {
			i.OpenFile = func() (image.File, error) {
				f, err := os.OpenFile(i.Path, os.O_RDWR|os.O_CREATE, 0o600)
				return &sick{f, &on, true}, err
			}
			return image.Open(i)
		}
	}
	c.start(0, 1)
	cl := c.connect(0, "client")
	cl.write(0, bytes.Repeat([]byte("1"), 1<<20))
	c.awaitHealthy(0, 1)
	c.equalImages(0, 1)
	if err := c.vol(1).img.Apply([]image.Change{{Kind: record.KindTrim, Off: 4096, Len: 4096}}); err != nil {
		t.Fatal(err)
	}
	on.Store(true)
	rep, err := c.vol(1).verify(t.Context(), true)
	if err == nil || rep.Repaired {
		t.Errorf("verify with a failing fsync: %+v, %v", rep, err)
	}
	c.await(1, "failed", func(s VolumeStatus) bool { return s.State == StateFailed })
}

// crafted runs one window of a verify against a master that answers as told.
func crafted(t *testing.T, v *Volume, answer func(*wire.HashQuery) *wire.ExtentData) (VerifyReport, error) {
	t.Helper()
	l := &link{done: make(chan struct{})}
	l.out.init(func(why string) { t.Errorf("link closed: %s", why) })
	r := &verification{v: v, link: l, repair: true}
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		for {
			queue, _, _, ok := l.out.take(nil)
			if !ok {
				return
			}
			for _, m := range queue {
				v.sync.deliver(0, answer(m.msg.(*wire.HashQuery)))
			}
		}
	}()
	err := r.window(t.Context(), 0, resyncWindow)
	l.out.close()
	<-answered
	return r.report, err
}

// A chunk outside of what was asked for made the server panic.
func TestVerifyRefusesChunksOutsideOfItsQuestion(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.start(0)
	cl := c.connect(0, "client")
	cl.write(0, []byte("ours"))
	v := c.vol(0)
	for _, outside := range []wire.Chunk{
		{Offset: resyncWindow + resyncBlock, Length: resyncBlock, Zero: true},
		{Offset: resyncWindow - resyncBlock, Length: 2 * resyncBlock, Zero: true},
		{Offset: 0, Length: 1 << 50, Zero: true},
	} {
		rep, err := crafted(t, v, func(q *wire.HashQuery) *wire.ExtentData {
			whole := wire.Chunk{Offset: 0, Length: resyncWindow, Zero: true}
			return &wire.ExtentData{ID: q.ID, Offset: q.Offset, Length: q.Length, Chunks: []wire.Chunk{whole, outside}}
		})
		if err == nil || rep.DifferentBytes != 0 {
			t.Errorf("chunk of %d at %d: %+v, %v", outside.Length, outside.Offset, rep, err)
		}
	}
	cl.wantRead(0, []byte("ours"))
}

// An answer of before a resync was compared with the image behind it, where no number
// says that it is older: a repair brought old bytes back into the new image.
func TestVerifyDecidesNothingAcrossAResync(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.start(0)
	cl := c.connect(0, "client")
	cl.write(0, []byte("ours"))
	v := c.vol(0)
	c.await(0, "applied", func(s VolumeStatus) bool { return s.Applied == s.Last })
	rep, err := crafted(t, v, func(q *wire.HashQuery) *wire.ExtentData {
		v.app.reset(1) // as the loop does
		return &wire.ExtentData{ID: q.ID, Offset: q.Offset, Length: q.Length, Chunks: []wire.Chunk{{Offset: 0, Length: resyncBlock, Zero: true}}}
	})
	if err == nil || rep.DifferentBytes != 0 {
		t.Errorf("verify across a resync: %+v, %v", rep, err)
	}
	got := make([]byte, 4)
	if err := v.img.ReadAt(got, 0); err != nil || string(got) != "ours" {
		t.Errorf("the image holds %q, %v", got, err)
	}
}

// A master that had handed over while a slave verified answered none of its queries any
// more. The link lived on, so verify asked for ever.
func TestVerifyEndsWhenTheMasterChanges(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.start(0, 1, 2)
	cl := c.connect(0, "client")
	cl.write(0, bytes.Repeat([]byte("1"), 1<<20))
	c.awaitHealthy(0, 1, 2)
	v := c.vol(2)
	view, err := v.viewSoon(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l := v.s.links.peers[view.Config.Master].cur.Load()
	r := &verification{v: v, link: l, epoch: view.Epoch}
	if err := r.window(t.Context(), 0, resyncWindow); err != nil { // the first window
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	if _, err := c.vol(1).command(ctx, func(id uint64) replica.Event { return replica.Promote{ID: id} }); err != nil {
		t.Fatal(err)
	}
	c.await(2, "the new master's", func(s VolumeStatus) bool { return s.Master == "b" && s.State == StateHealthy })
	late, stop := context.WithTimeout(t.Context(), testTimeout)
	defer stop()
	if err := r.window(late, resyncWindow, resyncWindow); !errors.Is(err, replica.ErrRefused) { // the second
		t.Errorf("verify against a server that is no master any more: %v; link closed: %v", err, l != v.s.links.peers[mustID("a")].cur.Load())
	}
}
