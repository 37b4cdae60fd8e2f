package blockrepl

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/blockrepl/blockrepl/blockrepl/image"
	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal"
	"github.com/blockrepl/blockrepl/journal/record"
	"pgregory.net/rapid"
)

func TestMarksRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		byVol := map[record.VolumeID]mark{}
		for range rapid.IntRange(0, 20).Draw(t, "volumes") {
			var v record.VolumeID
			copy(v[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "volume"))
			byVol[v] = mark{
				durable:   record.Pos{Seq: record.Seq(rapid.Uint64().Draw(t, "seq")), Sum: rapid.Uint64().Draw(t, "sum")},
				following: record.Epoch{Counter: rapid.Uint64().Draw(t, "following"), Server: mustID("a")},
				promised:  record.Epoch{Counter: rapid.Uint64().Draw(t, "promised"), Server: mustID("b")},
			}
		}
		gen := rapid.Uint64().Draw(t, "gen")
		b := encodeMarks(gen, byVol)
		gotGen, got, ok := decodeMarks(append(b, make([]byte, 100)...))
		if !ok || gotGen != gen || len(got) != len(byVol) {
			t.Fatalf("decode: %v, generation %d, %d entries", ok, gotGen, len(got))
		}
		for v, k := range byVol {
			if got[v] != k {
				t.Fatalf("volume %s: got %+v, want %+v", v, got[v], k)
			}
		}
		b[rapid.IntRange(0, len(b)-1).Draw(t, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		if _, _, ok := decodeMarks(b); ok {
			t.Fatal("a flipped bit was not found")
		}
	})
}

func FuzzDecodeMarks(f *testing.F) {
	f.Add(encodeMarks(1, map[record.VolumeID]mark{{1}: {durable: record.Pos{Seq: 7, Sum: 8}}}))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		gen, byVol, ok := decodeMarks(b)
		if !ok {
			return
		}
		again, same, ok := decodeMarks(encodeMarks(gen, byVol))
		if !ok || again != gen || len(same) != len(byVol) {
			t.Fatalf("decoded marks do not survive a round trip")
		}
	})
}

