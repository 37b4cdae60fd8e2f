package bubble

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
)

// isolate cuts a machine off from all others, both ways.
func (w *world) isolate(m *machine, on bool) {
	for _, x := range w.machines {
		if x != m {
			w.net.block(m.name, x.name, on)
			w.net.block(x.name, m.name, on)
		}
	}
}

func TestHungSlaveSuspendsWritesUntilForgottenAndComesBack(t *testing.T) {
	row(t, func(w *world, a, b, c *machine, cl *client) {
		w.isolate(c, true)
		o := cl.begin(0, 4)
		w.await("a says that writes wait for c", answerMax, func() bool {
			st, _ := a.status()
			return st.State == blockrepl.StateSuspended && strings.Contains(st.Next, "forget vol0 c")
		})
		if err, ok := o.wait(5 * time.Second); ok {
			w.errorf("a write was answered (%v) without an in-sync server", err)
		}
		w.forget(a, c)
		cl.answered(o)
		for range 20 {
			cl.must(cl.place())
		}
		w.isolate(c, false)
		w.end()
	})
}

func TestContinueDropsAHungSlaveByItself(t *testing.T) {
	inBubble(t, seedOf(), 2, func(w *world) {
		w.volume.OnDegraded = wire.Continue
		w.bootAll()
		cl := w.client(0, "db1")
		defer cl.leave(false)
		a, b := w.machines[0], w.machines[1]
		w.awaitHealthy()
		cl.moveTo(a)
		cl.must(0, 4)
		w.isolate(b, true)
		for range 20 {
			cl.must(cl.place())
		}
		if st, _ := a.status(); st.State != blockrepl.StateDegraded {
			w.errorf("a is %s, want degraded", st.State)
		}
		w.isolate(b, false)
		w.end()
	})
}

// The old master hangs with a client's write in it; the client goes on at the new
// one, and the hung one wakes up with its copy of the write and with what it read.
func TestHungMasterIsReplacedAndItsStaleWriteNeverWins(t *testing.T) {
	row(t, func(w *world, a, b, c *machine, cl *client) {
		w.isolate(a, true)
		stalled := cl.begin(3, 2)
		// Another client goes on reading at the hung master. What it is told must be
		// true all the same; it may have to wait.
		reader := w.client(1, "db2")
		reader.readOnly = true
		defer reader.leave(false)
		reader.moveTo(a)
		stop := make(chan struct{})
		var reading sync.WaitGroup
		defer reading.Wait()
		defer close(stop)
		reading.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(20 * time.Millisecond):
				}
				reader.mu.Lock()
				conn := reader.conn
				reader.mu.Unlock()
				if conn != nil {
					reader.request(conn)
				}
			}
		})
		time.Sleep(3 * time.Second)
		w.takeOver(b) // the operator has made sure, or believes so
		cl.moveTo(b)
		if st, _ := b.status(); len(st.InSync) == 3 {
			w.forget(b, a)
		}
		cl.answered(stalled)
		for range 10 {
			cl.must(3, 2)
		}
		w.isolate(a, false)
		w.awaitHealthy()
		if st, _ := a.status(); st.Role != "slave" || st.Master != "b" {
			w.errorf("a came back as %s under %s", st.Role, st.Master)
		}
		w.end()
	})
}

