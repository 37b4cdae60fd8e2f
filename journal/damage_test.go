package journal

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/blockrepl/blockrepl/journal/record"
)

// spoil changes one byte of a record's value behind the journal's back.
func spoil(t *testing.T, l *Log, seq record.Seq, at int) {
	t.Helper()
	k := recordKey(l.v, l.state.segmentOf(seq), seq)
	v, closer, err := l.j.db.Get(k)
	if err != nil {
		t.Fatal(err)
	}
	bad := bytes.Clone(v)
	bad[at] ^= 0x40
	if err := errors.Join(closer.Close(), l.j.db.Set(k, bad, pebble.Sync)); err != nil {
		t.Fatal(err)
	}
}

func lose(t *testing.T, l *Log, seq record.Seq) {
	t.Helper()
	if err := l.j.db.Delete(recordKey(l.v, l.state.segmentOf(seq), seq), pebble.Sync); err != nil {
		t.Fatal(err)
	}
}

func wantCorrupt(t *testing.T, err error, seq record.Seq) {
	t.Helper()
	var c *CorruptError
	if !errors.As(err, &c) || c.Seq != seq {
		t.Errorf("got %v, want a CorruptError about record %d", err, seq)
	}
}

func TestDamagedRecordIsRefusedAndReplaced(t *testing.T) {
	o := options(t, vfs.NewMem())
	j := mustOpen(t, o)
	l := mustLog(t, j, vol1)
	recs := chain(vol1, record.Pos{}, 50, 1000)
	mustWrite(t, l, Batch{Records: recs})
	spoil(t, l, 20, offsetLen+500) // payload
	spoil(t, l, 21, offsetLen+30)  // header
	lose(t, l, 33)
	for _, seq := range []record.Seq{20, 21, 33} {
		_, err := l.Get(seq)
		wantCorrupt(t, err, seq)
	}
	next, err := l.Read(1, 50, 1<<20, func(*record.Record) error { return nil })
	if wantCorrupt(t, err, 20); next != 20 {
		t.Errorf("Read stopped at %d, want 20", next)
	}
	if _, err := l.Read(30, 50, 1<<20, func(*record.Record) error { return nil }); !errors.Is(err, ErrMissing) {
		t.Errorf("Read over a hole: %v, want ErrMissing", err)
	}
	rep, err := l.Verify(t.Context(), nil)
	if err != nil || rep.Damaged != 3 || rep.Records != 47 || rep.Err() == nil {
		t.Errorf("Verify: %+v, %v, want 3 damaged and 47 whole", rep, err)
	}
	mustClose(t, j)

	j = mustOpen(t, o)
	l = mustLog(t, j, vol1)
	if d := l.Damage(); len(d) != 3 {
		t.Errorf("Damage after reopen: %v, want 3", d)
	}
	if err := l.Replace(recs[19]); err == nil {
		t.Error("record 20 was replaced while 21, the proof, is damaged")
	}
	liar := chainOf(vol1, recs[19].Pos(), 1, 1000, 9)[0]
	if err := l.Replace(liar); !errors.Is(err, ErrProof) {
		t.Errorf("Replace by another record 21: %v, want ErrProof", err)
	}
	spoiled := *recs[20]
	spoiled.Raw = bytes.Clone(recs[20].Raw)
	spoiled.Raw[900] ^= 1
	if err := l.Replace(&spoiled); !errors.Is(err, record.ErrCorrupt) {
		t.Errorf("Replace by a damaged record: %v, want ErrCorrupt", err)
	}
	for _, seq := range []record.Seq{33, 21, 20, 50} {
		if err := l.Replace(recs[seq-1]); err != nil {
			t.Fatal(err)
		}
	}
	checkHolds(t, l, record.Pos{}, recs)
	if rep, err := l.Verify(t.Context(), nil); err != nil || rep.Err() != nil || len(l.Damage()) != 0 {
		t.Errorf("Verify after repair: %v, %v, damage %v", err, rep.Err(), l.Damage())
	}
	if _, err := l.TrimPoint(1); err != nil {
		t.Error(err)
	}
}

func TestTrimPassesDamagedRecords(t *testing.T) {
	l := mustLog(t, mustOpen(t, options(t, vfs.NewMem())), vol1)
	recs := chain(vol1, record.Pos{}, 50, 1000)
	mustWrite(t, l, Batch{Records: recs})
	spoil(t, l, 20, offsetLen+30)
	if err := l.Trim(20); err != nil {
		t.Fatal(err)
	}
	checkHolds(t, l, recs[19].Pos(), recs[20:])
}

