package journal

import (
	"bytes"
	"errors"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/blockrepl/blockrepl/journal/record"
)

func checkQuarantine(t *testing.T, l *Log, name string, want []*record.Record) {
	t.Helper()
	i := 0
	err := l.ReadQuarantine(name, func(r *record.Record) error {
		if i >= len(want) || !bytes.Equal(r.Raw, want[i].Raw) {
			t.Errorf("quarantine %q: record %d differs", name, r.Seq)
		}
		i++
		return nil
	})
	if err != nil || i != len(want) {
		t.Errorf("quarantine %q: %d records, %v, want %d", name, i, err, len(want))
	}
}

func TestCutTailIsSetAsideAndTheLogGoesOn(t *testing.T) {
	o := options(t, vfs.NewMem())
	j := mustOpen(t, o)
	l := mustLog(t, j, vol1)
	a := chain(vol1, record.Pos{}, 60, 2000)
	mustWrite(t, l, Batch{Records: a})
	b := chainOf(vol1, a[39].Pos(), 30, 2000, 2)
	mustWrite(t, l, Batch{
		Cut: &Cut{After: a[39].Pos(), Quarantine: "1.a", Reason: "diverged", Time: 7}, Records: b, Meta: []MetaOp{{"k", []byte("v")}},
	})
	all := append(a[:40:40], b...)
	checkHolds(t, l, record.Pos{}, all)
	checkQuarantine(t, l, "1.a", a[40:])

	// A second cut reaches back over the first: its tail has two segments.
	c := chainOf(vol1, a[29].Pos(), 5, 2000, 3)
	mustWrite(t, l, Batch{Cut: &Cut{After: a[29].Pos(), Quarantine: "2.a"}, Records: c})
	checkQuarantine(t, l, "2.a", all[30:])
	if _, err := l.Write(Batch{Cut: &Cut{After: c[1].Pos(), Quarantine: "2.a"}}); !errors.Is(err, ErrQuarantineExists) {
		t.Errorf("name in use: %v, want ErrQuarantineExists", err)
	}
	d := chainOf(vol1, c[1].Pos(), 4, 2000, 4)
	mustWrite(t, l, Batch{Cut: &Cut{After: c[1].Pos()}, Records: d}) // set aside nowhere
	all = append(append(a[:30:30], c[:2]...), d...)

	for range 2 {
		checkHolds(t, l, record.Pos{}, all)
		checkQuarantine(t, l, "1.a", a[40:])
		qs, err := l.Quarantines()
		want := Quarantine{Name: "1.a", After: a[39].Pos(), Last: a[59].Pos(), Bytes: bytesOf(a[40:]), Reason: "diverged", Time: 7}
		if err != nil || len(qs) != 2 || qs[0] != want {
			t.Errorf("Quarantines = %+v, %v", qs, err)
		}
		rep, err := l.Verify(t.Context(), nil)
		if err != nil || rep.Err() != nil || rep.Records != int64(len(all)) || rep.Quarantined != 20+40 {
			t.Errorf("Verify: %+v, %v, %v", rep, rep.Err(), err)
		}
		mustClose(t, j)
		j = mustOpen(t, o)
		l = mustLog(t, j, vol1)
	}

	if err := l.Trim(all[len(all)-1].Seq - 1); err != nil {
		t.Fatal(err)
	}
	checkQuarantine(t, l, "1.a", a[40:])
	if err := l.DropQuarantine("1.a"); err != nil {
		t.Fatal(err)
	}
	if err := l.DropQuarantine("1.a"); !errors.Is(err, ErrNoQuarantine) {
		t.Errorf("second drop: %v, want ErrNoQuarantine", err)
	}
	if err := l.ReadQuarantine("1.a", nil); !errors.Is(err, ErrNoQuarantine) {
		t.Errorf("read of a dropped one: %v, want ErrNoQuarantine", err)
	}
	checkHolds(t, l, all[len(all)-2].Pos(), all[len(all)-1:])
}

func TestCutToTheBeginAndCutOfNothing(t *testing.T) {
	o := options(t, vfs.NewMem())
	j := mustOpen(t, o)
	l := mustLog(t, j, vol1)
	a := chain(vol1, record.Pos{}, 20, 500)
	mustWrite(t, l, Batch{Records: a})
	mustWrite(t, l, Batch{Cut: &Cut{After: a[19].Pos(), Quarantine: "none"}})
	if qs, err := l.Quarantines(); len(qs) != 0 || err != nil {
		t.Errorf("a cut of nothing made quarantines %v, %v", qs, err)
	}
	if err := l.Trim(10); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, l, Batch{Cut: &Cut{After: a[9].Pos(), Quarantine: "all"}})
	checkHolds(t, l, a[9].Pos(), nil)
	mustClose(t, j)
	l = mustLog(t, mustOpen(t, o), vol1)
	checkHolds(t, l, a[9].Pos(), nil)
	checkQuarantine(t, l, "all", a[10:])
	if _, err := l.Write(Batch{Cut: &Cut{After: a[4].Pos()}}); !errors.Is(err, ErrTrimmed) {
		t.Errorf("cut below the begin: %v, want ErrTrimmed", err)
	}
}

