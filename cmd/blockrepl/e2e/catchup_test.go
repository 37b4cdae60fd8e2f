package e2e

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/blockrepl/blockrepl/nbd/nbdtest"
)

// fill writes n requests of size bytes each at the offsets that at gives, 64 at once.
func fill(t *testing.T, s *server, n, size int, at func(i int) int64, rng *rand.Rand) {
	t.Helper()
	c, err := dial(s, "client=filler&takeover")
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	c.deadline(2 * time.Minute)
	const atOnce = 64
	for i := 0; i < n; {
		var requests []nbdtest.Request
		for ; i < n && len(requests) < atOnce; i++ {
			p := make([]byte, size)
			for j := 0; j+8 <= size; j += 8 {
				v := rng.Uint64()
				for k := range 8 {
					p[j+k] = byte(v >> (8 * k))
				}
			}
			requests = append(requests, nbdtest.Request{Cmd: cmdWrite, Off: uint64(at(i)), Data: p})
		}
		if _, err := c.Send(requests...); err != nil {
			t.Fatal(err)
		}
		for range requests {
			rep, err := c.Recv()
			if err != nil || rep.Errno != 0 {
				t.Fatalf("write %d of %d: %v, %+v", i, n, err, rep)
			}
		}
	}
}

// awaitInSync waits until the master says that the peer is in sync again.
func (c *cluster) awaitInSync(m *server, id string, within time.Duration) *blockrepl.VolumeStatus {
	c.t.Helper()
	return c.awaitVolume(m, within, id+" in sync", func(v *blockrepl.VolumeStatus) bool {
		p := peerOf(v, id)
		return p.InSync && p.State == "live" && p.LagRecords == 0
	})
}

// awaitDropped waits until the master goes on without the peer.
func (c *cluster) awaitDropped(m *server, id string) {
	c.t.Helper()
	c.awaitVolume(m, soon, id+" left the in-sync set", func(v *blockrepl.VolumeStatus) bool { return !peerOf(v, id).InSync })
}

// TestSlaveAwayForManyRecordsCatchesUpByThem: within keep nothing is copied but
// the records that were missed.
func TestSlaveAwayForManyRecordsCatchesUpByThem(t *testing.T) {
	rng := newRand(t)
	c := startCluster(t, setup{size: "64MiB", onDegraded: "continue"})
	m := c.master()
	away := c.slave()
	records := short(100000, 10000)
	away.kill()
	c.awaitDropped(m, away.id)
	anywhere := func(int) int64 { return rng.Int64N(64<<20/512) * 512 }
	began := time.Now()
	fill(t, m, records, 512, anywhere, rng)
	written := time.Since(began)
	before := c.awaitVolume(m, soon, "everything is committed", func(v *blockrepl.VolumeStatus) bool { return v.Committed == v.Last })
	if before.Last < uint64(records) {
		t.Fatalf("the last number is %d after %d writes", before.Last, records)
	}
	began = time.Now()
	away.start()
	v := c.awaitInSync(m, away.id, time.Minute)
	t.Logf("%d records written in %v; caught up in %v", records, written.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	if n := v.Counters["resync_bytes"]; n != 0 {
		t.Errorf("%d bytes of the image were copied although the records are kept", n)
	}
	c.finish()
}

// TestSlaveAwayBeyondKeepIsResyncedByDifferences: what travels is what differs,
// while clients go on writing.
func TestSlaveAwayBeyondKeepIsResyncedByDifferences(t *testing.T) {
	rng := newRand(t)
	c := startCluster(t, setup{size: "256MiB", keep: "64MiB", onDegraded: "continue"})
	m := c.master()
	away := c.slave()
	// Much that stays as it is, on all servers.
	const same, changed, chunk = 128 << 20, 8 << 20, 256 << 10
	fill(t, m, same/chunk, chunk, func(i int) int64 { return 64<<20 + int64(i)*chunk }, rng)
	c.awaitHealthy()
	// What is on its way to its image would differ as well.
	c.awaitVolume(away, soon, "its image holds all of it", func(v *blockrepl.VolumeStatus) bool { return v.Applied == v.Last })
	away.kill()
	c.awaitDropped(m, away.id)
	// More than is kept, all in the same place.
	fill(t, m, 12*changed/chunk, chunk, func(i int) int64 { return 32<<20 + int64(i)*chunk%changed }, rng)
	c.awaitVolume(m, soon, "the records that it needs are no longer kept", func(v *blockrepl.VolumeStatus) bool {
		return v.FirstKept > uint64(same/chunk)+2
	})
	// Writers go on, elsewhere, during the resync: the first 2 MiB.
	h := newHistory(rng, killBlocks)
	l := startLoad(t, h, rng, loadSetup{clients: 1, depth: 8, reads: 2, only: "filler", pause: 2 * time.Millisecond}, m)
	l.awaitWrites(c, 50, soon)
	began, wrote := time.Now(), l.writes.Load()
	away.start()
	v := c.awaitInSync(m, away.id, 2*time.Minute)
	took := time.Since(began)
	l.awaitWrites(c, 20, soon)
	l.stop()
	sent := v.Counters["resync_bytes"]
	t.Logf("resync of 256 MiB took %v, %d bytes travelled, %d writes completed meanwhile", took.Round(time.Millisecond), sent, l.writes.Load()-wrote)
	if most := uint64(changed + changed/2 + killBlocks*blockBytes); sent < changed/2 || sent > most {
		t.Errorf("%d bytes travelled, want about the %d that differ and at most %d", sent, changed, most)
	}
	for _, s := range c.servers {
		if err := h.readAll(s, ""); err != nil {
			t.Error(err)
		}
	}
	c.finish()
}

// TestResyncGoesOnAfterEitherEndIsKilled kills slave and master during a resync.
func TestResyncGoesOnAfterEitherEndIsKilled(t *testing.T) {
	rng := newRand(t)
	size := short(256, 128)
	c := startCluster(t, setup{size: fmt.Sprintf("%dMiB", size), keep: "64MiB", onDegraded: "continue"})
	m := c.master()
	away := c.slave()
	away.kill()
	c.awaitDropped(m, away.id)
	const chunk = 256 << 10
	fill(t, m, size<<20/chunk, chunk, func(i int) int64 { return int64(i) * chunk }, rng)
	for _, victim := range []*server{away, m} {
		if !away.running() {
			away.start()
		}
		c.awaitVolume(away, soon, "resyncing, or done", func(v *blockrepl.VolumeStatus) bool {
			return v.State == blockrepl.StateResyncing && v.Resync != nil && v.Resync.DoneBytes > 0 || v.State == blockrepl.StateHealthy
		})
		victim.kill()
		victim.start()
	}
	c.awaitHealthyWithin(2 * time.Minute)
	c.finish()
}
