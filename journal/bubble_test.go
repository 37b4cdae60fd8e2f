package journal

import (
	"testing"
	"testing/synctest"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/blockrepl/blockrepl/journal/record"
)

// The simulator runs journals in bubbles, several after each other in a process:
// all goroutines must end with Close, and nothing may be shared between bubbles.
func TestRunsInOneBubbleAfterTheOther(t *testing.T) {
	for range 3 {
		synctest.Test(t, func(t *testing.T) {
			fs := vfs.NewCrashableMem()
			o := options(t, fs)
			j := mustOpen(t, o)
			l := mustLog(t, j, vol1)
			recs := chain(vol1, record.Pos{}, 500, 3000)
			for i := 0; i < 500; i += 10 {
				mustWrite(t, l, Batch{Records: recs[i : i+10]})
				if err := l.Trim(record.Seq(i)); err != nil {
					t.Fatal(err)
				}
			}
			synctest.Wait()
			o.FS = fs.CrashClone(vfs.CrashCloneCfg{})
			mustClose(t, j)
			j = mustOpen(t, o)
			l = mustLog(t, j, vol1)
			checkHolds(t, l, l.Begin(), recs[l.Begin().Seq:])
			mustClose(t, j)
		})
	}
}

// tableBytes is what tables and the small keys in them take.
func tableBytes(j *Journal) int64 {
	m := j.db.Metrics()
	return int64(m.Table.Local.LiveSize)
}

func TestTrimFreesTables(t *testing.T) {
	const memTable = 256 << 10
	synctest.Test(t, func(t *testing.T) {
		o := options(t, vfs.NewMem())
		o.MemTableBytes = memTable
		j := mustOpen(t, o)
		l, idle := mustLog(t, j, vol1), mustLog(t, j, vol2)
		mustWrite(t, idle, Batch{Records: chain(vol2, record.Pos{}, 20, 3000)})
		for i := range 40 {
			mustWrite(t, l, Batch{Records: chain(vol1, l.Last(), 100, 3000), Meta: []MetaOp{{"k", []byte{byte(i)}}}})
		}
		synctest.Wait()
		if got := tableBytes(j); got < 11<<20 {
			t.Fatalf("tables have %d bytes; the test wants most of 12 MB in them", got)
		}
		if err := l.Trim(l.Last().Seq - 10); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := tableBytes(j); got > 3*memTable {
			t.Errorf("after the trim tables have %d bytes, want at most three memtables", got)
		}
		if rep, err := idle.Verify(t.Context(), nil); err != nil || rep.Err() != nil || rep.Records != 20 {
			t.Errorf("the other volume: %+v, %v", rep, err)
		}
		// A healthy volume trims soon: little reaches a table, and it does not add up.
		for i := range 400 {
			mustWrite(t, l, Batch{Records: chain(vol1, l.Last(), 20, 3000), Meta: []MetaOp{{"k", []byte{byte(i)}}}})
			if err := l.Trim(l.Last().Seq - 10); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if got := tableBytes(j); got > 4*memTable {
			t.Errorf("after 24 MB tables have %d bytes, want at most four memtables", got)
		}
		m := j.db.Metrics()
		if got := m.Levels[0].Sublevels; got > 2*compactEvery {
			t.Errorf("%d tables lie above each other, want at most %d", got, 2*compactEvery)
		}
		if rep, err := l.Verify(t.Context(), nil); err != nil || rep.Err() != nil || rep.Records != 10 {
			t.Errorf("Verify: %+v, %v", rep, err)
		}
		mustClose(t, j)
	})
}

func TestResetAndDropFreeTables(t *testing.T) {
	const memTable = 256 << 10
	synctest.Test(t, func(t *testing.T) {
		o := options(t, vfs.NewMem())
		o.MemTableBytes = memTable
		j := mustOpen(t, o)
		for _, v := range []record.VolumeID{vol1, vol2} {
			for range 10 {
				l := mustLog(t, j, v)
				mustWrite(t, l, Batch{Records: chain(v, l.Last(), 200, 3000)})
			}
		}
		mustWrite(t, mustLog(t, j, vol1), Batch{Reset: &record.Pos{Seq: 9, Sum: 9}})
		synctest.Wait()
		if got := tableBytes(j); got > 7<<20 {
			t.Errorf("after the reset tables have %d bytes, want those of the other volume", got)
		}
		if err := j.DropVolume(vol2); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := tableBytes(j); got > memTable {
			t.Errorf("after the drop tables have %d bytes", got)
		}
		mustClose(t, j)
	})
}
