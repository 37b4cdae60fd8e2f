package e2e

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"
)

// killBlocks is how many blocks the writers of the kill tests share: few, so that
// each is written often.
const killBlocks = 512

// TestNoCompletedWriteIsLostByKillingAnyServer kills a random server at a random
// moment of the load, again and again, starts it again and reads everything back.
// Writes wait meanwhile (suspend).
func TestNoCompletedWriteIsLostByKillingAnyServer(t *testing.T) {
	rng := newRand(t)
	c := startCluster(t, setup{size: "16MiB", shared: true, peerTimeout: 500 * time.Millisecond})
	h := newHistory(rng, killBlocks)
	l := startLoad(t, h, rng, loadSetup{clients: 3, depth: 16, reads: 4, roam: true}, c.servers...)
	l.awaitWrites(c, 100, soon)
	rounds := short(50, 8)
	var waits []time.Duration
	for round := range rounds {
		l.awaitWrites(c, uint64(rng.IntN(300)), soon) // the moment
		s := c.servers[rng.IntN(len(c.servers))]
		s.kill()
		began := time.Now()
		s.start()
		l.awaitWrites(c, 1, soon)
		waits = append(waits, time.Since(began))
		// What is under way completes; the set is whole again or about to be.
		if reader := c.servers[rng.IntN(len(c.servers))]; round%2 == 0 {
			c.awaitDoor(reader)
			if err := h.readAll(reader, ""); err != nil {
				t.Fatalf("round %d, %s was killed: %v", round, s.id, err)
			}
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	l.stop()
	c.awaitHealthy()
	for _, s := range c.servers {
		if err := h.readAll(s, ""); err != nil {
			t.Error(err)
		}
	}
	c.finish()
	for _, s := range c.servers {
		if err := h.imageHolds(s); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d rounds, %d writes, %d reads, %d opens; kill and restart to the next completed write: %s", rounds, l.writes.Load(),
		l.reads.Load(), l.opens.Load(), spread(waits))
}

// TestNoCompletedWriteIsLostByKillAndPromotion kills a random server of a volume
// that goes on (continue). When it was the master, a slave that is in sync takes
// over. The killed one comes back, catches up and is in sync again.
func TestNoCompletedWriteIsLostByKillAndPromotion(t *testing.T) {
	rng := newRand(t)
	c := startCluster(t, setup{size: "16MiB", onDegraded: "continue", shared: true, peerTimeout: 500 * time.Millisecond})
	h := newHistory(rng, killBlocks)
	l := startLoad(t, h, rng, loadSetup{clients: 3, depth: 16, reads: 4, roam: true}, c.servers...)
	l.awaitWrites(c, 100, soon)
	rounds := short(20, 4)
	var takeovers []time.Duration
	for round := range rounds {
		c.awaitHealthy() // promotion is safe only for who is in sync
		l.awaitWrites(c, uint64(rng.IntN(300)), soon)
		s := c.servers[rng.IntN(len(c.servers))]
		wasMaster := c.master() == s
		s.kill()
		if wasMaster {
			began := time.Now()
			c.promote(c.others(s)[rng.IntN(2)])
			l.awaitWrites(c, 1, soon)
			takeovers = append(takeovers, time.Since(began))
		}
		l.awaitWrites(c, 50, soon)
		for _, o := range c.others(s) {
			if err := h.readAll(o, ""); err != nil {
				t.Fatalf("round %d, %s was killed: %v", round, s.id, err)
			}
		}
		s.start()
		if t.Failed() {
			t.FailNow()
		}
	}
	l.stop()
	c.awaitHealthy()
	for _, s := range c.servers {
		if err := h.readAll(s, ""); err != nil {
			t.Error(err)
		}
	}
	c.finish()
	for _, s := range c.servers {
		if err := h.imageHolds(s); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d rounds, %d writes, %d reads; promotion to the next completed write: %s", rounds, l.writes.Load(), l.reads.Load(), spread(takeovers))
}

// TestAllServersKilledAtOnceLoseNothing is the power cut of a whole room, as far as
// kill -9 goes: everything acknowledged is there when they come back.
func TestAllServersKilledAtOnceLoseNothing(t *testing.T) {
	rng := newRand(t)
	c := startCluster(t, setup{size: "16MiB", shared: true, peerTimeout: 500 * time.Millisecond})
	h := newHistory(rng, killBlocks)
	l := startLoad(t, h, rng, loadSetup{clients: 3, depth: 16, reads: 2, roam: true}, c.servers...)
	for range short(6, 2) {
		l.awaitWrites(c, 200, soon)
		for _, s := range c.servers {
			s.signal(syscall.SIGKILL)
		}
		for _, s := range c.servers {
			s.kill()
			s.start()
		}
		l.awaitWrites(c, 1, soon)
		reader := c.servers[rng.IntN(3)]
		c.awaitDoor(reader)
		if err := h.readAll(reader, ""); err != nil {
			t.Fatal(err)
		}
	}
	l.stop()
	c.finish()
	for _, s := range c.servers {
		if err := h.imageHolds(s); err != nil {
			t.Error(err)
		}
	}
}

// spread is least, median and most.
func spread(d []time.Duration) string {
	if len(d) == 0 {
		return "none"
	}
	slices.Sort(d)
	return fmt.Sprintf("least %v, median %v, most %v of %d", d[0].Round(time.Millisecond), d[len(d)/2].Round(time.Millisecond),
		d[len(d)-1].Round(time.Millisecond), len(d))
}