func TestForgot(t *testing.T) {
	e := func(n uint64) record.Epoch { return record.Epoch{Counter: n, Server: mustID("a")} }
	k := mark{durable: record.Pos{Seq: 10, Sum: 100}, following: e(3), promised: e(4)}
	sum := func(record.Seq) (uint64, bool) { return 100, true }
	for _, c := range []struct {
		name string
		hard replica.Hard
		last record.Seq
		sum  uint64
		want string
	}{
		{"as remembered", replica.Hard{Following: e(3), Promised: e(4)}, 10, 100, ""},
		{"more than remembered", replica.Hard{Following: e(3), Promised: e(5)}, 12, 100, ""},
		{"shorter", replica.Hard{Following: e(3), Promised: e(4)}, 9, 100, "ends at number 9"},
		{"another sum", replica.Hard{Following: e(3), Promised: e(4)}, 10, 101, "has sum"},
		{"cut by a newer epoch", replica.Hard{Following: e(5), Promised: e(5)}, 7, 100, ""},
		{"an older epoch", replica.Hard{Following: e(2), Promised: e(4)}, 20, 100, "follows epoch 2.a"},
		{"a lost promise", replica.Hard{Following: e(3), Promised: e(3)}, 10, 100, "promised epoch 3.a"},
		{"resyncing", replica.Hard{Following: e(3), Promised: e(4), Resync: &replica.ResyncMark{}}, 5, 100, ""},
	} {
		sum = func(record.Seq) (uint64, bool) { return c.sum, true }
		got := k.forgot(&c.hard, record.Pos{Seq: c.last}, sum)
		if (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
	if got := (mark{}).forgot(&replica.Hard{}, record.Pos{}, sum); got != "" {
		t.Errorf("no mark: got %q", got)
	}
}

// A journal directory that was restored from an older copy.
func TestServerWithAnOlderJournalIsNotBelieved(t *testing.T) {
	c := newCluster(t, 3, nil)
	r := seeded(t)
	c.start(0, 1, 2)
	cl := c.connect(0, "client")
	cl.write(0, noise(r, 4096))
	c.awaitHealthy(0, 1, 2)
	c.kill(2)
	data := c.options(2).DataDir
	old := t.TempDir()
	if err := os.CopyFS(filepath.Join(old, "journal"), os.DirFS(JournalDir(data))); err != nil {
		t.Fatal(err)
	}
	c.start(2)
	for range 20 {
		cl.write(int64(512*r.IntN(100)), noise(r, 4096))
	}
	c.awaitHealthy(0, 1, 2)
	c.kill(2)
	if err := os.RemoveAll(JournalDir(data)); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(JournalDir(data), os.DirFS(filepath.Join(old, "journal"))); err != nil {
		t.Fatal(err)
	}
	c.start(2)
	c.await(2, "diverged", func(s VolumeStatus) bool { return s.State == StateDiverged })
	c.await(0, "suspended", func(s VolumeStatus) bool { return s.State == StateSuspended })
	if err := c.forget(0, "c", false); err != nil {
		t.Fatal(err)
	}
	c.awaitHealthy(0, 1, 2)
	c.equalImages(0, 1, 2)
}

// A server alone has no peers that remember; its own marks do.
func TestOnlyServerNoticesALostJournalEnd(t *testing.T) {
	c := newCluster(t, 1, nil)
	r := seeded(t)
	c.start(0)
	cl := c.connect(0, "client")
	cl.write(0, noise(r, 4096))
	c.kill(0)
	data := c.options(0).DataDir
	old := t.TempDir()
	if err := os.CopyFS(filepath.Join(old, "journal"), os.DirFS(JournalDir(data))); err != nil {
		t.Fatal(err)
	}
	c.start(0)
	cl = c.connect(0, "client")
	cl.write(0, noise(r, 4096))
	c.kill(0)
	if err := os.RemoveAll(JournalDir(data)); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(JournalDir(data), os.DirFS(filepath.Join(old, "journal"))); err != nil {
		t.Fatal(err)
	}
	c.start(0)
	c.await(0, "diverged", func(s VolumeStatus) bool { return s.State == StateDiverged && s.Reason != "" })
}

// Writes that were answered after a loss was accepted never came to the image, where its
// checkpoint was above the journal's end: their numbers counted as applied.
func TestWritesAfterAnAcceptedLossReachAnImageAheadOfItsJournal(t *testing.T) {
	c := newCluster(t, 1, nil)
	r := seeded(t)
	c.start(0)
	cl := c.connect(0, "client")
	for i := range int64(8) {
		p := noise(r, 4096)
		cl.write(i*4096, p)
		cl.wantRead(i*4096, p) // the image holds it
	}
	c.kill(0) // a checkpoint could trim what is cut here
	o := c.options(0)
	j, err := journal.Open(journal.Options{Dir: JournalDir(o.DataDir), Logger: o.Logger})
	if err != nil {
		t.Fatal(err)
	}
	logs, err := LogsByName(j)
	if err != nil {
		t.Fatal(err)
	}
	log := logs["vol0"]
	rec, err := log.Get(log.Last().Seq - 5)
	if err != nil {
		t.Fatal(err)
	}
	h, _, err := LoadHard(log)
	if err != nil {
		t.Fatal(err)
	}
	h.Checkpoint = log.Last().Seq
	after := rec.Pos()
	p, err := log.Write(journal.Batch{Cut: &journal.Cut{After: after}, Meta: metaOps(&replica.Store{Hard: &h})})
	if err == nil {
		err = p.Wait()
	}
	if err = errors.Join(err, j.Close()); err != nil {
		t.Fatal(err)
	}
	c.start(0)
	c.await(0, "diverged", func(s VolumeStatus) bool { return s.State == StateDiverged })
	if _, err := c.promote(0, replica.Promote{AcceptLoss: true}); err != nil {
		t.Fatal(err)
	}
	cl = c.connect(0, "client")
	want := noise(r, 4096)
	cl.write(0, want)
	cl.wantRead(0, want)
	c.kill(0)
	c.start(0)
	c.awaitHealthy(0)
	c.connect(0, "client").wantRead(0, want)
}

// A disk that was mounted late left an image of zeroes in the directory below, and its
// server was not believed for good, also when the disk was there again. Nothing is made
// where an image is missing; who wants a new one says so with an empty file.
func TestMissingImageIsWaitedForAndAnEmptyOneIsFilled(t *testing.T) {
	c := newCluster(t, 2, nil)
	r := seeded(t)
	c.start(0, 1)
	cl := c.connect(0, "client")
	cl.write(0, noise(r, 1<<20))
	c.awaitHealthy(0, 1)
	c.stop(1, false) // with a checkpoint: the records are not redone
	image := c.imagePath(1)
	if err := os.Rename(image, image+".away"); err != nil {
		t.Fatal(err)
	}
	s, err := NewServer(c.options(1))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err == nil || !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "touch "+image) {
		t.Fatalf("start without the image: %v", err)
	}
	if err := os.Rename(image+".away", image); err != nil {
		t.Fatal(err)
	}
	c.start(1)
	c.awaitHealthy(0, 1)
	c.stop(1, false)
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c.start(1)
	c.await(1, "diverged", func(s VolumeStatus) bool { return s.State == StateDiverged })
	if err := c.forget(0, "b", true); err != nil {
		t.Fatal(err)
	}
	c.awaitHealthy(0, 1)
	c.equalImages(0, 1)
}

func TestImageWithContentIsNotABlankServer(t *testing.T) {
	c := newCluster(t, 1, nil)
	dir := filepath.Join(c.options(0).DataDir, "images")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "vol0.img"), append([]byte("precious"), make([]byte, testSize)...), 0o600); err != nil {
		t.Fatal(err)
	}
	c.start(0)
	c.await(0, "diverged", func(s VolumeStatus) bool { return s.State == StateDiverged })
	if st := c.status(0); st.Role == "master" {
		t.Error("a volume was created over foreign content")
	}
}

