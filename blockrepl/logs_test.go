package blockrepl

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
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
