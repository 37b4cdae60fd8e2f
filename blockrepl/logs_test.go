package blockrepl

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/journal"
	"github.com/blockrepl/blockrepl/journal/record"
	"github.com/cockroachdb/pebble/v2"
)

// spoilState damages the state of a volume's log in the journal of a stopped server;
// with all, its records are gone too, as trimmed ones are.
func (c *cluster) spoilState(i int, id record.VolumeID, all bool) {
	c.t.Helper()
	db, err := pebble.Open(filepath.Join(c.dir, c.addrs[i].ID.String(), "journal"), &pebble.Options{FormatMajorVersion: pebble.FormatNewest})
	if err != nil {
		c.t.Fatal(err)
	}
	defer db.Close()
	key := append([]byte{'l'}, id[:]...)
	v, closer, err := db.Get(key)
	if err != nil {
		c.t.Fatal(err)
	}
	v = bytes.Clone(v)
	closer.Close()
	v[20] ^= 1
	if err := db.Set(key, v, pebble.Sync); err != nil {
		c.t.Fatal(err)
	}
	if all {
		key[0] = 'r'
		if err := db.DeleteRange(key, append(bytes.Clone(key), bytes.Repeat([]byte{0xff}, 13)...), pebble.Sync); err != nil {
			c.t.Fatal(err)
		}
	}
}

// A damaged state of one volume's log kept the server from starting, with all its
// volumes.
func TestDamagedJournalStateOfAVolumeLeavesTheOthersAlone(t *testing.T) {
	for name, all := range map[string]bool{"records are there": false, "without records": true} {
		t.Run(name, func(t *testing.T) {
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
			uuid := *c.vol(0).uuid.Load()
			c.kill(1)
			c.spoilState(1, uuid, all)
			for range 2 { // the second time from what the first has noted
				c.start(1)
				st := c.await(1, "not believed", func(s VolumeStatus) bool { return s.State == StateDiverged && s.Reason != "" })
				if !strings.Contains(st.Next, "blockrepl forget vol0 b") {
					t.Errorf("status says %q, and then: %q", st.Reason, st.Next)
				}
				second.write(1<<20, one)
				if _, err := c.promote(1, replica.Promote{OldMasterDead: true}); err == nil {
					t.Error("a server that is not believed was promoted")
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
		})
	}
}

// spoilOldKeys flips a bit in a table of server i that holds old copies of what its
// journal keeps beside the records, and the name of its format; the present ones are in
// a newer table.
func (c *cluster) spoilOldKeys(i int) {
	c.t.Helper()
	dir := filepath.Join(c.dir, c.addrs[i].ID.String(), "journal")
	o := &pebble.Options{FormatMajorVersion: pebble.FormatNewest, DisableAutomaticCompactions: true}
	for i := range o.Levels {
		o.Levels[i].BlockSize = 256 // such as these have when they are many
	}
	o.ApplyCompressionSettings(func() pebble.DBCompressionSettings { return pebble.DBCompressionNone })
	db, err := pebble.Open(dir, o)
	if err != nil {
		c.t.Fatal(err)
	}
	if err := db.Compact(c.t.Context(), []byte{'a'}, []byte{'z'}, false); err != nil {
		c.t.Fatal(err)
	}
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: []byte{'l'}, UpperBound: []byte{'r'}})
	if err != nil {
		c.t.Fatal(err)
	}
	for ok := it.First(); ok; ok = it.Next() {
		if err := db.Set(bytes.Clone(it.Key()), bytes.Clone(it.Value()), pebble.Sync); err != nil {
			c.t.Fatal(err)
		}
	}
	if err := errors.Join(it.Close(), db.Flush(), db.Close()); err != nil {
		c.t.Fatal(err)
	}
	tables, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, name := range tables {
		b, err := os.ReadFile(name)
		if err != nil {
			c.t.Fatal(err)
		}
		if at := bytes.Index(b, []byte("blockrepl journal 1")); at >= 0 {
			b[at] ^= 1
			if err := os.WriteFile(name, b, 0o600); err != nil {
				c.t.Fatal(err)
			}
			return
		}
	}
	c.t.Fatal("no table has the format's name")
}

// A flipped bit among old values, of which the present ones were whole in a newer table,
// kept the server from starting.
func TestDamagedOldKeysOfAJournalHarmNoVolume(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.two()
	c.start(0, 1)
	c.awaitHealthy(0, 1)
	one := bytes.Repeat([]byte("1"), 4096)
	first, second := c.connectTo(0, "vol0"), c.connectTo(0, "vol1")
	first.write(0, one)
	second.write(0, one)
	c.stop(1, false)
	c.spoilOldKeys(1)
	c.start(1)
	c.awaitHealthy(0, 1)
	first.write(4096, one)
	second.write(4096, one)
	for _, v := range c.servers[1].Volumes() {
		if st := v.Status(t.Context()); st.State != StateHealthy {
			t.Errorf("volume %s is %s: %s", v.Name(), st.State, st.Reason)
		}
	}
}