// tornFile fails a write after it has destroyed what was there.
type tornFile struct {
	File
	fail bool
}

func (f *tornFile) WriteAt(p []byte, off int64) (int, error) {
	if f.fail {
		_, err := f.File.WriteAt(make([]byte, len(p)), off)
		return 0, errors.Join(syscall.EIO, err)
	}
	return f.File.WriteAt(p, off)
}

// A write that failed may have torn its slot. The other slot is the only one that is
// left, so the next write must not go there.
func TestFailedWriteOfMarksLeavesTheOtherSlot(t *testing.T) {
	o := &Options{DataDir: t.TempDir(), Files: osFiles{}, Logger: slog.New(slog.DiscardHandler)}
	m, err := openMarks(o)
	if err != nil {
		t.Fatal(err)
	}
	vol := record.VolumeID{1}
	k := mark{durable: record.Pos{Seq: 7, Sum: 8}}
	m.set(vol, k, false)
	if err := m.write(); err != nil {
		t.Fatal(err)
	}
	torn := &tornFile{File: m.file, fail: true}
	m.file = torn
	m.set(vol, mark{durable: record.Pos{Seq: 9, Sum: 9}}, false)
	for range 3 {
		if err := m.write(); !errors.Is(err, syscall.EIO) {
			t.Fatalf("write: %v, want EIO", err)
		}
		again, err := openMarks(o)
		if err != nil {
			t.Fatal(err)
		}
		if got := again.get(vol); got != k {
			t.Errorf("after a failed write the marks are %+v, want %+v", got, k)
		}
		if err := again.close(); err != nil {
			t.Error(err)
		}
	}
	torn.fail = false
	if err := m.write(); err != nil {
		t.Fatal(err)
	}
	if again, err := openMarks(o); err != nil || again.get(vol).durable.Seq != 9 {
		t.Errorf("marks that were written at last: %+v, %v", again.get(vol), err)
	} else if err := again.close(); err != nil {
		t.Error(err)
	}
	if err := m.close(); err != nil {
		t.Error(err)
	}
}