// The old master was dead for hours; another one was promoted, and has gone on: within
// what is kept, or beyond it.
func TestOldMasterThatReturnsAfterHoursFollows(t *testing.T) {
	for _, keep := range []int64{0, 4 << 10} {
		t.Run([]string{"by records", "by a resync"}[min(keep, 1)], func(t *testing.T) {
			inBubble(t, seedOf(), 3, func(w *world) {
				w.volume.Keep = keep
				w.bootAll()
				cl := w.client(0, "db1")
				defer cl.leave(false)
				w.awaitHealthy()
				a, b := w.machines[0], w.machines[1]
				cl.moveTo(a)
				for range 5 {
					cl.must(cl.place())
				}
				w.awaitHealthy()
				w.isolate(a, true)
				lost := cl.begin(3, 2) // in a's journal alone
				time.Sleep(time.Second)
				last, _ := a.status()
				a.crash(100)
				w.takeOver(b)
				cl.moveTo(b)
				cl.answered(lost) // sent again
				if st, _ := b.status(); len(st.InSync) == 3 {
					w.forget(b, a)
				}
				for range 600 {
					cl.must(cl.place())
					time.Sleep(12 * time.Second)
				}
				w.isolate(a, false)
				if err := a.boot(); err != nil {
					w.fatalf("a does not start: %v", err)
				}
				w.stays("b is the master, a follows", 5*time.Second, func() bool {
					now, ok := a.status()
					st, _ := b.status()
					return ok && now.Role == "slave" && st.Role == "master"
				})
				w.awaitHealthy()
				st, _ := a.status()
				if st.Master != "b" || st.Role != "slave" {
					w.errorf("a came back as %s under %s", st.Role, st.Master)
				}
				aside := func(q blockrepl.QuarantineStatus) bool {
					return q.First <= last.Last && q.Last == last.Last && q.Epoch == last.Epoch
				}
				if !slices.ContainsFunc(st.Quarantines, aside) {
					w.errorf("a has set aside %+v, want number %d of epoch %s", st.Quarantines, last.Last, last.Epoch)
				}
				if n := w.logged("a", "resync begins"); (n > 0) != (keep > 0) {
					w.errorf("a was resynced %d times, with %d bytes kept", n, st.KeepBytes)
				}
				w.end()
			})
		})
	}
}

// The first copy of a write lies in a slave that cannot reach the master; the
// client writes elsewhere what the first copy must not revert.
func TestForwardStalledInASlaveNeverRevertsNewerWrites(t *testing.T) {
	row(t, func(w *world, a, b, c *machine, cl *client) {
		cl.moveTo(c)
		cl.must(0, 8)
		w.net.block(c.name, a.name, true)
		old := cl.begin(3, 2)
		time.Sleep(3 * peerTimeout / 2)
		w.forget(a, c) // its acknowledgements do not arrive either
		cl.moveTo(b)   // sends it again, with a newer token; c has not heard of it
		cl.answered(old)
		for range 5 {
			cl.must(3, 2)
		}
		w.net.block(c.name, a.name, false)
		time.Sleep(time.Second)
		w.end()
	})
}

func TestOneWayPartitionsHeal(t *testing.T) {
	for _, way := range []struct{ name, from, to string }{
		{"master to slave", "a", "b"}, {"slave to master", "b", "a"}, {"slave to slave", "b", "c"}, {"slave to slave, back", "c", "b"},
	} {
		t.Run(way.name, func(t *testing.T) {
			row(t, func(w *world, a, b, c *machine, cl *client) {
				down := w.logged(way.to, "link down")
				w.net.block(way.from, way.to, true)
				var open []*operation
				for range 6 {
					open = append(open, cl.begin(cl.place()))
					time.Sleep(time.Second)
				}
				open = unanswered(open)
				if w.logged(way.to, "link down") == down {
					w.errorf("%s has not noticed that %s is silent", way.to, way.from)
				}
				switch st, _ := a.status(); {
				case !strings.HasPrefix(way.name, "slave to slave"):
					if st.State != blockrepl.StateSuspended || len(open) < 5 {
						w.errorf("a is %s, %d of 6 writes wait; want them to", st.State, len(open))
					}
				case len(open) > 0:
					w.errorf("%d writes wait for a link that they do not need", len(open))
				}
				w.net.block(way.from, way.to, false)
				for _, o := range open {
					cl.answered(o)
				}
				w.end()
			})
		})
	}
}

func TestDamagedFramesCloseTheLinkAndNothingElse(t *testing.T) {
	row(t, func(w *world, a, b, c *machine, cl *client) {
		cl.moveTo(c) // forwards travel, too
		w.net.setDamage(0.05)
		var open []*operation
		for range 200 {
			if open = unanswered(open); len(open) < pendingMax && cl.attached() {
				open = append(open, cl.begin(cl.place()))
			}
			time.Sleep(50 * time.Millisecond)
		}
		w.net.setDamage(0)
		for _, o := range open {
			cl.answered(o)
		}
		flips, downs, flaps := w.net.flipped(), 0, 0
		for _, m := range w.machines {
			downs += w.logged(m.name, "link down")
			st, _ := m.status()
			for _, p := range st.Peers {
				flaps += int(p.LinkFlaps)
			}
		}
		w.tell("%d flips, %d links down, %d flaps", flips, downs, flaps)
		if flips < 5 || max(downs, flaps) < flips/2 { // of the log's lines some may be left out
			w.errorf("%d bits were flipped and %d links closed, %d soon after they were up", flips, downs, flaps)
		}
		w.end()
	})
}

