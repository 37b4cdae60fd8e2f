package journal

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/blockrepl/blockrepl/journal/record"
)

var newGoldens = flag.Bool("golden.new", false, "write golden files that do not exist yet; existing ones are never changed")

// What lies under which key is what older and newer programs find. The file of
// testdata is never regenerated: another layout gets another format name.
func TestKeysAndValuesAreLaidOutAsEver(t *testing.T) {
	const path = "testdata/layout-1.txt"
	j := mustOpen(t, options(t, vfs.NewMem()))
	l := mustLog(t, j, vol1)
	zeros := func(prev record.Pos, e uint64, count int) (out []*record.Record) {
		for range count {
			r := record.NewZero(int64(prev.Seq)*4096, 4096)
			r.Volume = vol1
			r.Seal(record.Epoch{Counter: e, Server: epoch.Server}, prev, 1_700_000_000_000_000_000)
			out, prev = append(out, r), r.Pos()
		}
		return out
	}
	a := zeros(record.Pos{}, 1, 5)
	mustWrite(t, l, Batch{Records: a, Meta: []MetaOp{{"hard", []byte("state c")}}})
	if err := l.Trim(2); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, l, Batch{
		Cut:     &Cut{After: a[3].Pos(), Quarantine: "1.a", Reason: "diverged", Time: 1_700_000_000_000_000_001},
		Records: zeros(a[3].Pos(), 2, 2),
	})
	if err := l.persistState(); err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	if err := j.scan(nil, func(k, v []byte) error {
		fmt.Fprintf(&got, "%c %x\n%x\n", k[0], k[1:], v)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && *newGoldens {
		want = []byte(got.String())
		err = os.WriteFile(path, want, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got.String(), want)
	}
}

func TestStateOfOtherShapeIsRefused(t *testing.T) {
	good := state{highest: 7, begin: record.Pos{Seq: 10, Sum: 3}, beginOffset: 900, segments: []segment{{3, 8}, {7, 20}}}
	b := good.encode()
	var back state
	if err := back.decode(b); err != nil || fmt.Sprint(back) != fmt.Sprint(good) {
		t.Fatalf("decode: %+v, %v, want %+v", back, err, good)
	}
	for i := range b {
		bad := append([]byte(nil), b...)
		bad[i] ^= 0x10
		if err := back.decode(bad); !errors.Is(err, record.ErrCorrupt) {
			t.Errorf("byte %d flipped: %v", i, err)
		}
		if err := back.decode(b[:i]); !errors.Is(err, record.ErrCorrupt) {
			t.Errorf("cut to %d bytes: %v", i, err)
		}
	}
	for name, s := range map[string]state{
		"no segment":          {highest: 1},
		"segments descend":    {highest: 7, segments: []segment{{3, 1}, {7, 1}}},
		"segment above all":   {highest: 6, segments: []segment{{7, 1}}},
		"begins behind begin": {highest: 7, segments: []segment{{7, 2}}},
	} {
		if err := back.decode(s.encode()); !errors.Is(err, record.ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", name, err)
		}
	}
}

// Keys that a power cut brought back, or that a crash kept from being deleted, go
// when the log is opened, and are never read.
func TestLeftoversAreRemovedWhenTheLogIsOpened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := options(t, vfs.NewMem())
		j := mustOpen(t, o)
		l := mustLog(t, j, vol1)
		recs := chain(vol1, record.Pos{}, 30, 500)
		mustWrite(t, l, Batch{Records: recs})
		mustWrite(t, l, Batch{Cut: &Cut{After: recs[19].Pos(), Quarantine: "q"}, Records: chainOf(vol1, recs[19].Pos(), 10, 500, 2)})
		if err := l.Trim(12); err != nil {
			t.Fatal(err)
		}
		mustWrite(t, l, Batch{})
		left := [][]byte{recordKey(vol1, 1, 3), recordKey(vol1, 2, 5), recordKey(vol1, 1, 31), recordKey(vol1, 9, 1)}
		for _, k := range left {
			if err := j.db.Set(k, []byte("left over"), pebble.Sync); err != nil {
				t.Fatal(err)
			}
		}
		mustClose(t, j)
		j = mustOpen(t, o)
		l = mustLog(t, j, vol1)
		synctest.Wait()
		for _, k := range left {
			if _, _, err := j.db.Get(k); !errors.Is(err, pebble.ErrNotFound) {
				t.Errorf("key %x: %v, want ErrNotFound", k, err)
			}
		}
		checkQuarantine(t, l, "q", recs[20:])
		if rep, err := l.Verify(t.Context(), nil); err != nil || rep.Err() != nil || rep.Records != 18 {
			t.Errorf("Verify: %+v, %v", rep, err)
		}
		mustClose(t, j)
	})
}