// The saved state of a volume whose history is full must fit a value of the journal.
func TestFullHistoryFitsTheJournal(t *testing.T) {
	e := record.Epoch{Counter: 1<<64 - 1, Server: mustID("server-7")}
	m := wire.Member{ID: e.Server, Incarnation: record.Incarnation{1, 2, 3}}
	h := replica.Hard{Promised: e, Following: e, State: wire.State{Epoch: e, Name: strings.Repeat("n", 64)}}
	for range 7 {
		h.State.InSync = append(h.State.InSync, m)
		h.State.Members = append(h.State.Members, m.ID)
	}
	for i := range replica.HistoryMax {
		line := wire.EpochStart{Epoch: e, First: record.Pos{Seq: 1<<64 - 1, Sum: 1<<64 - 1}, BaseNumber: 1<<64 - 1, Loss: true}
		if i >= replica.HistoryMax-64 {
			line.Set = h.State.InSync
		}
		h.History = append(h.History, line)
	}
	for range samplesRecent + 2 {
		h.Image = append(h.Image, replica.Sample{Off: 1<<63 - 1, Len: sampleBytes, Sum: 1<<64 - 1})
	}
	if n := len(encodeMeta(&h)); n > journal.MetaValueMax {
		t.Errorf("%d bytes, the journal takes %d", n, journal.MetaValueMax)
	}
}

