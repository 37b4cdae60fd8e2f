package blockrepl

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/journal/record"
	"golang.org/x/time/rate"
)

// Each batch of clients' writes let a server go on that waited for the limit of kept
// records, and the debt of what it had got too early held it up when they were quiet.
func TestClientsWritesDoNotEndTheWaitOfAServerThatCatchesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := &Volume{}
		var o outbox
		o.init(func(why string) { t.Errorf("link closed: %s", why) })
		take := func() (c *cursor, at cursor) { // as the writer does
			o.mu.Lock()
			some := len(o.ready) > 0
			o.mu.Unlock()
			if some {
				_, c, at, _ = o.take(nil)
			}
			return c, at
		}
		o.stream(v, &replica.Stream{From: 1, End: 100})
		c, at := take()
		o.later(c, at, time.Second)
		for end := record.Seq(101); end < 110; end++ {
			o.stream(v, &replica.Stream{End: end})
			if c, _ := take(); c != nil {
				t.Fatalf("record %d let it go on", end)
			}
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if c, at = take(); c == nil || !at.paid {
			t.Fatalf("behind its wait it goes on: %t, and has paid: %t", c != nil, at.paid)
		}

		o.sent(c, at, 20)
		c, at = take()
		o.later(c, at, time.Second)
		o.stream(v, &replica.Stream{From: 50, End: 110})
		if c, at = take(); c == nil || at.paid {
			t.Fatalf("moved, it goes on: %t, and has paid: %t", c != nil, at.paid)
		}
		o.later(c, cursor{next: 20}, time.Second) // the writer looked before it was moved
		if c, _ = take(); c == nil {
			t.Fatal("moved while the writer looked at it, it waits")
		}
		time.Sleep(time.Second)
		synctest.Wait()
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.cursors[v].paid || len(o.ready) > 0 {
			t.Error("the wait before the move counts behind it")
		}
	})
}

// The limit alone would never let a server catch up with clients that write more.
func TestAServerThatCatchesUpGainsOnItsClients(t *testing.T) {
	l := catchUpLimit{steady: rate.NewLimiter(1, frameBytes)}
	now := time.Now()
	l.delay(now)
	for range 8 {
		l.wrote(frameBytes / 4)
	}
	sent := 0
	for l.delay(now) == 0 {
		sent++
	}
	if sent != 4 {
		t.Errorf("clients wrote 2 frames; %d went out without a wait, want twice as many", sent)
	}
}