// Nobody else has the records of an only server: they are found, for the operator to
// decide on.
func TestOnlyServerFindsItsRecordsWithoutTheLogsState(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.start(0)
	w := c.connect(0, "db1")
	for i := range int64(8) {
		w.write(i*4096, bytes.Repeat([]byte{byte(i + 1)}, 4096))
	}
	uuid, log := *c.vol(0).uuid.Load(), c.vol(0).log.Load()
	c.kill(0) // without a checkpoint: the image may lack all of it
	last := log.Last()
	c.spoilState(0, uuid, false)
	c.start(0)
	st := c.await(0, "not believed", func(s VolumeStatus) bool { return s.State == StateDiverged })
	if !strings.Contains(st.Reason, "state is damaged") || !strings.Contains(st.Next, "--accept-loss") {
		t.Errorf("status says %q, and then: %q", st.Reason, st.Next)
	}
	if got := c.vol(0).log.Load().Last(); got != last {
		t.Errorf("the log ends at %s, want %s", got, last)
	}
	if _, err := c.promote(0, replica.Promote{AcceptLoss: true}); err != nil {
		t.Fatal(err)
	}
	c.awaitHealthy(0)
	w = c.connect(0, "db1")
	for i := range int64(8) {
		w.wantRead(i*4096, bytes.Repeat([]byte{byte(i + 1)}, 4096))
	}
}

// Without records the image is ahead of the journal, and must get the next writes.
func TestOnlyServerGoesOnWithoutTheLogsStateAndRecords(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.start(0)
	w := c.connect(0, "db1")
	for i := range int64(8) {
		w.write(i*4096, bytes.Repeat([]byte{byte(i + 1)}, 4096))
	}
	uuid := *c.vol(0).uuid.Load()
	c.stop(0, false)
	c.spoilState(0, uuid, true)
	c.start(0)
	c.await(0, "not believed", func(s VolumeStatus) bool { return s.State == StateDiverged })
	if _, err := c.promote(0, replica.Promote{AcceptLoss: true}); err != nil {
		t.Fatal(err)
	}
	c.awaitHealthy(0)
	w = c.connect(0, "db1")
	w.wantRead(7*4096, bytes.Repeat([]byte{8}, 4096))
	w.write(0, bytes.Repeat([]byte{9}, 4096))
	w.wantRead(0, bytes.Repeat([]byte{9}, 4096))
}

// A volume that was removed from the journals of all its servers may come again under its
// name, and knows nothing of the old one. What had been promised and remembered before the
// old one existed kept the new one from coming into being.
func TestRemovedVolumeMayComeAgain(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.start(0, 1, 2)
	c.connect(0, "client").write(0, bytes.Repeat([]byte("1"), 4096))
	c.awaitHealthy(0, 1, 2)
	old := *c.vol(0).uuid.Load()
	c.stop(0, false)
	if err := os.RemoveAll(c.options(0).DataDir); err != nil {
		t.Fatal(err)
	}
	c.start(0) // it promises an epoch before it has the volume
	if _, err := c.promote(1, replica.Promote{OldMasterDead: true}); err != nil {
		t.Fatal(err)
	}
	c.awaitHealthy(0, 1, 2)
	for i := range 3 {
		c.stop(i, false)
	}
	for i := range 3 {
		j, err := journal.Open(journal.Options{Dir: JournalDir(c.options(i).DataDir)})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(RemoveVolume(j, c.volume.Name, old), j.Close(), os.Remove(c.imagePath(i))); err != nil {
			t.Fatal(err)
		}
	}
	c.start(0, 1, 2)
	c.awaitHealthy(0, 1, 2)
	if now := *c.vol(0).uuid.Load(); now == old {
		t.Errorf("it is still %v", now)
	}
	c.connect(1, "client").wantRead(0, make([]byte, 4096))
	c.equalImages(0, 1, 2)
}

// A volume that was taken out of a configuration by mistake was missing without a word.
func TestVolumeThatIsNotConfiguredIsNamed(t *testing.T) {
	c := newCluster(t, 1, nil)
	var told atomic.Int32
	c.change = func(o *Options) {
		o.Logger = slog.New(slog.NewTextHandler(lineWriter(func(line []byte) {
			if bytes.Contains(line, []byte("not in the configuration")) && bytes.Contains(line, []byte("volume=vol0")) {
				told.Add(1)
			}
		}), nil))
	}
	c.start(0)
	c.awaitHealthy(0)
	c.stop(0, false)
	if told.Load() != 0 {
		t.Error("told of a volume that is configured")
	}
	c.volume.Name = "other"
	c.start(0)
	c.awaitHealthy(0)
	if told.Load() != 1 {
		t.Errorf("told %d times of the volume that is gone, want once", told.Load())
	}
}
