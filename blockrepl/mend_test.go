package blockrepl

import (
	"bytes"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/blockrepl/blockrepl/journal/record"
	"github.com/cockroachdb/pebble/v2"
)

// damage flips a bit in the payload of one record of a stopped server's journal.
func (c *cluster) damage(i int, seq record.Seq) {
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
		if err != nil || rec.Seq != seq {
			continue
		}
		v := bytes.Clone(it.Value())
		v[len(v)-1] ^= 1
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
	for i := range 8 {
		w.write(int64(i)*4096, bytes.Repeat([]byte{byte(i + 1), 3, 5, 7}, 1024))
	}
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
	for i := range 8 {
		w.write(int64(i)*4096, bytes.Repeat([]byte{byte(i + 1), 3, 5, 7}, 1024))
	}
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

// lineWriter is called with each line.
type lineWriter func([]byte)

func (f lineWriter) Write(p []byte) (int, error) {
	f(p)
	return len(p), nil
}
