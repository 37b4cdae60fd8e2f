package blockrepl

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal"
	"github.com/blockrepl/blockrepl/journal/record"
	"github.com/cockroachdb/pebble/v2"
)

// damage flips a bit in the payload of one record of a stopped server's journal.
func (c *cluster) damage(i int, seq record.Seq) {
	c.t.Helper()
	c.spoil(i, seq, func(v []byte) { v[len(v)-1] ^= 1 })
}

// spoil changes what a stopped server's journal holds of one record.
func (c *cluster) spoil(i int, seq record.Seq, change func(v []byte)) {
	c.t.Helper()
	c.spoilOf(i, record.VolumeID{}, seq, change)
}

// spoilOf is spoil of one volume; zero for the only one.
func (c *cluster) spoilOf(i int, id record.VolumeID, seq record.Seq, change func(v []byte)) {
	c.t.Helper()
	db, err := pebble.Open(filepath.Join(c.dir, c.addrs[i].ID.String(), "journal"), &pebble.Options{FormatMajorVersion: pebble.FormatNewest})
	if err != nil {
		c.t.Fatal(err)
	}
	defer db.Close()
	it, err := db.NewIter(nil)
	if err != nil {
		c.t.Fatal(err)
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		at := bytes.Index(it.Value(), []byte("BRR"))
		if at < 0 {
			continue
		}
		rec, err := record.Decode(bytes.Clone(it.Value()[at:]))
		if err != nil || rec.Seq != seq || !id.IsZero() && rec.Volume != id {
			continue
		}
		v := bytes.Clone(it.Value())
		change(v)
		if err := db.Set(bytes.Clone(it.Key()), v, pebble.Sync); err != nil {
			c.t.Fatal(err)
		}
		return
	}
	c.t.Fatalf("record %d is not in the journal of server %d", seq, i)
}

func TestDamagedJournalRecordIsFetchedFromAPeer(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.start(0, 1)
	c.awaitHealthy(0, 1)
	w := c.connect(0, "db1")
	w.writeEight()
	c.kill(1)
	c.damage(1, 6)
	c.start(1)
	c.awaitHealthy(0, 1)
	c.await(1, "the damaged record was fetched and applied", func(st VolumeStatus) bool {
		return st.Applied == st.Last && st.Counters["records_mended"] == 1
	})
	c.equalImages(0, 1)
}

// While other servers were asked for a damaged record, for up to 45 seconds, the
// loop could not take the image away from the applier.
func TestImageIsFreeWhileARecordIsMended(t *testing.T) {
	asking := make(chan struct{}, 100)
	c := newCluster(t, 2, nil)
	c.change = func(o *Options) {
		o.Logger = slog.New(slog.NewTextHandler(lineWriter(func(line []byte) {
			if bytes.Contains(line, []byte("asking the other servers for it")) {
				asking <- struct{}{}
			}
		}), nil))
	}
	c.start(0, 1)
	c.awaitHealthy(0, 1)
	w := c.connect(0, "db1")
	w.writeEight()
	c.kill(1)
	c.kill(0)
	c.damage(1, 6)
	c.start(1) // nobody there to ask
	v := c.vol(1)
	v.app.to(8)
	<-asking
	v.app.hold()
	defer v.app.release()
	if why := v.failed.Load(); why != nil {
		t.Errorf("the image was not let go of before the server gave up: %s", *why)
	}
}

// writeEight makes eight records, each for a block of its own.
func (tc *testConn) writeEight() {
	tc.c.t.Helper()
	for i := range 8 {
		tc.write(int64(i)*4096, bytes.Repeat([]byte{byte(i + 1), 3, 5, 7}, 1024))
	}
}

// lineWriter is called with each line.
type lineWriter func([]byte)

func (f lineWriter) Write(p []byte) (int, error) {
	f(p)
	return len(p), nil
}

// A block of a table that goes bad takes several records with it. None of them could
// be mended, as the one behind is the proof, and the server left the volume.
func TestDamagedNeighboursAreFetchedFromAPeer(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.start(0, 1)
	c.awaitHealthy(0, 1)
	w := c.connect(0, "db1")
	w.writeEight()
	c.kill(1)
	for _, seq := range []record.Seq{4, 5, 6, 7} {
		c.spoil(1, seq, func(v []byte) { clear(v) })
	}
	c.start(1)
	c.awaitHealthy(0, 1)
	c.await(1, "the damaged records were fetched and applied", func(st VolumeStatus) bool {
		return st.Applied == st.Last && st.Counters["records_mended"] == 4
	})
	c.equalImages(0, 1)
}

