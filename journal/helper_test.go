package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"log/slog"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"

	"github.com/blockrepl/blockrepl/journal/record"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	vol1  = record.VolumeID{1, 0xff}
	vol2  = record.VolumeID{1, 0xff, 2}
	epoch = record.Epoch{Counter: 1, Server: record.MustServerID("a")}
)

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(string(bytes.TrimRight(b, "\n")))
	return len(b), nil
}

// options are those of most tests: a small memtable on a file system in memory.
func options(t testing.TB, fs vfs.FS) Options {
	return Options{
		Dir: "journal", FS: fs, MemTableBytes: 256 << 10, ReserveBytes: -1,
		Logger: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
}

func mustOpen(t testing.TB, o Options) *Journal {
	t.Helper()
	j, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := j.Close(); err != nil && j.Err() == nil {
			t.Error(err)
		}
	})
	return j
}

func mustLog(t testing.TB, j *Journal, v record.VolumeID) *Log {
	t.Helper()
	l, err := j.Log(v)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func mustClose(t testing.TB, j *Journal) {
	t.Helper()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

func mustWrite(t testing.TB, l *Log, b Batch) {
	t.Helper()
	p, err := l.Write(b)
	if err == nil {
		err = p.Wait()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// one makes the record after prev: n bytes of noise from a seed, of the epoch counter e.
func one(v record.VolumeID, prev record.Pos, n int, e uint64) *record.Record {
	rng := rand.New(rand.NewPCG(uint64(prev.Seq), e))
	p := record.Alloc(n)
	for i := 0; i < n; i += 8 {
		var w [8]byte
		binary.LittleEndian.PutUint64(w[:], rng.Uint64())
		copy(p[i:], w[:])
	}
	r := record.NewWrite(int64(prev.Seq)*4096, p)
	r.Volume, r.Origin = v, epoch.Server
	r.Seal(record.Epoch{Counter: e, Server: epoch.Server}, prev, 1)
	return r
}

// chain makes count records of n bytes after prev.
func chain(v record.VolumeID, prev record.Pos, count, n int) []*record.Record {
	return chainOf(v, prev, count, n, 1)
}

func chainOf(v record.VolumeID, prev record.Pos, count, n int, e uint64) []*record.Record {
	out := make([]*record.Record, count)
	for i := range out {
		out[i] = one(v, prev, n, e)
		prev = out[i].Pos()
	}
	return out
}

func bytesOf(recs []*record.Record) (n int64) {
	for _, r := range recs {
		n += int64(len(r.Raw))
	}
	return n
}

// checkHolds verifies that the log holds exactly want behind begin.
func checkHolds(t testing.TB, l *Log, begin record.Pos, want []*record.Record) {
	t.Helper()
	last := begin
	if len(want) > 0 {
		last = want[len(want)-1].Pos()
	}
	if got := l.Last(); got != last {
		t.Fatalf("Last is %s, want %s", got, last)
	}
	if got := l.First(); got != begin.Seq+1 {
		t.Fatalf("First is %d, want %d", got, begin.Seq+1)
	}
	if got := l.Begin(); got != begin {
		t.Fatalf("Begin is %s, want %s", got, begin)
	}
	if got := l.Bytes(); got != bytesOf(want) {
		t.Errorf("Bytes is %d, want %d", got, bytesOf(want))
	}
	i := 0
	for next := l.First(); next <= last.Seq; {
		var err error
		next, err = l.Read(next, last.Seq, 10_000, func(r *record.Record) error {
			if i < len(want) && !bytes.Equal(r.Raw, want[i].Raw) {
				t.Errorf("record %d differs", r.Seq)
			}
			i++
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if i != len(want) {
		t.Errorf("Read gave %d records, want %d", i, len(want))
	}
	if _, err := l.Get(begin.Seq); !errors.Is(err, ErrTrimmed) {
		t.Errorf("Get(%d): %v, want ErrTrimmed", begin.Seq, err)
	}
	if _, err := l.Get(last.Seq + 1); !errors.Is(err, ErrNotYet) {
		t.Errorf("Get(%d): %v, want ErrNotYet", last.Seq+1, err)
	}
	for _, k := range []int{0, len(want) / 2, len(want) - 1} {
		if k < 0 || k >= len(want) {
			continue
		}
		r, err := l.Get(want[k].Seq)
		if err != nil || !bytes.Equal(r.Raw, want[k].Raw) {
			t.Errorf("Get(%d) differs, %v", want[k].Seq, err)
		}
	}
}
