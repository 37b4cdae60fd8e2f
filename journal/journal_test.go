package journal

import (
	"bytes"
	"errors"
	"io/fs"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/blockrepl/blockrepl/journal/record"
)

func TestRecordsAndMetaAreThereAfterReopen(t *testing.T) {
	o := options(t, vfs.NewMem())
	j := mustOpen(t, o)
	l := mustLog(t, j, vol1)
	checkHolds(t, l, record.Pos{}, nil)
	recs := chain(vol1, record.Pos{}, 100, 4096)
	mustWrite(t, l, Batch{Records: recs[:40], Meta: []MetaOp{{"state", []byte("one")}, {"gone", []byte("x")}}})
	mustWrite(t, l, Batch{Records: recs[40:], Meta: []MetaOp{{"state", []byte("two")}, {"gone", nil}, {"empty", []byte{}}}})
	checkHolds(t, l, record.Pos{}, recs)
	mustClose(t, j)

	j = mustOpen(t, o)
	l = mustLog(t, j, vol1)
	checkHolds(t, l, record.Pos{}, recs)
	if v, ok, err := l.Meta("state"); string(v) != "two" || !ok || err != nil {
		t.Errorf("Meta(state) = %q, %t, %v", v, ok, err)
	}
	if _, ok, err := l.Meta("gone"); ok || err != nil {
		t.Errorf("Meta(gone) = %t, %v", ok, err)
	}
	if all, err := l.MetaAll(); len(all) != 2 || err != nil {
		t.Errorf("MetaAll gave %d values, %v", len(all), err)
	}
	if vs, err := j.Volumes(); len(vs) != 1 || vs[0] != vol1 || err != nil {
		t.Errorf("Volumes = %v, %v", vs, err)
	}
}

func TestManyVolumesDoNotSeeEachOther(t *testing.T) {
	o := options(t, vfs.NewMem())
	j := mustOpen(t, o)
	var vols []record.VolumeID
	want := map[record.VolumeID][]*record.Record{}
	for i := range 40 {
		v := record.VolumeID{0xff, 0xff, byte(i)}
		vols = append(vols, v)
		want[v] = chain(v, record.Pos{}, 20+i, 1000)
		mustWrite(t, mustLog(t, j, v), Batch{Records: want[v], Meta: []MetaOp{{"n", []byte{byte(i)}}}})
	}
	if err := mustLog(t, j, vols[3]).Trim(7); err != nil {
		t.Fatal(err)
	}
	if err := j.DropVolume(vols[5]); err != nil {
		t.Fatal(err)
	}
	mustClose(t, j)
	j = mustOpen(t, o)
	if got, err := j.Volumes(); len(got) != 39 || err != nil {
		t.Errorf("Volumes gave %d, %v, want 39", len(got), err)
	}
	for i, v := range vols {
		begin, recs := record.Pos{}, want[v]
		switch i {
		case 3:
			begin, recs = recs[6].Pos(), recs[7:]
		case 5:
			recs = nil
		}
		checkHolds(t, mustLog(t, j, v), begin, recs)
	}
}

func TestOneProcessAtATime(t *testing.T) {
	o := options(t, vfs.Default)
	o.Dir = t.TempDir()
	j := mustOpen(t, o)
	if _, err := Open(o); err == nil {
		t.Error("a second Open succeeded")
	}
	mustWrite(t, mustLog(t, j, vol1), Batch{Records: chain(vol1, record.Pos{}, 3, 100)})
	mustClose(t, j)

	mem := options(t, vfs.NewMem())
	mustOpen(t, mem)
	if _, err := Open(mem); !errors.Is(err, ErrLocked) {
		t.Errorf("second Open: %v, want ErrLocked", err)
	}
}

func TestReadOnlyLooksAndDoesNotTouch(t *testing.T) {
	o := options(t, vfs.NewMem())
	if _, err := OpenReadOnly(o); err == nil {
		t.Error("OpenReadOnly made a journal")
	}
	if err := o.FS.MkdirAll(o.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 { // empty; then with the lock file that the first look left
		if _, err := OpenReadOnly(o); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("OpenReadOnly of an empty directory: %v, want %v", err, fs.ErrNotExist)
		}
	}
	j := mustOpen(t, o)
	recs := chain(vol1, record.Pos{}, 10, 500)
	mustWrite(t, mustLog(t, j, vol1), Batch{Records: recs})
	mustClose(t, j)
	creating, err := o.FS.Create(o.FS.PathJoin(o.Dir, creatingName), vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	creating.Close()
	if _, err := OpenReadOnly(o); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("OpenReadOnly of a creation that was cut short: %v, want %v", err, fs.ErrNotExist)
	}
	if err := o.FS.Remove(o.FS.PathJoin(o.Dir, creatingName)); err != nil {
		t.Fatal(err)
	}
	j, err = OpenReadOnly(o)
	if err != nil {
		t.Fatal(err)
	}
	l := mustLog(t, j, vol1)
	checkHolds(t, l, record.Pos{}, recs)
	if _, err := l.Write(Batch{}); !errors.Is(err, ErrReadOnly) {
		t.Errorf("Write: %v, want ErrReadOnly", err)
	}
	if err := l.Trim(3); !errors.Is(err, ErrReadOnly) {
		t.Errorf("Trim: %v, want ErrReadOnly", err)
	}
	if _, err := j.Log(vol2); !errors.Is(err, ErrNoVolume) {
		t.Errorf("Log of an unknown volume: %v, want ErrNoVolume", err)
	}
	mustClose(t, j)
}