func TestDamagedEndIsNoEndAndOnlyAResetHelps(t *testing.T) {
	for name, hurt := range map[string]func(l *Log){
		"last record": func(l *Log) { spoil(t, l, 50, offsetLen+30) },
		"state":       func(l *Log) { spoilState(t, l) },
		"all lost":    func(l *Log) { loseAll(t, l) },
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t, vfs.NewMem())
			o.Logger = nil
			j := mustOpen(t, o)
			l := mustLog(t, j, vol1)
			recs := chain(vol1, record.Pos{}, 60, 1000)
			mustWrite(t, l, Batch{Records: recs, Meta: []MetaOp{{"k", []byte("v")}}})
			mustWrite(t, l, Batch{Cut: &Cut{After: recs[29].Pos(), Quarantine: "q"}, Records: chainOf(vol1, recs[29].Pos(), 20, 1000, 2)})
			hurt(l)
			mustClose(t, j)
			j = mustOpen(t, o)
			l, err := j.Log(vol1)
			var c *CorruptError
			if !errors.As(err, &c) || l == nil {
				t.Fatalf("Log: %v, want a CorruptError and the log", err)
			}
			if _, err := l.Write(Batch{Records: chain(vol1, record.Pos{}, 1, 10)}); !errors.As(err, &c) {
				t.Errorf("Write: %v, want a CorruptError", err)
			}
			if v, _, err := l.Meta("k"); string(v) != "v" || err != nil {
				t.Errorf("Meta = %q, %v", v, err)
			}
			begin := record.Pos{Seq: 7, Sum: 7}
			fresh := chain(vol1, begin, 5, 1000)
			mustWrite(t, l, Batch{Reset: &begin, Records: fresh})
			for range 2 {
				checkHolds(t, l, begin, fresh)
				checkQuarantine(t, l, "q", recs[30:])
				mustClose(t, j)
				j = mustOpen(t, o)
				l = mustLog(t, j, vol1)
			}
		})
	}
}

func spoilState(t *testing.T, l *Log) {
	t.Helper()
	b := l.state.encode()
	b[20] ^= 1
	if err := l.j.db.Set(volumeKey(keyState, l.v), b, pebble.Sync); err != nil {
		t.Fatal(err)
	}
}

// loseAll removes the new segment's records: its first number says that more was there.
func loseAll(t *testing.T, l *Log) {
	t.Helper()
	for seq := record.Seq(30); seq <= 50; seq++ {
		lose(t, l, seq)
	}
}

// A flipped bit in a table file: pebble's own checksum finds it. It hides a block
// of neighbours, which are all fetched again.
func TestFlippedBitInATableIsFoundAndRepaired(t *testing.T) {
	fs := vfs.NewMem()
	o := options(t, fs)
	o.Logger = nil
	j := mustOpen(t, o)
	l := mustLog(t, j, vol1)
	recs := chain(vol1, record.Pos{}, 100, 1000)
	mustWrite(t, l, Batch{Records: recs})
	if err := j.db.Flush(); err != nil {
		t.Fatal(err)
	}
	mustClose(t, j)
	flipInTables(t, fs, o.Dir, recs[49].StoredPayload()[:64])

	j = mustOpen(t, o)
	l = mustLog(t, j, vol1)
	_, err := l.Get(50)
	wantCorrupt(t, err, 50)
	rep, err := l.Verify(t.Context(), nil)
	if err != nil || rep.Damaged == 0 || rep.Damaged > 60 {
		t.Fatalf("Verify: %+v, %v", rep, err)
	}
	for i := len(rep.Damage) - 1; i >= 0; i-- {
		if err := l.Replace(recs[rep.Damage[i].Seq-1]); err != nil {
			t.Fatal(err)
		}
	}
	checkHolds(t, l, record.Pos{}, recs)
}

// flipInTables flips a bit where needle lies in a table file.
func flipInTables(t *testing.T, fs *vfs.MemFS, dir string, needle []byte) {
	t.Helper()
	names, err := fs.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if !strings.HasSuffix(n, ".sst") {
			continue
		}
		f, err := fs.OpenReadWrite(fs.PathJoin(dir, n), vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, info.Size())
		if _, err := f.ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
		at := bytes.Index(b, needle)
		if at >= 0 {
			if _, err := f.WriteAt([]byte{b[at] ^ 1}, int64(at)); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if at >= 0 {
			return
		}
	}
	t.Fatal("no table holds the record")
}

