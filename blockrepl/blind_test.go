package blockrepl

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/blockrepl/blockrepl/blockrepl/image"
	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// badSector is an image file of which [lo,hi) cannot be read until it is written.
type badSector struct {
	image.File
	lo, hi int64
	bad    *atomic.Bool
}

func (f *badSector) ReadAt(p []byte, off int64) (int, error) {
	if f.bad.Load() && off < f.hi && off+int64(len(p)) > f.lo {
		return 0, syscall.EIO
	}
	return f.File.ReadAt(p, off)
}

func (f *badSector) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.File.WriteAt(p, off)
	if err == nil && off <= f.lo && off+int64(len(p)) >= f.hi {
		f.bad.Store(false) // as a disk does: the sector is put elsewhere
	}
	return n, err
}

// The resync from a disk with one bad sector stood still, and status did not say why.
func TestResyncThatCannotPassABadSectorSaysWhatToDo(t *testing.T) {
	for _, servers := range []int{2, 3} {
		synctest.Test(t, func(t *testing.T) { passBadSector(t, servers) })
	}
}

// onBadSector makes a cluster whose server a cannot read 4096 bytes at lo while bad is
// set.
func onBadSector(t *testing.T, servers int, lo int64, bad *atomic.Bool) (*cluster, []*vfs.MemFS) {
	n := &memNet{lns: map[string]*memListener{}}
	c := &cluster{t: t, servers: make([]*Server, servers), volume: VolumeOptions{Name: "vol0", Size: 1 << 20, OnDegraded: wire.Suspend}}
	var disks []*vfs.MemFS
	for _, id := range []string{"a", "b", "c"}[:servers] {
		c.addrs = append(c.addrs, ServerAddr{mustID(id), id})
		c.volume.Servers = append(c.volume.Servers, mustID(id))
		disks = append(disks, vfs.NewCrashableMem())
	}
	c.change = func(o *Options) {
		o.DataDir = "/data"
		inMemory(o, disks[o.ID[0]-'a'], n, 1)
		if o.ID != mustID("a") {
			return
		}
		files := o.Files.(memFiles)
		o.OpenImage = func(i image.Options) (*image.Image, error) {
			i.OpenFile = func() (image.File, error) {
				f, err := files.image(i.Path)
				return &badSector{f, lo, lo + 4096, bad}, err
			}
			return image.Open(i)
		}
	}
	return c, disks
}

func passBadSector(t *testing.T, servers int) {
	const lo = 40 << 10
	var bad atomic.Bool
	c, disks := onBadSector(t, servers, lo, &bad)
	for i := range servers {
		c.start(i)
	}
	defer func() {
		for i := range c.servers {
			c.kill(i)
		}
	}()
	cl := c.connect(0, "client")
	defer cl.Close()
	cl.write(0, bytes.Repeat([]byte("1"), 1<<20))
	c.awaitHealthy(0, servers-1)
	cl.wantRead(lo, bytes.Repeat([]byte("1"), 4096)) // it is in the image, not on the way there

	last := servers - 1
	c.stop(last, false)
	bad.Store(true)
	if err := c.forget(0, c.addrs[last].ID.String(), servers == 2); err != nil {
		t.Fatal(err)
	}
	disks[last] = vfs.NewCrashableMem()
	c.start(last)
	st := c.await(0, "name what stops the resync", func(s VolumeStatus) bool { return strings.Contains(s.Reason, "cannot pass") })
	if !strings.Contains(st.Reason, "[40960,45056)") || !strings.Contains(st.Reason, syscall.EIO.Error()) {
		t.Errorf("the reason does not name the 4096 bytes at %d and why: %s", lo, st.Reason)
	}
	if servers == 3 {
		if !strings.Contains(st.Next, "promote b") {
			t.Errorf("next is %q, want b to be promoted", st.Next)
		}
		return
	}
	if !strings.Contains(st.Next, "write over") {
		t.Errorf("next is %q", st.Next)
	}
	if err := cl.ReadAt(t.Context(), make([]byte, 4096), lo); !errors.Is(err, syscall.EIO) {
		t.Errorf("read of the bad sector: %v", err)
	}
	cl.write(lo, bytes.Repeat([]byte("2"), 4096))
	st = c.await(0, "the resync to end", func(s VolumeStatus) bool { return slices.Contains(s.InSync, "b") })
	if strings.Contains(st.Reason, "cannot pass") {
		t.Errorf("it has passed, and the reason is %q", st.Reason)
	}
	c.equalImages(0, 1)
}

// A master that could not read its image answered nothing, and verify asked for ever.
func TestVerifyEndsWhenTheMasterCannotReadItsImage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var bad atomic.Bool
		c, _ := onBadSector(t, 2, 40<<10, &bad)
		c.start(0, 1)
		defer func() { c.kill(0); c.kill(1) }()
		cl := c.connect(0, "client")
		defer cl.Close()
		cl.write(0, bytes.Repeat([]byte("1"), 1<<20))
		c.awaitHealthy(0, 1)
		cl.wantRead(0, []byte("1")) // it is in the image, not on the way there
		bad.Store(true)
		ctx, cancel := context.WithTimeout(t.Context(), 2*verifyAsks*resyncAgain)
		defer cancel()
		if _, err := c.vol(1).verify(ctx, false); !errors.Is(err, replica.ErrTimeout) {
			t.Errorf("verify against an image that cannot be read: %v", err)
		}
	})
}