// An empty image was made anew, and then the start failed for another reason. The
// next start found an image, of the right size and with the zeroes that had been
// written last, and believed it.
func TestEmptyImageIsNotForgottenByAFailedStart(t *testing.T) {
	c := newCluster(t, 1, nil)
	r := seeded(t)
	c.start(0)
	cl := c.connect(0, "client")
	cl.write(testSize/2, noise(r, 4096))
	for i := range int64(2 * samplesRecent) {
		cl.write(i*sampleBytes, make([]byte, sampleBytes))
	}
	c.stop(0, false)
	if err := os.WriteFile(c.imagePath(0), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c.change = func(o *Options) {
		o.OpenImage = func(i image.Options) (*image.Image, error) {
			img, err := image.Open(i)
			if err != nil {
				return nil, err
			}
			return nil, errors.Join(img.Close(), syscall.EIO)
		}
	}
	s, err := NewServer(c.options(0))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err == nil {
		s.Close()
		t.Fatal("started without an image")
	}
	c.change = nil
	c.start(0)
	st := c.await(0, "not believed", func(s VolumeStatus) bool { return s.State == StateDiverged })
	if !strings.Contains(st.Reason, "was empty") {
		t.Errorf("reason is %q", st.Reason)
	}
}

// counting is an image file that counts its fsyncs.
type counting struct {
	image.File
	syncs *atomic.Int32
}

func (f counting) Sync() error {
	f.syncs.Add(1)
	return f.File.Sync()
}

// A volume was created from an image as it is, of which a part may still have been in
// the page cache only: a power cut took it from this server and not from the others.
func TestKeptImageIsDurableBeforeTheVolumeExists(t *testing.T) {
	var syncs atomic.Int32
	c := newCluster(t, 1, nil)
	c.change = func(o *Options) {
		o.OpenImage = func(i image.Options) (*image.Image, error) {
			i.OpenFile = func() (image.File, error) {
				f, err := os.OpenFile(i.Path, os.O_RDWR|os.O_CREATE, 0o600)
				return counting{f, &syncs}, err
			}
			return image.Open(i)
		}
	}
	dir := filepath.Dir(c.imagePath(0))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.imagePath(0), []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.start(0)
	if _, err := handleInit(t.Context(), c.vol(0), strings.NewReader(`{"content":"keep"}`)); err != nil {
		t.Fatal(err)
	}
	if syncs.Load() == 0 {
		t.Error("the volume exists, and its image was not fsynced")
	}
}

// An init that was told to copy the image onto itself zeroed it first.
func TestInitFromTheImageItselfIsRefused(t *testing.T) {
	c := newCluster(t, 1, nil)
	if err := os.MkdirAll(filepath.Dir(c.imagePath(0)), 0o755); err != nil {
		t.Fatal(err)
	}
	precious := append([]byte("precious"), make([]byte, testSize-8)...)
	link := filepath.Join(t.TempDir(), "link")
	if err := errors.Join(os.WriteFile(c.imagePath(0), precious, 0o600), os.Symlink(c.imagePath(0), link)); err != nil {
		t.Fatal(err)
	}
	c.start(0)
	for _, from := range []string{c.imagePath(0), link} {
		_, err := handleInit(t.Context(), c.vol(0), strings.NewReader(`{"content":"copy","from":"`+from+`"}`))
		if !errors.Is(err, replica.ErrRefused) {
			t.Errorf("from %s: %v, want it refused", from, err)
		}
	}
	if b, err := os.ReadFile(c.imagePath(0)); err != nil || !bytes.Equal(b, precious) {
		t.Errorf("the image was changed: %q, %v", b[:8], err)
	}
}

// Each volume had two marks, one under its name from before it existed, and the file
// has room for one: with more than 500 volumes some were left out.
func TestVolumeHasOneMark(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.start(0)
	c.connect(0, "client").write(0, make([]byte, 4096))
	uuid := c.vol(0).uuid.Load()
	c.kill(0)
	o := c.options(0)
	o.fill()
	for range 2 {
		m, err := openMarks(&o)
		if err != nil {
			t.Fatal(err)
		}
		if len(m.byVol) != 1 || m.get(*uuid).durable.Seq == 0 {
			t.Errorf("marks are %v, want one of %v", m.byVol, uuid)
		}
		m.set(nameID("vol0"), mark{durable: record.Pos{Seq: 1, Sum: 1}}, false) // as an older server did
		if err := errors.Join(m.write(), m.close()); err != nil {
			t.Fatal(err)
		}
		c.start(0)
		c.kill(0)
	}
}

// An init from a character device zeroed the image and reported success; one from a
// pipe waited for ever.
func TestInitFromWhatIsNoDiskIsRefused(t *testing.T) {
	c := newCluster(t, 1, nil)
	if err := os.MkdirAll(filepath.Dir(c.imagePath(0)), 0o755); err != nil {
		t.Fatal(err)
	}
	precious := append([]byte("precious"), make([]byte, testSize-8)...)
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := errors.Join(os.WriteFile(c.imagePath(0), precious, 0o600), syscall.Mkfifo(pipe, 0o600)); err != nil {
		t.Fatal(err)
	}
	c.start(0)
	for _, from := range []string{"/dev/zero", t.TempDir(), pipe} {
		_, err := handleInit(t.Context(), c.vol(0), strings.NewReader(`{"content":"copy","from":"`+from+`"}`))
		if !errors.Is(err, replica.ErrRefused) {
			t.Errorf("from %s: %v, want it refused", from, err)
		}
	}
	if b, err := os.ReadFile(c.imagePath(0)); err != nil || !bytes.Equal(b, precious) {
		t.Errorf("the image was changed: %q, %v", b[:8], err)
	}
}

// The marks file has room for a thousand volumes, and nothing took out those that the
// configuration no longer names. From the thousand and first on it lost marks by the
// order of their ids, without a word: also those of volumes in use.
func TestMarksOfVolumesThatAreGoneMakeRoom(t *testing.T) {
	o := Options{DataDir: t.TempDir(), Files: osFiles{}, Logger: slog.New(slog.DiscardHandler)}
	m, err := openMarks(&o)
	if err != nil {
		t.Fatal(err)
	}
	again := func() {
		t.Helper()
		if err := errors.Join(m.write(), m.close()); err != nil {
			t.Fatal(err)
		}
		if m, err = openMarks(&o); err != nil {
			t.Fatal(err)
		}
	}
	nth := func(i uint32) (v record.VolumeID) {
		binary.BigEndian.PutUint32(v[:], i)
		return v
	}
	live := record.VolumeID{0xff}
	k := mark{durable: record.Pos{Seq: 7, Sum: 8}}
	for i := range uint32(volumesMax) { // one after the other, over the years
		m.set(nth(i+1), k, false)
	}
	m.set(live, k, false)
	again()
	if got := m.get(live); got != k {
		t.Errorf("the mark of the volume in use is %+v, want %+v", got, k)
	}
	// The volumes of a server that has just started are those that were asked for.
	idle := nth(2)
	if got := m.get(idle); got != k {
		t.Fatalf("the mark of the oldest that fits is %+v, want %+v", got, k)
	}
	m.set(nth(volumesMax+1), k, false)
	again()
	defer func() {
		if err := m.close(); err != nil {
			t.Error(err)
		}
	}()
	for v, want := range map[record.VolumeID]mark{idle: k, live: k, nth(volumesMax + 1): k, nth(1): {}, nth(3): {}, nth(4): k} {
		if got := m.get(v); got != want {
			t.Errorf("the mark of %v is %+v, want %+v", v, got, want)
		}
	}
}
