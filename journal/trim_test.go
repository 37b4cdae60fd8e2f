package journal

import (
	"errors"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/blockrepl/blockrepl/journal/record"
)

func TestTrimmedRecordsStayAwayAfterReopen(t *testing.T) {
	o := options(t, vfs.NewMem())
	j := mustOpen(t, o)
	l := mustLog(t, j, vol1)
	recs := chain(vol1, record.Pos{}, 2000, 3000)
	for i := 0; i < len(recs); i += 100 {
		mustWrite(t, l, Batch{Records: recs[i : i+100]})
		if i >= 300 {
			if err := l.Trim(record.Seq(i - 250)); err != nil {
				t.Fatal(err)
			}
			checkHolds(t, l, recs[i-251].Pos(), recs[i-250:i+100])
		}
	}
	if err := l.Trim(2001); !errors.Is(err, ErrNotYet) {
		t.Errorf("Trim behind the end: %v, want ErrNotYet", err)
	}
	if err := l.Trim(5); err != nil {
		t.Errorf("Trim of what is trimmed: %v", err)
	}
	begin := l.Begin()
	mustClose(t, j)
	j = mustOpen(t, o)
	l = mustLog(t, j, vol1)
	checkHolds(t, l, begin, recs[begin.Seq:])

	if err := l.Trim(2000); err != nil {
		t.Fatal(err)
	}
	checkHolds(t, l, recs[1999].Pos(), nil)
	mustClose(t, j)
	l = mustLog(t, mustOpen(t, o), vol1)
	checkHolds(t, l, recs[1999].Pos(), nil)
	mustWrite(t, l, Batch{Records: chain(vol1, recs[1999].Pos(), 1, 10)})
}

func TestTrimPointKeepsTheBytesAskedFor(t *testing.T) {
	l := mustLog(t, mustOpen(t, options(t, vfs.NewMem())), vol1)
	recs := chain(vol1, record.Pos{}, 300, 872) // 1000 bytes each
	mustWrite(t, l, Batch{Records: recs})
	if err := l.Trim(20); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		keep int64
		want record.Seq
	}{{1 << 40, 20}, {280_000, 20}, {279_999, 20}, {279_000, 21}, {100_000, 200}, {99_001, 200}, {1, 299}, {0, 300}} {
		if got, err := l.TrimPoint(c.keep); got != c.want || err != nil {
			t.Errorf("TrimPoint(%d) = %d, %v, want %d", c.keep, got, err, c.want)
		}
	}
}

// Freeing up to, or from, a damaged block took the rest of the table along without a
// word: records that had been acknowledged, and those of a block that was mended.
func TestFreeingBesideADamagedBlockTakesNothingElse(t *testing.T) {
	for name, c := range map[string]struct {
		bad  record.Seq
		free [2]record.Seq // [from, to)
		kept record.Seq    // which must stay
		mend bool
	}{
		"up to it":           {21, [2]record.Seq{1, 21}, 40, false},
		"into it":            {20, [2]record.Seq{1, 20}, 40, false},
		"from it on":         {20, [2]record.Seq{22, 40}, 5, false},
		"up to it, mended":   {21, [2]record.Seq{1, 21}, 40, true},
		"from it on, mended": {20, [2]record.Seq{22, 40}, 5, true},
	} {
		t.Run(name, func(t *testing.T) {
			fs := vfs.NewMem()
			o := options(t, fs)
			o.Logger = nil
			j := mustOpen(t, o)
			l := mustLog(t, j, vol1)
			recs := chain(vol1, record.Pos{}, 50, 3000)
			mustWrite(t, l, Batch{Records: recs})
			if err := j.db.Flush(); err != nil {
				t.Fatal(err)
			}
			mustClose(t, j)
			flipInTables(t, fs, o.Dir, recs[c.bad-1].StoredPayload()[:64])
			j = mustOpen(t, o)
			l = mustLog(t, j, vol1)
			for _, r := range slices.Backward(recs[c.bad-4 : c.bad+3]) {
				if !c.mend {
					break
				}
				if err := l.Replace(r); err != nil { // which leaves the block as it is
					t.Fatal(err)
				}
			}
			if err := j.db.Flush(); err != nil {
				t.Fatal(err)
			}
			err := j.free(t.Context(), span{recordKey(vol1, 1, c.free[0]), recordKey(vol1, 1, c.free[1])})
			if err == nil {
				t.Error("freed beside a damaged block")
			}
			if rec, err := l.Get(c.kept); err != nil || rec.Pos() != recs[c.kept-1].Pos() {
				t.Errorf("record %d: %v", c.kept, err)
			}
		})
	}
}
