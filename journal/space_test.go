package journal

import (
	"errors"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/blockrepl/blockrepl/journal/record"
)

func TestFullDiskRefusesClientsFirstAndRecovers(t *testing.T) {
	var free atomic.Int64
	free.Store(1 << 30)
	o := options(t, vfs.NewMem())
	o.ReserveBytes = 100 << 20
	o.FreeBytes = func() (int64, error) { return free.Load(), nil }
	j := mustOpen(t, o)
	l := mustLog(t, j, vol1)
	recs := chain(vol1, record.Pos{}, 4, 1000)
	mustWrite(t, l, Batch{Records: recs[:1]})
	if got, want := j.Free(), int64(1<<30-100<<20); got > want || got < want-(1<<20) {
		t.Errorf("Free = %d, want about %d", got, want)
	}

	free.Store(100<<20 + 500)
	j.space.full() // no old look counts
	if _, err := l.Write(Batch{Records: recs[1:2]}); !errors.Is(err, ErrNoSpace) {
		t.Errorf("client's write into the reserve: %v, want ErrNoSpace", err)
	}
	mustWrite(t, l, Batch{Records: recs[1:2], Urgent: true})
	if err := l.Trim(1); err != nil {
		t.Errorf("trim on a full disk: %v", err)
	}
	free.Store(50 << 20)
	if _, err := l.Write(Batch{Records: recs[2:3], Urgent: true}); !errors.Is(err, ErrNoSpace) {
		t.Errorf("urgent write into the second half of the reserve: %v, want ErrNoSpace", err)
	}
	if got := j.Free(); got != 0 {
		t.Errorf("Free = %d, want 0", got)
	}
	free.Store(1 << 30)
	mustWrite(t, l, Batch{Records: recs[2:]})
	checkHolds(t, l, recs[0].Pos(), recs[1:])

	trouble := errors.New("statfs")
	j.space.ask = func() (int64, error) { return 0, trouble }
	j.space.full()
	if _, err := l.Write(Batch{Records: chain(vol1, l.Last(), 1, 10)}); !errors.Is(err, trouble) {
		t.Errorf("write without a word on free space: %v", err)
	}
}

// A table that finds no room is tried again later; nothing fails and nothing is lost.
func TestFlushOntoAFullDiskIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var refuse atomic.Int64
		mem := vfs.NewMem()
		o := options(t, errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if strings.HasSuffix(op.Path, ".sst") && op.Kind.ReadOrWrite() == errorfs.OpIsWrite && op.Kind != errorfs.OpRemove && refuse.Add(-1) >= 0 {
				return syscall.ENOSPC
			}
			return nil
		})))
		o.Logger = nil
		o.MemTableBytes = 64 << 10
		j := mustOpen(t, o)
		l := mustLog(t, j, vol1)
		refuse.Store(5)
		recs := chain(vol1, record.Pos{}, 200, 3000)
		for i := range recs {
			mustWrite(t, l, Batch{Records: recs[i : i+1]})
		}
		if refuse.Load() >= 0 {
			t.Fatal("not all tables were refused that should be")
		}
		checkHolds(t, l, record.Pos{}, recs)
		mustClose(t, j)
		o.FS = mem
		j = mustOpen(t, o)
		checkHolds(t, mustLog(t, j, vol1), record.Pos{}, recs)
		mustClose(t, j)
	})
}

// What was trimmed of a volume lay in tables until it was a memtable's size: with many volumes a disk that was full stayed
// so although nobody needed what was on it, until a restart.
func TestFullDiskIsFreedOfTheLittleThatEachVolumeTrims(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const volumes, each = 6, 2 << 20
		o := options(t, vfs.NewMem())
		o.MemTableBytes = 4 << 20
		o.ReserveBytes = 10 << 20
		size, used := int64(1<<30), func() int64 { return 0 } // of the disk
		o.FreeBytes = func() (int64, error) { return size - used(), nil }
		j := mustOpen(t, o)
		defer mustClose(t, j) // within the bubble
		var logs []*Log
		for i := range volumes {
			l := mustLog(t, j, record.VolumeID{1, byte(i)})
			mustWrite(t, l, Batch{Records: chain(l.Volume(), record.Pos{}, each/3000, 3000)})
			if err := j.db.Flush(); err != nil {
				t.Fatal(err)
			}
			logs = append(logs, l)
		}
		used = j.DiskBytes
		size = used() + 6<<20
		j.space.full() // no old look counts
		if got := j.Free(); got != 0 {
			t.Fatalf("Free = %d on a full disk, want 0", got)
		}
		for _, l := range logs {
			if err := l.Trim(l.Last().Seq); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		j.space.full()
		if got := j.Free(); got < volumes*each/2 {
			t.Errorf("Free = %d after all was trimmed, want half of %d or more", got, volumes*each)
		}
	})
}