// A server that is not there is tried again with back-off, and the operator reads of
// the trouble once. For links that come up and break see row_flap_test.go.
func TestReconnectingForAMinuteIsOneLogLine(t *testing.T) {
	row(t, func(w *world, a, b, c *machine, cl *client) {
		if err := c.stop(false); err != nil {
			w.fatalf("stop c: %v", err)
		}
		w.net.mu.Lock()
		before := w.net.dials
		w.net.mu.Unlock()
		lines := func() int { return w.warnings("a", "peer=c") + w.warnings("b", "peer=c") }
		had := lines()
		time.Sleep(time.Minute)
		w.net.mu.Lock()
		dials := w.net.dials - before
		w.net.mu.Unlock()
		if dials < 20 || dials > 400 {
			w.errorf("%d attempts of two servers in a minute", dials)
		}
		if n := lines() - had; n != 2 {
			w.errorf("%d lines of two servers in a minute, want one each", n)
		}
		if err := c.boot(); err != nil {
			w.fatalf("c does not start: %v", err)
		}
		w.end()
	})
}

func TestAThousandConnectsAMinuteFromAStrangerCostNoLogLine(t *testing.T) {
	row(t, func(w *world, a, b, c *machine, cl *client) {
		stranger := w.net.port("z")
		all := func() (n int) {
			w.mu.Lock()
			defer w.mu.Unlock()
			for _, k := range w.logs {
				n += k
			}
			return n
		}
		before := all()
		for i := range 1000 {
			conn, err := stranger.Dial(context.Background(), "a:1")
			if err != nil {
				w.fatalf("dial %d: %v", i, err)
			}
			if _, err := conn.Write([]byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n")); err != nil {
				w.tell("write %d: %v", i, err)
			}
			time.Sleep(60 * time.Millisecond)
			if err := conn.Close(); err != nil {
				w.fatalf("close: %v", err)
			}
		}
		if n := all() - before; n > 1 {
			w.errorf("%d log lines for 1,000 strangers", n)
		}
		for range 5 {
			cl.must(cl.place())
		}
		w.end()
	})
}

func TestGracefulSwitchoverBackAndForth(t *testing.T) {
	row(t, func(w *world, a, b, c *machine, cl *client) {
		for i := range 9 {
			open := cl.begin(cl.place())
			to := w.machines[(i+1)%3]
			w.order(to, "promote", blockrepl.PromoteRequest{}, nil)
			cl.answered(open)
			w.await("healthy under "+to.name, answerMax, func() bool {
				st, ok := to.status()
				return ok && st.Role == "master" && st.State == blockrepl.StateHealthy
			})
			cl.must(cl.place())
		}
		w.end()
	})
}

func TestStopWithHandoverLosesNothing(t *testing.T) {
	row(t, func(w *world, a, b, c *machine, cl *client) {
		open := cl.begin(0, 3)
		began := time.Now()
		if err := a.stop(true); err != nil {
			w.errorf("stop: %v", err)
		}
		if took := time.Since(began); took > 10*time.Second {
			w.errorf("stop took %v of virtual time", took)
		}
		next := b
		if st, _ := c.status(); st.Role == "master" {
			next = c
		}
		cl.moveTo(next)
		if err := a.boot(); err != nil {
			w.fatalf("a does not start: %v", err)
		}
		if _, ok := open.wait(0); !ok {
			cl.answered(open)
		}
		w.end()
	})
}

// The holder of a volume leaves a slave: the master hears of it at once, and another
// client may write.
func TestHolderThatLeavesASlaveFreesTheVolume(t *testing.T) {
	row(t, func(w *world, a, b, c *machine, cl *client) {
		cl.moveTo(b)
		cl.must(0, 4)
		other := w.client(1, "db2")
		other.polite = true
		defer other.leave(false)
		other.moveTo(a)
		if !other.conn.conn.ReadOnly() {
			w.errorf("the volume is offered to two clients")
		}
		cl.leave(false)
		time.Sleep(time.Second)
		other.moveTo(a)
		if other.conn.conn.ReadOnly() {
			w.fatalf("the volume is still held by a client that has left")
		}
		other.must(0, 4)
		w.end()
	})
}
