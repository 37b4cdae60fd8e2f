package journal

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/blockrepl/blockrepl/journal/record"
)

// What was trimmed before the journal was opened was freed up to the end of the
// volume's keys: records written before the janitor came to it went as well.
func TestSweptRangeSparesWhatIsWrittenAfterTheOpening(t *testing.T) {
	o := options(t, vfs.NewMem())
	j := mustOpen(t, o)
	l := mustLog(t, j, vol1)
	old := chain(vol1, record.Pos{}, 50, 1000)
	mustWrite(t, l, Batch{Records: old})
	if err := j.db.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := l.Trim(50); err != nil {
		t.Fatal(err)
	}
	mustClose(t, j)

	j = mustOpen(t, o)
	j.janitor.stop() // it comes late
	l = mustLog(t, j, vol1)
	if len(j.janitor.spans) == 0 {
		t.Fatal("nothing was left to sweep")
	}
	fresh := chain(vol1, old[49].Pos(), 5, 1000)
	mustWrite(t, l, Batch{Records: fresh})
	j.janitor.excise(t.Context(), j)
	checkHolds(t, l, old[49].Pos(), fresh)
}

// A Reset of a log whose end was damaged left the new records among what was to be
// freed.
func TestResetOfADamagedLogSparesTheNewRecords(t *testing.T) {
	o := options(t, vfs.NewMem())
	o.Logger = nil
	j := mustOpen(t, o)
	l := mustLog(t, j, vol1)
	mustWrite(t, l, Batch{Records: chain(vol1, record.Pos{}, 50, 1000)})
	spoil(t, l, 50, offsetLen+30)
	mustClose(t, j)

	j = mustOpen(t, o)
	l, err := j.Log(vol1)
	wantCorrupt(t, err, 50)
	begin := record.Pos{Seq: 7, Sum: 7}
	fresh := chain(vol1, begin, 1000, 1000) // more than a memtable, so that it pays to free
	mustWrite(t, l, Batch{Reset: &begin, Records: fresh})
	for range 2 {
		if err := j.db.Flush(); err != nil {
			t.Fatal(err)
		}
		mustWrite(t, l, Batch{Meta: []MetaOp{{"k", []byte("v")}}})
	}
	j.janitor.stop()
	j.janitor.excise(t.Context(), j)
	checkHolds(t, l, begin, fresh)
}

// A volume that was dropped and came again lost what it wrote before the janitor
// had freed the old records.
func TestDroppedVolumeMayComeAgainAtOnce(t *testing.T) {
	j := mustOpen(t, options(t, vfs.NewMem()))
	mustWrite(t, mustLog(t, j, vol1), Batch{Records: chain(vol1, record.Pos{}, 50, 1000)})
	j.janitor.stop() // it comes late
	if err := j.DropVolume(vol1); err != nil {
		t.Fatal(err)
	}
	l := mustLog(t, j, vol1)
	fresh := chain(vol1, record.Pos{}, 5, 1000)
	mustWrite(t, l, Batch{Records: fresh})
	j.janitor.excise(t.Context(), j)
	checkHolds(t, l, record.Pos{}, fresh)
}