// A table of small keys holds old values until it is compacted. A flipped bit among them, or at the format's name, which
// is written once, kept a server from starting although each value that counts was whole in a newer table.
func TestFlippedBitAmongOldSmallKeysHidesNoVolume(t *testing.T) {
	for name, needle := range map[string]string{"format": formatName, "meta": "the old value"} {
		t.Run(name, func(t *testing.T) {
			fs := vfs.NewMem()
			o := options(t, fs)
			o.Logger = nil
			j := mustOpen(t, o)
			held := map[record.VolumeID][]*record.Record{vol1: chain(vol1, record.Pos{}, 60, 1000), vol2: chain(vol2, record.Pos{}, 60, 1000)}
			for _, values := range []struct {
				meta        string
				first, last int
			}{{"the old value", 0, 50}, {"the new value", 50, 60}} {
				for v, recs := range held {
					l := mustLog(t, j, v)
					mustWrite(t, l, Batch{Records: recs[values.first:values.last], Meta: []MetaOp{{"k", []byte(values.meta)}}})
					if err := l.Trim(record.Seq(values.last - 20)); err != nil { // the state changes too
						t.Fatal(err)
					}
					mustWrite(t, l, Batch{})
				}
				if err := j.db.Flush(); err != nil {
					t.Fatal(err)
				}
			}
			mustClose(t, j)
			flipInTables(t, fs, o.Dir, []byte(needle))
			j = mustOpen(t, o)
			if vs, err := j.Volumes(); len(vs) != 2 || !errors.Is(err, ErrIncomplete) {
				t.Errorf("Volumes: %v, %v, want two, and that there may be more", vs, err)
			}
			for v, recs := range held {
				l := mustLog(t, j, v)
				checkHolds(t, l, recs[39].Pos(), recs[40:])
				if b, _, err := l.Meta("k"); string(b) != "the new value" || err != nil {
					t.Errorf("Meta = %q, %v", b, err)
				}
				mustWrite(t, l, Batch{Records: chain(v, l.Last(), 10, 1000)})
			}
		})
	}
}

// The sum of a record that was trimmed, and that of one with a damaged payload, were said
// to be unknown when the record behind was damaged.
func TestPositionIsToldByWhateverIsWhole(t *testing.T) {
	o := options(t, vfs.NewMem())
	j := mustOpen(t, o)
	defer mustClose(t, j)
	l := mustLog(t, j, vol1)
	recs := chain(vol1, record.Pos{}, 50, 1000)
	mustWrite(t, l, Batch{Records: recs})
	if err := l.Trim(10); err != nil {
		t.Fatal(err)
	}
	spoil(t, l, 11, offsetLen+30) // header
	for _, seq := range []record.Seq{20, 21} {
		spoil(t, l, seq, offsetLen+500) // payload
	}
	for _, seq := range []record.Seq{30, 31, 49} {
		spoil(t, l, seq, offsetLen+30)
	}
	for _, seq := range []record.Seq{10, 11, 12, 20, 21, 31, 49, 50} {
		if pos, err := l.Position(seq); err != nil || pos != recs[seq-1].Pos() {
			t.Errorf("Position(%d) = %v, %v, want %v", seq, pos, err, recs[seq-1].Pos())
		}
	}
	_, err := l.Position(30)
	wantCorrupt(t, err, 30)
	if _, err := l.Position(9); !errors.Is(err, ErrTrimmed) {
		t.Errorf("Position(9): %v, want ErrTrimmed", err)
	}
	if _, err := l.Position(51); !errors.Is(err, ErrNotYet) {
		t.Errorf("Position(51): %v, want ErrNotYet", err)
	}
}

// A record that is whole, and of another past, under the key of one that was.
func TestRecordOfAnotherPastIsNotReadInTheMiddle(t *testing.T) {
	j := mustOpen(t, options(t, vfs.NewMem()))
	defer mustClose(t, j)
	l := mustLog(t, j, vol1)
	recs := chain(vol1, record.Pos{}, 5, 100)
	mustWrite(t, l, Batch{Records: recs})
	other := one(vol1, record.Pos{Seq: 2, Sum: 4711}, 100, 9)
	k := recordKey(l.v, l.state.segmentOf(3), 3)
	v, closer, err := j.db.Get(k)
	if err != nil {
		t.Fatal(err)
	}
	value := append(bytes.Clone(v[:offsetLen]), other.Raw...)
	if err := errors.Join(closer.Close(), j.db.Set(k, value, pebble.Sync)); err != nil {
		t.Fatal(err)
	}
	_, err = l.Read(1, 5, 1<<20, func(r *record.Record) error {
		if r.Seq > 2 {
			t.Errorf("record %d is given", r.Seq)
		}
		return nil
	})
	wantCorrupt(t, err, 3)
}
