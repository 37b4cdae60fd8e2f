package blockrepl

import (
	"bytes"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal"
	"github.com/blockrepl/blockrepl/journal/record"
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

// A slave that had to apply a record which it could not read, and which nobody else had
// any more, failed at every start, for good.
func TestDamagedRecordThatASlavesImageLacksLeadsToAResync(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.start(0, 1)
	c.awaitHealthy(0, 1)
	w := c.connect(0, "db1")
	w.writeEight()
	c.kill(1)
	c.stop(0, false) // its image has everything
	for i := range 2 {
		c.damage(i, 6)
	}
	c.start(0, 1)
	c.await(1, "not believed", func(s VolumeStatus) bool {
		return s.State == StateDiverged && strings.Contains(s.Reason, "record 6")
	})
	if err := c.forget(0, "b", true); err != nil {
		t.Fatal(err)
	}
	c.awaitHealthy(0, 1)
	c.equalImages(0, 1)
}

// Its master failed as before: whoever has the record may come back.
func TestDamagedRecordThatTheOnlyImageLacksFailsTheServer(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.start(0)
	w := c.connect(0, "db1")
	w.writeEight()
	c.kill(0)
	c.damage(0, 6)
	c.start(0)
	c.await(0, "failed", func(s VolumeStatus) bool {
		return s.State == StateFailed && strings.Contains(s.Reason, "record 6")
	})
	c.stop(0, false) // which waits for no record that is never applied
}

// A resize that the start could not read changed the image, when another server had
// given it, and not what is said and compared of the volume.
func TestDamagedResizeIsHeardOfWhenItIsApplied(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.roomy("ab", func() {})
	c.start(0, 1)
	c.awaitHealthy(0, 1)
	c.awaitLinks(0, 1)
	if _, err := c.resize(0, 2*testSize, true); err != nil {
		t.Fatal(err)
	}
	c.await(1, "resized", func(s VolumeStatus) bool { return s.SizeBytes == 2*testSize })
	w := c.connect(0, "db1")
	w.write(testSize, bytes.Repeat([]byte("1"), 4096))
	log := c.vol(1).log.Load()
	seq := log.First()
	for ; seq <= log.Last().Seq; seq++ {
		if rec, err := log.Get(seq); err == nil && rec.Kind == record.KindResize {
			break
		}
	}
	c.kill(1)
	c.damage(1, seq)
	c.start(1)
	c.awaitHealthy(0, 1)
	c.await(1, "resized again", func(s VolumeStatus) bool {
		return s.Applied == s.Last && s.SizeBytes == 2*testSize && s.Counters["records_mended"] == 1
	})
}
