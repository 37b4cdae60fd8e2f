package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/zeebo/xxh3"

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

// A bad block at the end of a log's last table hid how far the log went: it was not
// salvaged, and the server did not start.
// A newer program's state was taken for a damaged one, and salvaged, where the name of the
// format, which would have kept this one away, could not be read.
func TestStateOfANewerVersionIsNoDamage(t *testing.T) {
	o := options(t, vfs.NewMem())
	j := mustOpen(t, o)
	mustWrite(t, mustLog(t, j, vol1), Batch{Records: chain(vol1, record.Pos{}, 10, 1000)})
	key := volumeKey(keyState, vol1)
	b, closer, err := j.db.Get(key)
	if err != nil {
		t.Fatal(err)
	}
	newer := bytes.Clone(b[:len(b)-8])
	newer[0] = stateVersion + 1
	newer = binary.LittleEndian.AppendUint64(newer, xxh3.Hash(newer))
	if err := errors.Join(closer.Close(), j.db.Set(key, newer, pebble.Sync)); err != nil {
		t.Fatal(err)
	}
	mustClose(t, j)
	j = mustOpen(t, o)
	defer mustClose(t, j)
	l, err := j.Log(vol1)
	var c *CorruptError
	if l != nil || !errors.Is(err, record.ErrVersion) || errors.As(err, &c) {
		t.Errorf("Log: %v, want ErrVersion, no damage and nothing to salvage", err)
	}
	if got, closer, err := j.db.Get(key); err != nil || !bytes.Equal(got, newer) {
		t.Errorf("the state is %x, %v, want %x", got, err, newer)
	} else {
		closer.Close()
	}
}

func TestSalvageEndsALogBeforeABadBlock(t *testing.T) {
	for name, c := range map[string]struct{ kept, count, trim int }{
		"in the second segment":      {30, 20, 0},
		"nearly all of a segment":    {30, 2, 0},
		"trimmed into the block":     {30, 20, 49},
		"in the first segment":       {50, 0, 0},
		"of a log in its only block": {1, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			fs := vfs.NewMem()
			o := options(t, fs)
			o.Logger = nil
			j := mustOpen(t, o)
			l := mustLog(t, j, vol1)
			recs := chain(vol1, record.Pos{}, c.kept, 3000)
			mustWrite(t, l, Batch{Records: recs})
			if c.count > 0 {
				aside := chain(vol1, recs[c.kept-1].Pos(), 7, 3000)
				mustWrite(t, l, Batch{Records: aside})
				recs = append(recs, chainOf(vol1, recs[c.kept-1].Pos(), c.count, 3000, 2)...)
				mustWrite(t, l, Batch{Cut: &Cut{After: recs[c.kept-1].Pos(), Quarantine: "q"}, Records: recs[c.kept:]})
			}
			if err := l.Trim(record.Seq(c.trim)); err != nil {
				t.Fatal(err)
			}
			mustWrite(t, l, Batch{})
			if err := j.db.Flush(); err != nil {
				t.Fatal(err)
			}
			mustClose(t, j)
			n := record.Seq(len(recs))
			flipInTables(t, fs, o.Dir, recs[n-1].StoredPayload()[:64])

			j = mustOpen(t, o)
			l, err := j.Log(vol1)
			wantCorrupt(t, err, n)
			pos, err := l.Salvage(Cut{Quarantine: "end"}, nil)
			if err != nil || pos.Seq >= n || pos.Seq+4 < n || pos.Seq > 0 && pos != recs[pos.Seq-1].Pos() {
				t.Fatalf("Salvage: %s, %v, want at most 4 before %d", pos, err, n)
			}
			fresh := chainOf(vol1, pos, 10, 1000, 3)
			mustWrite(t, l, Batch{Records: fresh})
			begin := record.Pos{}
			if c.trim > 0 {
				begin = recs[min(c.trim, int(pos.Seq))-1].Pos()
			}
			for range 2 {
				checkHolds(t, l, begin, append(recs[begin.Seq:pos.Seq:pos.Seq], fresh...))
				qs, err := l.Quarantines()
				if err != nil || qs[0].Name != "end" || qs[0].After != pos || qs[0].Last.Seq != n {
					t.Errorf("Quarantines: %+v, %v", qs, err)
				}
				mustClose(t, j)
				j = mustOpen(t, o)
				l = mustLog(t, j, vol1)
			}
		})
	}
}

// Where neither the state nor the keys can be read nobody knows what is there: nothing
// may be written over it.
func TestDamagedStateBesideABadBlockIsLeftAlone(t *testing.T) {
	fs := vfs.NewMem()
	o := options(t, fs)
	o.Logger = nil
	j := mustOpen(t, o)
	l := mustLog(t, j, vol1)
	recs := chain(vol1, record.Pos{}, 50, 3000)
	mustWrite(t, l, Batch{Records: recs})
	spoilState(t, l)
	if err := j.db.Flush(); err != nil {
		t.Fatal(err)
	}
	mustClose(t, j)
	flipInTables(t, fs, o.Dir, recs[49].StoredPayload()[:64])
	for range 2 {
		j = mustOpen(t, o)
		l, err := j.Log(vol1)
		var c *CorruptError
		if l != nil || err == nil || errors.As(err, &c) {
			t.Errorf("Log: %v, %v, want neither a log nor a CorruptError", l, err)
		}
		if rec, _, err := j.getRecord(vol1, 1, 40); err != nil || rec.Pos() != recs[39].Pos() {
			t.Errorf("record 40: %v", err)
		}
		mustClose(t, j)
	}
}

// The same in the middle: what can be listed is not all.
func TestDamagedStateBesideABadBlockBelowIsLeftAlone(t *testing.T) {
	fs := vfs.NewMem()
	o := options(t, fs)
	o.Logger = nil
	j := mustOpen(t, o)
	l := mustLog(t, j, vol1)
	recs := chain(vol1, record.Pos{}, 50, 3000)
	mustWrite(t, l, Batch{Records: recs})
	spoilState(t, l)
	if err := j.db.Flush(); err != nil {
		t.Fatal(err)
	}
	mustClose(t, j)
	flipInTables(t, fs, o.Dir, recs[0].StoredPayload()[:64])
	j = mustOpen(t, o)
	l, err := j.Log(vol1)
	wantCorrupt(t, err, 0)
	if pos, err := l.Salvage(Cut{Quarantine: "end"}, nil); err == nil {
		t.Errorf("Salvage: %s", pos)
	}
	if rec, _, err := j.getRecord(vol1, 1, 40); err != nil || rec.Pos() != recs[39].Pos() {
		t.Errorf("record 40: %v", err)
	}
}