// Of damaged neighbours the sum was taken to be 0: a mark in the marks file or an
// acknowledgement of that number then spoke of another past.
func TestSumOfADamagedRecordIsTheTrueOneOrUnknown(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.start(0)
	w := c.connect(0, "db1")
	w.writeEight()
	want := map[record.Seq]uint64{}
	for seq := record.Seq(1); seq <= 8; seq++ {
		rec, err := c.vol(0).log.Load().Get(seq)
		if err != nil {
			t.Fatal(err)
		}
		want[seq] = rec.Sum
	}
	c.kill(0)
	for _, seq := range []record.Seq{1, 4, 5, 6} {
		c.spoil(0, seq, func(v []byte) { clear(v) })
	}
	j, err := journal.Open(journal.Options{Dir: JournalDir(c.options(0).DataDir), ReserveBytes: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	logs, err := LogsByName(j)
	if err != nil {
		t.Fatal(err)
	}
	saved, _, err := loadSaved(logs["vol0"])
	if err != nil {
		t.Fatal(err)
	}
	for seq, sum := range want {
		if got, ok := sumOf(&saved, seq); ok && got != sum {
			t.Errorf("sum of record %d is %016x, want %016x or unknown", seq, got, sum)
		}
	}
	if got, ok := sumOf(&saved, 6); !ok || got != want[6] {
		t.Errorf("sum of record 6, which record 7 tells: %016x, %v", got, ok)
	}
}

// A trim whose number lies in a bad block failed the volume on this server.
func TestTrimWithinDamagedRecordsFailsNothing(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.volume.OnDegraded = wire.Continue
	c.start(0, 1, 2)
	c.awaitHealthy(0, 1, 2)
	c.stop(2, false) // records are kept for it
	w := c.connect(0, "db1")
	for i := range 30 {
		w.write(int64(i)*4096, bytes.Repeat([]byte{byte(i + 1), 3, 5, 7}, 1024))
	}
	c.stop(1, false)
	last := c.vol(0).log.Load().Last().Seq
	for seq := last - 9; seq <= last-5; seq++ {
		c.spoil(1, seq, func(v []byte) { clear(v) })
	}
	c.start(1)
	c.await(1, "applied", func(st VolumeStatus) bool { return st.Applied == uint64(last) })
	v := c.vol(1)
	trimmed := make(chan record.Seq)
	for _, upto := range []record.Seq{last - 8, last - 4} {
		v.in.call(func() {
			v.trim(upto)
			trimmed <- v.log.Load().First() - 1
		})
		at := <-trimmed
		if why := v.failed.Load(); why != nil {
			t.Fatalf("trim through %d of %d: %s", upto, last, *why)
		}
		if upto == last-4 && at != upto {
			t.Errorf("trimmed through %d, want %d", at, upto)
		}
	}
}

// A damaged end of one volume's journal kept the server from starting, with all its
// volumes.
func TestDamagedJournalEndOfAVolumeLeavesTheOthersAlone(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.two()
	c.start(0, 1)
	c.awaitHealthy(0, 1)
	one := bytes.Repeat([]byte("1"), 4096)
	first, second := c.connectTo(0, "vol0"), c.connectTo(0, "vol1")
	for i := range int64(4) {
		first.write(i*4096, one)
		second.write(i*4096, one)
	}
	c.kill(1)
	last := c.vol(0).log.Load().Last().Seq
	uuid := *c.vol(0).uuid.Load()
	for _, seq := range []record.Seq{last - 1, last} {
		c.spoilOf(1, uuid, seq, func(v []byte) { clear(v) })
	}
	for range 2 { // the second time from what the first has noted
		c.start(1)
		c.await(1, "not believed", func(s VolumeStatus) bool { return s.State == StateDiverged && s.Reason != "" })
		second.write(1<<20, one)
		qs, err := c.vol(1).log.Load().Quarantines()
		if err != nil || len(qs) != 1 || qs[0].After.Seq != last-2 || qs[0].Last.Seq != last {
			t.Errorf("set aside is %+v, %v, want %d..%d", qs, err, last-1, last)
		}
		if st := c.status(1); len(st.Quarantines) != 1 || st.Quarantines[0].Last != uint64(last) { // though its first record is damaged
			t.Errorf("status lists %+v as set aside", st.Quarantines)
		}
		c.kill(1)
	}
	c.start(1)
	if err := c.forget(0, "b", true); err != nil {
		t.Fatal(err)
	}
	c.awaitHealthy(0, 1)
	first.write(1<<20, one)
	c.equalImages(0, 1)
}

// The marks may not have heard yet of what a damaged end takes away.
func TestDamagedJournalEndIsNoticedWithoutMarks(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.start(0)
	w := c.connect(0, "db1")
	for i := range int64(4) {
		w.write(i*4096, bytes.Repeat([]byte("1"), 4096))
	}
	log := c.vol(0).log.Load()
	c.kill(0)
	c.spoil(0, log.Last().Seq, func(v []byte) { clear(v) })
	for range 2 {
		if err := os.Remove(filepath.Join(c.options(0).DataDir, "marks")); err != nil {
			t.Fatal(err)
		}
		c.start(0)
		st := c.await(0, "not believed", func(s VolumeStatus) bool { return s.State == StateDiverged })
		if !strings.Contains(st.Reason, "end is damaged") {
			t.Errorf("reason is %q", st.Reason)
		}
		c.kill(0)
	}
}

// The sum of a record that is damaged with the next one is what a returning slave is
// compared by. It was told that the record is no longer kept, and copied its image
// again, with a third server there that had both.
func TestDamagedPastOfAReturningSlaveIsFetchedFromAPeer(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.volume.OnDegraded = wire.Continue
	c.start(0, 1, 2)
	c.awaitHealthy(0, 1, 2)
	w := c.connect(0, "db1")
	w.writeEight()
	c.stop(2, false)
	w.writeEight()
	last := c.vol(0).log.Load().Last().Seq
	c.stop(0, false) // its image has everything
	at := c.lastOf(2)
	for _, seq := range []record.Seq{at, at + 1} {
		c.spoil(0, seq, func(v []byte) { clear(v) })
	}
	c.start(0)
	c.await(0, "master again", func(st VolumeStatus) bool { return st.Role == "master" })
	if n := c.status(0).Counters["records_mended"]; n != 0 {
		t.Fatalf("%d records were mended before anybody needed them", n)
	}
	c.start(2)
	c.awaitHealthy(0, 1, 2)
	if st := c.status(0); st.Counters["records_mended"] != 2 || st.Counters["resync_bytes"] != 0 {
		t.Errorf("%d records were mended, want 2; %d bytes resynced, want none", st.Counters["records_mended"], st.Counters["resync_bytes"])
	}
	if first := c.vol(2).log.Load().First(); first > at || at >= last {
		t.Errorf("the slave's journal begins at %d, want at most %d", first, at)
	}
	c.equalImages(0, 1, 2)
}

// lastOf is the last number of a stopped server's journal.
func (c *cluster) lastOf(i int) record.Seq {
	c.t.Helper()
	j, err := journal.Open(journal.Options{Dir: JournalDir(c.options(i).DataDir), ReserveBytes: -1})
	if err != nil {
		c.t.Fatal(err)
	}
	defer j.Close()
	logs, err := LogsByName(j)
	if err != nil {
		c.t.Fatal(err)
	}
	return logs["vol0"].Last().Seq
}

// Two readers that met one run of damaged records asked for the same ones: the second gave
// up after its tries, and the server failed, while the first was still fetching.
func TestOneRunOfDamagedRecordsIsFetchedAtATime(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.volume.OnDegraded = wire.Continue
	c.start(0, 1, 2)
	c.awaitHealthy(0, 1, 2)
	c.stop(2, false) // records are kept for it
	c.connect(0, "db1").writeEight()
	last := c.vol(1).log.Load().Last().Seq
	c.stop(1, false)
	for _, seq := range []record.Seq{last - 2, last - 1} {
		c.spoil(1, seq, func(v []byte) { clear(v) })
	}
	c.start(1)
	c.await(1, "applied", func(st VolumeStatus) bool { return st.Applied >= uint64(last) })
	m := &c.vol(1).mender
	l := c.servers[1].links.peers[mustID("a")].cur.Load()
	m.run <- struct{}{} // as the first reader
	second := make(chan bool)
	go func() { second <- m.fetchRun(l, last-2) }()
	for at := last - 1; at >= last-2; at-- {
		if !m.fetch(l, at) {
			t.Fatalf("record %d was not mended", at)
		}
	}
	<-m.run
	if !<-second {
		t.Error("the second reader was told that the records cannot be had")
	}
	if n := m.count(); n != 2 {
		t.Errorf("%d records were fetched, want 2", n)
	}
}