func TestForeignDatabaseIsRefused(t *testing.T) {
	for name, key := range map[string]string{"another version": string(keyFormat), "no format": "x"} {
		o := options(t, vfs.NewMem())
		db, err := pebble.Open(o.Dir, &pebble.Options{FS: o.FS})
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Set([]byte(key), []byte("blockrepl journal 9"), pebble.Sync); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(o); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v, want ErrFormat", name, err)
		}
	}
}

func TestWhatDoesNotFollowIsRefusedAndLeavesNothing(t *testing.T) {
	j := mustOpen(t, options(t, vfs.NewMem()))
	l := mustLog(t, j, vol1)
	recs := chain(vol1, record.Pos{}, 6, 300)
	mustWrite(t, l, Batch{Records: recs[:3]})
	other := chainOf(vol1, recs[0].Pos(), 3, 300, 2)
	for name, b := range map[string]Batch{
		"gap":            {Records: recs[4:]},
		"duplicate":      {Records: recs[2:]},
		"another past":   {Records: other[2:]},
		"hole inside":    {Records: []*record.Record{recs[3], recs[5]}},
		"other volume":   {Records: chain(vol2, recs[2].Pos(), 1, 300)},
		"draft":          {Records: []*record.Record{record.NewZero(0, 1)}},
		"reset nowhere":  {Reset: &record.Pos{Sum: 1}},
		"cut off":        {Cut: &Cut{After: record.Pos{Seq: 9, Sum: 1}}},
		"cut elsewhere":  {Cut: &Cut{After: record.Pos{Seq: 2, Sum: 1}}},
		"meta key empty": {Meta: []MetaOp{{"", []byte("x")}}},
		"meta too large": {Meta: []MetaOp{{"k", make([]byte, MetaValueMax+1)}}},
		"long name":      {Cut: &Cut{After: recs[1].Pos(), Quarantine: string(make([]byte, QuarantineNameMax+1))}},
	} {
		if b.Meta == nil {
			b.Meta = []MetaOp{{"trace", []byte("x")}}
		}
		if _, err := l.Write(b); err == nil {
			t.Errorf("%s: written", name)
		}
	}
	var gap *GapError
	if _, err := l.Write(Batch{Records: recs[4:]}); !errors.As(err, &gap) || gap.Last != recs[2].Pos() || gap.Got.Seq != 5 {
		t.Errorf("gap: %v, want a GapError behind 3 about 5", err)
	}
	if _, ok, err := l.Meta("trace"); ok || err != nil {
		t.Errorf("a refused batch left meta, %v", err)
	}
	checkHolds(t, l, record.Pos{}, recs[:3])
	mustWrite(t, l, Batch{Records: recs[3:]})
	checkHolds(t, l, record.Pos{}, recs)
}

func TestLargestRecordsAndBatchesAreKept(t *testing.T) {
	o := options(t, vfs.NewMem())
	o.MemTableBytes = 0 // the real one
	j := mustOpen(t, o)
	l := mustLog(t, j, vol1)
	recs := chain(vol1, record.Pos{}, 1, record.MaxPayload)
	if recs[0].Codec != record.CodecNone {
		t.Fatal("the payload was compressed; the test wants the largest record")
	}
	recs = append(recs, chain(vol1, recs[0].Pos(), 1, 100)...)
	recs = append(recs, chain(vol1, recs[1].Pos(), 1, record.MaxPayload)...)
	recs = append(recs, chain(vol1, recs[2].Pos(), 8, 3<<20)...)
	mustWrite(t, l, Batch{Records: recs[:1]})
	mustWrite(t, l, Batch{Records: recs[1:], Meta: []MetaOp{{"k", []byte("v")}}})
	checkHolds(t, l, record.Pos{}, recs)
	mustClose(t, j)
	j = mustOpen(t, o)
	l = mustLog(t, j, vol1)
	checkHolds(t, l, record.Pos{}, recs)
	if v, _, err := l.Meta("k"); !bytes.Equal(v, []byte("v")) || err != nil {
		t.Errorf("Meta = %q, %v", v, err)
	}
}

func TestEmptyBatchWaitsForAllBefore(t *testing.T) {
	fs := vfs.NewCrashableMem()
	o := options(t, fs)
	l := mustLog(t, mustOpen(t, o), vol1)
	recs := chain(vol1, record.Pos{}, 50, 700)
	for _, r := range recs {
		if _, err := l.Write(Batch{Records: []*record.Record{r}}); err != nil { // its Wait is never called
			t.Fatal(err)
		}
	}
	mustWrite(t, l, Batch{})
	o.FS = fs.CrashClone(vfs.CrashCloneCfg{})
	checkHolds(t, mustLog(t, mustOpen(t, o), vol1), record.Pos{}, recs)
}
