package bubble

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

func TestFullDiskRefusesWritesAndRecovers(t *testing.T) {
	for _, at := range []int{0, 1} {
		t.Run([]string{"master", "slave"}[at], func(t *testing.T) {
			row(t, func(w *world, a, b, c *machine, cl *client) {
				d := w.machines[at].process().disk
				whole := d.free.Load()
				d.free.Store(journalReserve * 3 / 4)
				time.Sleep(2 * time.Second)
				if err := cl.refusal(0, 8); !errors.Is(err, syscall.ENOSPC) {
					w.errorf("a client was told %v, want ENOSPC", err)
				}
				w.readAll(a)
				d.free.Store(whole)
				time.Sleep(2 * time.Second)
				for range 20 {
					cl.must(cl.place())
				}
				w.end()
			})
		})
	}
}

// failing are the ways in which a disk fails.
var failing = []struct {
	name  string
	fault fault
}{
	{"journal EIO", fault{place: "journal", times: 1 << 30, err: syscall.EIO}},
	{"journal fsync fails", fault{place: "journal", kinds: syncs, times: 1 << 30, err: syscall.EIO}},
	{"journal fsync fails once", fault{place: "journal", kinds: syncs, err: syscall.EIO}},
	{"journal write fails with ENOSPC", fault{place: "journal", kinds: []errorfs.OpKind{errorfs.OpFileWrite}, times: 1 << 30, err: syscall.ENOSPC}},
	{"image EIO", fault{place: "images", times: 1 << 30, err: syscall.EIO}},
	{"image full", fault{place: "images", kinds: []errorfs.OpKind{errorfs.OpFileWriteAt}, times: 1 << 30, err: syscall.ENOSPC}},
	{"image fsync fails", fault{place: "images", kinds: syncs, times: 1 << 30, err: syscall.EIO}},
	{"image fsync fails once", fault{place: "images", kinds: syncs, err: syscall.EIO}},
}

// untilFailed writes until the machine says that it has failed.
func (c *client) untilFailed(m *machine) (open []*operation) {
	c.w.await(m.name+" fails", healthyMax, func() bool {
		if m.is(blockrepl.StateFailed) {
			return true
		}
		if c.attached() && len(open) < pendingMax {
			open = append(open, c.begin(c.place()))
		}
		open = unanswered(open)
		return false
	})
	return unanswered(open)
}

func unanswered(ops []*operation) (open []*operation) {
	for _, o := range ops {
		if _, ok := o.wait(0); !ok {
			open = append(open, o)
		}
	}
	return open
}

func TestSlaveWithAFailedDiskLeavesAndSaysWhy(t *testing.T) {
	for _, f := range failing {
		t.Run(f.name, func(t *testing.T) {
			row(t, func(w *world, a, b, c *machine, cl *client) {
				ft := f.fault
				d := b.process().disk
				d.arm(&ft)
				open := cl.untilFailed(b)
				st, _ := b.status()
				if !strings.Contains(st.Reason, "injected") || st.Next == "" {
					w.errorf("status says %q, next %q", st.Reason, st.Next)
				}
				// A retried fsync would succeed now. Nobody may believe it.
				d.disarm()
				durable := st.Durable
				w.stays("b has failed and acknowledges nothing", 5*time.Second, func() bool {
					st, ok := b.status()
					return ok && st.State == blockrepl.StateFailed && st.Durable == durable
				})
				w.tell("open %d", len(open))
				if st, _ := a.status(); len(st.InSync) == 3 {
					w.forget(a, b)
				}
				for _, o := range open {
					cl.answered(o)
				}
				for range 20 {
					cl.must(cl.place())
				}
				b.crash(0) // the disk keeps what was synced, and not a byte more
				if err := b.boot(); err != nil {
					w.fatalf("b does not start: %v", err)
				}
				w.end()
			})
		})
	}
}

