package journal

import (
	"errors"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/blockrepl/blockrepl/journal/record"
)

func TestSalvageEndsALogAtItsLastWholeRecord(t *testing.T) {
	for name, c := range map[string]struct {
		damaged []record.Seq // of 1..50, in segments 1..30 and 31..50, trimmed through 10
		end     int
	}{
		"last":                 {[]record.Seq{50}, 49},
		"some":                 {[]record.Seq{48, 49, 50}, 47},
		"with a whole between": {[]record.Seq{48, 50}, 49},
		"a segment":            {seqs(31, 50), 30},
		"over the border":      {seqs(25, 50), 24},
		"all":                  {seqs(11, 50), 10},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t, vfs.NewMem())
			o.Logger = nil
			j := mustOpen(t, o)
			l := mustLog(t, j, vol1)
			aside := chain(vol1, record.Pos{}, 40, 1000)
			mustWrite(t, l, Batch{Records: aside})
			recs := append(aside[:30:30], chainOf(vol1, aside[29].Pos(), 20, 1000, 2)...)
			mustWrite(t, l, Batch{Cut: &Cut{After: aside[29].Pos(), Quarantine: "q"}, Records: recs[30:]})
			if err := l.Trim(10); err != nil {
				t.Fatal(err)
			}
			mustWrite(t, l, Batch{})
			for _, seq := range c.damaged {
				spoil(t, l, seq, offsetLen+30)
			}
			mustClose(t, j)

			j = mustOpen(t, o)
			l, err := j.Log(vol1)
			wantCorrupt(t, err, 50)
			end := recs[c.end-1].Pos()
			if got, err := l.Salvage(Cut{Quarantine: "end", Reason: "damaged"}, []MetaOp{{"k", []byte("v")}}); got != end || err != nil {
				t.Fatalf("Salvage: %s, %v, want %s", got, err, end)
			}
			fresh := chainOf(vol1, end, 30, 1000, 3)
			mustWrite(t, l, Batch{Records: fresh})
			want := append(recs[10:c.end:c.end], fresh...)
			for range 2 {
				for _, d := range l.Damage() { // what was not at the end is mended as ever
					if err := l.Replace(recs[d.Seq-1]); err != nil {
						t.Fatal(err)
					}
				}
				checkHolds(t, l, recs[9].Pos(), want)
				checkQuarantine(t, l, "q", aside[30:])
				qs, err := l.Quarantines()
				if err != nil || len(qs) != 2 || qs[0].Name != "end" || qs[0].After != end || qs[0].Last.Seq != 50 {
					t.Errorf("Quarantines: %+v, %v", qs, err)
				}
				if v, _, err := l.Meta("k"); string(v) != "v" || err != nil {
					t.Errorf("Meta = %q, %v", v, err)
				}
				mustClose(t, j)
				j = mustOpen(t, o)
				l = mustLog(t, j, vol1)
			}
		})
	}
}

func seqs(first, last record.Seq) (out []record.Seq) {
	for ; first <= last; first++ {
		out = append(out, first)
	}
	return out
}

func TestSalvageLeavesADamagedStateAlone(t *testing.T) {
	o := options(t, vfs.NewMem())
	o.Logger = nil
	j := mustOpen(t, o)
	l := mustLog(t, j, vol1)
	mustWrite(t, l, Batch{Records: chain(vol1, record.Pos{}, 5, 1000)})
	spoilState(t, l)
	mustClose(t, j)
	j = mustOpen(t, o)
	l, err := j.Log(vol1)
	wantCorrupt(t, err, 0)
	var c *CorruptError
	if _, err := l.Salvage(Cut{Quarantine: "end"}, nil); !errors.As(err, &c) {
		t.Errorf("Salvage: %v, want a CorruptError", err)
	}
}