func TestResetBeginsBehindThePosition(t *testing.T) {
	o := options(t, vfs.NewMem())
	j := mustOpen(t, o)
	l := mustLog(t, j, vol1)
	a := chain(vol1, record.Pos{}, 50, 1500)
	mustWrite(t, l, Batch{Records: a})
	mustWrite(t, l, Batch{Cut: &Cut{After: a[39].Pos(), Quarantine: "q"}})
	for _, begin := range []record.Pos{{Seq: 1000, Sum: 77}, {Seq: 12, Sum: 5}, {}} {
		b := chainOf(vol1, begin, 10, 1500, 9)
		mustWrite(t, l, Batch{Reset: &begin, Records: b, Meta: []MetaOp{{"m", []byte("1")}}})
		checkHolds(t, l, begin, b)
		mustClose(t, j)
		j = mustOpen(t, o)
		l = mustLog(t, j, vol1)
		checkHolds(t, l, begin, b)
		checkQuarantine(t, l, "q", a[40:])
	}
}

// A server that lost a split brain keeps its own records when its journal begins
// anew for the winner's image.
func TestCutBesideResetSetsTheTailAside(t *testing.T) {
	for _, trimmed := range []bool{false, true} {
		o := options(t, vfs.NewMem())
		j := mustOpen(t, o)
		l := mustLog(t, j, vol1)
		a := chain(vol1, record.Pos{}, 50, 1500)
		mustWrite(t, l, Batch{Records: a})
		after := a[39].Pos()
		if trimmed { // all that both sides have in common is gone here
			if err := l.Trim(after.Seq); err != nil {
				t.Fatal(err)
			}
		}
		begin := record.Pos{Seq: 45, Sum: 77}
		b := chainOf(vol1, begin, 10, 1500, 9)
		mustWrite(t, l, Batch{Cut: &Cut{After: after, Quarantine: "q"}, Reset: &begin, Records: b})
		for range 2 {
			checkHolds(t, l, begin, b)
			checkQuarantine(t, l, "q", a[40:])
			if rep, err := l.Verify(t.Context(), nil); err != nil || rep.Err() != nil || rep.Quarantined != 10 {
				t.Errorf("Verify: %+v, %v", rep, err)
			}
			mustClose(t, j)
			j = mustOpen(t, o)
			l = mustLog(t, j, vol1)
		}
		mustClose(t, j)
	}
}

// A sender that was reading what another server's past took the place of took it for damage, and the master that this
// server became later was told, late, of a record that could not be read.
func TestReadOfWhatIsCutMeanwhileIsNoDamage(t *testing.T) {
	l := mustLog(t, mustOpen(t, options(t, vfs.NewMem())), vol1)
	recs := chain(vol1, record.Pos{}, 100, 3000)
	mustWrite(t, l, Batch{Records: recs})
	other := chainOf(vol1, recs[9].Pos(), 100, 3000, 2)
	cut := false
	next, err := l.Read(1, 100, 1<<20, func(r *record.Record) error {
		if !cut {
			cut = true
			mustWrite(t, l, Batch{Cut: &Cut{After: recs[9].Pos()}, Records: other})
		}
		return nil
	})
	var c *CorruptError
	if !errors.Is(err, ErrNotYet) || errors.As(err, &c) {
		t.Errorf("Read stopped at %d: %v, want ErrNotYet", next, err)
	}
	checkHolds(t, l, record.Pos{}, append(recs[:10:10], other...))
}

// The record that a cut was to be made behind had a damaged header: the write failed, and
// with it the server, at each start.
func TestCutBehindADamagedRecord(t *testing.T) {
	o := options(t, vfs.NewMem())
	o.Logger = nil
	j := mustOpen(t, o)
	l := mustLog(t, j, vol1)
	recs := chain(vol1, record.Pos{}, 20, 1000)
	mustWrite(t, l, Batch{Records: recs})
	spoil(t, l, 10, offsetLen+8)
	other := chainOf(vol1, recs[9].Pos(), 5, 1000, 2)
	mustWrite(t, l, Batch{Cut: &Cut{After: recs[9].Pos(), Quarantine: "q"}, Records: other})
	for range 2 {
		if err := l.Replace(recs[9]); err != nil {
			t.Fatal(err)
		}
		checkHolds(t, l, record.Pos{}, append(recs[:10:10], other...))
		checkQuarantine(t, l, "q", recs[10:])
		mustClose(t, j)
		j = mustOpen(t, o)
		l = mustLog(t, j, vol1)
	}
	mustClose(t, j)
}
