package blockrepl

import (
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// sector is a spot of a journal's tables that cannot be read.
type sector struct {
	on   atomic.Bool
	hits atomic.Int64
}

func (s *sector) String() string { return "sector" }

func (s *sector) MaybeError(op errorfs.Op) error {
	if s.on.Load() && op.Kind == errorfs.OpFileReadAt && strings.HasSuffix(op.Path, ".sst") && op.Offset >= 1<<20 && op.Offset < 1<<20+64<<10 {
		s.hits.Add(1)
		return syscall.EIO
	}
	return nil
}

// A sector of the master's journal that could not be read closed the link of the slave
// that lacked it, again and again, and it was not resynced either, which the master's
// image could do.
func TestUnreadableSectorOfAJournalDoesNotKeepASlaveAway(t *testing.T) {
	bad := &sector{}
	c := newCluster(t, 2, nil)
	c.volume.OnDegraded = wire.Continue
	c.change = func(o *Options) {
		o.RingBytes = 1 << 20
		if o.ID != mustID("a") {
			return
		}
		o.OpenJournal = func(j journal.Options) (*journal.Journal, error) {
			j.MemTableBytes, j.ReserveBytes = 4<<20, -1
			j.FS = errorfs.Wrap(vfs.Default, bad)
			return journal.Open(j)
		}
	}
	c.start(0, 1)
	r := seeded(t)
	cl := c.connect(0, "client")
	cl.write(0, noise(r, 4096))
	c.awaitHealthy(0, 1)
	c.kill(1)
	for i := range int64(480) {
		cl.write(i%240*65536, noise(r, 65536)) // 30 MiB: most of it in tables
	}
	bad.on.Store(true)
	c.start(1)
	c.awaitHealthy(1)
	if bad.hits.Load() == 0 {
		t.Error("the sector was never read")
	}
	bad.on.Store(false)
	c.equalImages(0, 1)
}

// The same with a flipped bit, in a record that no other server had: the slave that
// lacked it was the only one who could be asked.
func TestDamagedRecordThatNobodyElseHasDoesNotKeepASlaveAway(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.volume.OnDegraded = wire.Continue
	c.change = func(o *Options) { o.RingBytes = 1 << 20 }
	c.start(0, 1)
	r := seeded(t)
	cl := c.connect(0, "client")
	cl.write(0, noise(r, 4096))
	c.awaitHealthy(0, 1)
	c.kill(1)
	for i := range int64(200) {
		cl.write(i*65536, noise(r, 65536))
	}
	c.await(0, "applied", func(s VolumeStatus) bool { return s.Applied == s.Last })
	seq := c.vol(0).log.Load().Last().Seq - 100
	c.stop(0, false) // its image has everything
	c.spoil(0, seq, func(v []byte) { v[len(v)/2] ^= 1 })
	c.start(0, 1)
	c.await(0, "the slave is resynced, and why", func(s VolumeStatus) bool {
		return s.Peers[0].State == "resync" && strings.Contains(s.Peers[0].Reason, "cannot be read")
	})
	c.awaitHealthy(1)
	c.equalImages(0, 1)
}
