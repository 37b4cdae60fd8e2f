package blockrepl

import (
	"bytes"
	"os"
	"sync/atomic"
	"testing"

	"github.com/blockrepl/blockrepl/blockrepl/image"
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
