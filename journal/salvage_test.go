package journal

import (
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

// Once a damaged state helped nobody but a Reset: the records were lost with it, and
// the server did not start.
func TestSalvageFindsALogWithoutItsState(t *testing.T) {
	for name, c := range map[string]struct {
		trim       record.Seq
		damaged    []record.Seq // of 1..50, in segments 1..30 and 31..50
		first, end record.Seq   // of what is found; end 0: nothing
		aside      record.Seq   // the last number that is set aside, 0: nothing is
	}{
		"whole":                          {0, nil, 1, 50, 0},
		"trimmed":                        {10, nil, 11, 50, 0},
		"into the last segment":          {40, nil, 41, 50, 0},
		"all trimmed":                    {50, nil, 0, 0, 0},
		"with a damaged end":             {10, []record.Seq{49, 50}, 11, 48, 50},
		"with a damaged record":          {10, []record.Seq{20, 40}, 11, 50, 0},
		"with a damaged link":            {10, []record.Seq{31}, 32, 50, 31},
		"with a damaged record below it": {10, []record.Seq{30}, 31, 50, 30},
		"with a damaged first":           {10, []record.Seq{11, 12}, 13, 50, 12},
		"without the last segment":       {10, seqs(31, 50), 11, 30, 50},
		"without a whole record":         {10, seqs(11, 50), 0, 0, 50},
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
			if err := l.Trim(c.trim); err != nil {
				t.Fatal(err)
			}
			mustWrite(t, l, Batch{})
			mustClose(t, j) // deletes what was trimmed
			j = mustOpen(t, o)
			l = mustLog(t, j, vol1)
			for seq := record.Seq(1); seq <= c.trim; seq++ {
				lose(t, l, seq)
			}
			for _, seq := range c.damaged {
				spoil(t, l, seq, offsetLen+30)
			}
			spoilState(t, l)
			mustClose(t, j)

			j = mustOpen(t, o)
			l, err := j.Log(vol1)
			wantCorrupt(t, err, 0)
			begin, end := record.Pos{}, record.Pos{}
			if c.first > 1 {
				begin = recs[c.first-2].Pos()
			}
			var found []*record.Record
			if c.end > 0 {
				end, found = recs[c.end-1].Pos(), recs[c.first-1:c.end:c.end]
			}
			if got, err := l.Salvage(Cut{Quarantine: "rest", Reason: "damaged"}, []MetaOp{{"k", []byte("v")}}); got != end || err != nil {
				t.Fatalf("Salvage: %s, %v, want %s", got, err, end)
			}
			fresh := chainOf(vol1, end, 30, 1000, 3)
			mustWrite(t, l, Batch{Records: fresh})
			for range 2 {
				for _, seq := range c.damaged { // what was not at the end is mended as ever
					if seq > begin.Seq && seq < end.Seq {
						if err := l.Replace(recs[seq-1]); err != nil {
							t.Fatal(err)
						}
					}
				}
				checkHolds(t, l, begin, append(found, fresh...))
				checkQuarantine(t, l, "q", aside[30:])
				qs, err := l.Quarantines()
				if n := len(qs) - 1; err != nil || n == 1 && qs[1].Last.Seq != c.aside || n != min(int(c.aside), 1) {
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