func TestMasterWithAFailedDiskSendsItsClientsAway(t *testing.T) {
	for _, f := range failing {
		t.Run(f.name, func(t *testing.T) {
			row(t, func(w *world, a, b, c *machine, cl *client) {
				ft := f.fault
				a.process().disk.arm(&ft)
				cl.untilFailed(a)
				w.await("the client is sent away without a reply", answerMax, func() bool { return !cl.attached() })
				a.crash(0)
				w.takeOver(b)
				cl.moveTo(b)
				st, _ := b.status()
				if len(st.InSync) == 3 {
					w.forget(b, a)
				}
				for range 10 {
					cl.must(cl.place())
				}
				if err := a.boot(); err != nil {
					w.fatalf("a does not start: %v", err)
				}
				w.end()
			})
		})
	}
}

// Every call of the journal and of the image fails once, in turn.
func TestEachCallOfADiskMayFail(t *testing.T) {
	for _, place := range []string{"journal", "images", "other"} {
		for n := range 40 {
			t.Run(fmt.Sprintf("%s %d", place, n), func(t *testing.T) {
				row(t, func(w *world, a, b, c *machine, cl *client) {
					ft := &fault{place: place, after: n, err: syscall.EIO}
					d := b.process().disk
					d.arm(ft)
					var open []*operation
					for range 30 {
						open = append(open, cl.begin(cl.place()))
						time.Sleep(300 * time.Millisecond)
						if open = unanswered(open); len(open) > 2 {
							break
						}
					}
					if d.hits(ft) == 0 {
						w.tell("the call never came")
					}
					if b.is(blockrepl.StateFailed) || d.hits(ft) > 0 {
						b.crash(100)
						if err := b.boot(); err != nil {
							w.fatalf("b does not start: %v", err)
						}
					}
					w.awaitHealthy()
					for _, o := range open {
						cl.answered(o)
					}
					w.end()
				})
			})
		}
	}
}

func TestPowerCutOfAllLosesNothingAcknowledged(t *testing.T) {
	for _, keep := range []int{0, 50, 100} {
		t.Run(fmt.Sprintf("%d%% kept", keep), func(t *testing.T) {
			inBubble(t, seedOf(), 3, func(w *world) {
				w.slow = 5 * time.Millisecond
				w.memTable = 4 << 20
				w.bootAll()
				cl := w.client(0, "db1")
				defer func() { cl.leave(false) }()
				w.awaitHealthy()
				for range 4 {
					cl.moveTo(w.machines[cl.rng.IntN(3)])
					for range 12 {
						cl.begin(cl.place())
						time.Sleep(time.Duration(cl.rng.Int64N(int64(4 * time.Millisecond))))
					}
					for _, m := range w.machines {
						m.process().die(keep, true)
					}
					for _, m := range w.machines {
						m.process().bury()
					}
					w.bootAll()
					w.awaitHealthy()
					for _, m := range w.machines {
						w.readAll(m)
					}
				}
				cl.moveTo(w.machines[0])
				w.end()
			})
		})
	}
}

// What a resync has copied is on disk before it is noted as copied: after a power cut
// the rest is copied, and not that.
func TestCopiedExtentsOutliveAPowerCut(t *testing.T) {
	row(t, func(w *world, a, b, c *machine, cl *client) {
		for range 10 {
			cl.must(cl.place())
		}
		b.crash(100)
		if err := b.mem.RemoveAll(dataDir); err != nil {
			w.fatalf("remove the data directory: %v", err)
		}
		w.forget(a, b)
		if err := b.boot(); err != nil {
			w.fatalf("b does not start: %v", err)
		}
		p := b.process()
		// The next fsync is that of the resync's end.
		p.disk.arm(&fault{place: "images", kinds: syncs, times: 1 << 30, do: func() {
			if w.logged("b", "every extent is compared") > 0 {
				p.die(0, true)
			}
		}})
		w.await("b dies at the end of its resync", healthyMax, p.dead)
		p.bury()
		if err := b.boot(); err != nil {
			w.fatalf("b does not start: %v", err)
		}
		w.end()
	})
}
