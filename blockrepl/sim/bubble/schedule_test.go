package bubble

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
)

var (
	schedules = flag.Int("schedules", 60, "how many random schedules run")
	length    = flag.Duration("length", 0, "run random schedules for so long, however many; 0: -schedules of them")
	oneSeed   = flag.Uint64("seed", 0, "the one schedule to run; 0 draws some")
	live      = flag.Bool("live", false, "print what happens when it happens, for a schedule that hangs")
	showAll   = flag.Bool("trace", false, "a failure shows all that happened")
)

// refuse hears of an error that a client got for a change. In a random schedule
// there are none but for a full disk, since an error reply aborts a file system's journal.
func (w *world) refuse(err error) {
	if !errors.Is(err, syscall.ENOSPC) {
		w.errorf("a client was told an error: %v", err)
	}
}

// TestSchedules: clients write, read and move while servers, disks and links fail;
// then everything heals, and every server must hold one disk's worth of bytes.
func TestSchedules(t *testing.T) {
	total, began, played := map[string]int{}, time.Now(), 0
	more := func() bool {
		switch {
		case *oneSeed != 0:
			return played < 1
		case *length != 0:
			return time.Since(began) < *length
		}
		return played < *schedules
	}
	for more() && !t.Failed() {
		seed := *oneSeed
		if seed == 0 {
			seed = rand.Uint64()
		}
		s := &schedule{hits: map[string]int{}}
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 's'))
			inBubble(t, seed, 1+min(2, rng.IntN(5)), func(w *world) { s.run(w, rng) })
			s.hit("undecided sectors", s.w.history.undecided)
		})
		played++
		for k, v := range s.hits {
			total[k] += v
		}
		if t.Failed() && *oneSeed == 0 {
			t.Logf("repeat with -run TestSchedules -seed %d", seed)
		}
	}
	t.Logf("%d schedules: %v", played, total)
}

// schedule is the course of one run.
type schedule struct {
	w     *world
	rng   *rand.Rand
	op    *operator
	mu    sync.Mutex
	hits  map[string]int // guarded by mu
	names []string       // of the faults that this schedule draws from
	later sync.WaitGroup

	patient bool // clients stay at their server as long as it lets them
}

// run goes through the phases: faults, calm, perhaps a power cut of all, the end.
func (s *schedule) run(w *world, rng *rand.Rand) {
	s.w, s.rng = w, rng
	s.op = newOperator(w)
	s.profile()
	w.bootAll()
	stop := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var clients sync.WaitGroup
	n := 1
	if w.volume.Shared {
		n = 1 + rng.IntN(3)
	}
	for i := range n {
		c := w.client(i, fmt.Sprintf("client%d", i))
		c.patient = s.patient
		clients.Go(func() { c.run(stop, ctx) })
	}
	if rng.IntN(3) == 0 {
		c := w.client(9, "stale")
		c.stale = true
		clients.Go(func() { c.run(stop, ctx) })
	}
	if rng.IntN(2) == 0 {
		c := w.client(8, "reader")
		c.readOnly = true
		clients.Go(func() { c.run(stop, ctx) })
	}
	s.faults()
	s.later.Wait()
	s.calm()
	close(stop)
	s.drain(&clients, cancel)
	acked, reads := w.history.counts()
	s.hit("acknowledged", acked)
	s.hit("reads", reads)
	for _, m := range w.machines {
		w.readAll(m)
	}
	if rng.IntN(2) == 0 {
		s.hit("power cut of all at the end", 1)
		for _, m := range w.machines {
			m.process().die(rng.IntN(100), true)
		}
		for _, m := range w.machines {
			m.process().bury()
		}
		w.bootAll()
		s.calm()
		for _, m := range w.machines {
			w.readAll(m)
		}
	}
	w.equal()
}

// profile draws what kind of cluster this is.
func (s *schedule) profile() {
	w, r := s.w, s.rng
	w.volume.Shared = r.IntN(2) == 0
	if r.IntN(5) == 0 {
		w.volume.OnDegraded = wire.Continue
	}
	if r.IntN(2) == 0 {
		w.slow = time.Duration(r.Int64N(int64(40 * time.Millisecond)))
		w.memTable = 4 << 20
	} else {
		w.memTable = 128 << 10
	}
	if r.IntN(2) == 0 {
		w.ring = 64 << 10
	}
	if r.IntN(3) == 0 {
		w.volume.Keep = 64 << 10 // absent servers need a resync
	}
	w.net.delay = []time.Duration{100 * time.Microsecond, 2 * time.Millisecond, 50 * time.Millisecond}[r.IntN(3)]
	all := []string{"kill", "power", "kill in a call", "one way", "both ways", "isolate", "reset", "full", "damage", "promote", "old dead", "take over", "take over", "forget", "set", "stop", "wall", "journal error", "image error", "power all", "hang"}
	for _, name := range all {
		if r.IntN(2) == 0 {
			s.names = append(s.names, name)
		}
	}
	s.patient = r.IntN(3) == 0
	w.tell("servers %d, shared %v, %v, slow %v, memtable %d, keep %d, delay %v, patient %v, faults %q", len(w.machines), w.volume.Shared,
		w.volume.OnDegraded, w.slow, w.memTable, w.volume.Keep, w.net.delay, s.patient, s.names)
}

func (s *schedule) faults() {
	time.Sleep(time.Duration(s.rng.Int64N(int64(3 * time.Second))))
	for range s.rng.IntN(12) {
		if len(s.names) > 0 {
			s.fault(s.names[s.rng.IntN(len(s.names))])
		}
		time.Sleep(time.Duration(s.rng.ExpFloat64() * float64(1500*time.Millisecond)))
	}
}

// back restarts a machine after a while.
func (s *schedule) back(m *machine) {
	wait := time.Duration(s.rng.ExpFloat64() * float64(2*time.Second))
	again := s.rng.IntN(3) == 0 && s.has("kill in a call") // it dies while it starts
	after, keep := s.rng.IntN(60), s.rng.IntN(101)
	place := []string{"journal", "images", "other"}[s.rng.IntN(3)]
	p := m.process() // now: another fault may bury it before the goroutine runs
	s.later.Go(func() {
		<-p.gone
		p.bury()
		time.Sleep(wait)
		if again && !s.op.held(m) {
			if p := m.dying(&fault{place: place, after: after}, keep); p != nil {
				s.hit("killed while starting", 1)
			}
		}
		s.op.restart(m)
	})
}

func (s *schedule) hit(what string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hits[what] += n
}

func (s *schedule) has(name string) bool { return slices.Contains(s.names, name) }

func (s *schedule) fault(name string) {
	w, r := s.w, s.rng
	m := w.machines[r.IntN(len(w.machines))]
	other := w.machines[r.IntN(len(w.machines))]
	p := m.process()
	if p == nil || p.dead() || s.op.held(m) {
		return
	}
	s.hit(name, 1)
	w.tell("fault: %s at %s, %s", name, m.name, other.name)
	switch name {
	case "kill":
		s.back(m)
		p.die(100, false)
	case "power":
		s.back(m)
		p.die(r.IntN(100), r.IntN(2) == 0)
	case "power all":
		for _, m := range w.machines {
			if p := m.process(); p != nil && !p.dead() && !s.op.held(m) {
				s.back(m)
				p.die(r.IntN(100), true)
			}
		}
	case "kill in a call":
		s.back(m)
		keep := []int{100, 0, r.IntN(100)}[r.IntN(3)]
		p.disk.arm(&fault{place: []string{"journal", "images", "other"}[r.IntN(3)], after: r.IntN(40), do: func() { p.die(keep, false) }})
		s.later.Go(func() {
			time.Sleep(3 * time.Second)
			p.die(keep, false)
		})
	case "one way", "both ways":
		if other == m {
			return
		}
		w.net.block(m.name, other.name, true)
		if name == "both ways" {
			w.net.block(other.name, m.name, true)
		}
		wait := time.Duration(r.ExpFloat64() * float64(3*time.Second))
		s.later.Go(func() {
			time.Sleep(wait)
			w.net.block(m.name, other.name, false)
			w.net.block(other.name, m.name, false)
		})
	case "isolate":
		wait := time.Duration(r.ExpFloat64() * float64(3*time.Second))
		w.isolate(m, true)
		s.later.Go(func() {
			time.Sleep(wait)
			w.isolate(m, false)
		})
	case "full":
		wait := time.Duration(r.ExpFloat64() * float64(3*time.Second))
		p.disk.free.Store(journalReserve * 3 / 4)
		s.later.Go(func() {
			time.Sleep(wait)
			p.disk.free.Store(roomy)
		})
	case "hang":
		p.disk.hung.Store(time.Now().Add(time.Duration(r.ExpFloat64() * float64(4*time.Second))).UnixNano())
	case "reset":
		w.net.reset(m.name, other.name)
	case "damage":
		w.net.setDamage(0.02)
		s.later.Go(func() {
			time.Sleep(time.Second)
			w.net.setDamage(0)
		})
	case "wall":
		w.tell("the clock on the wall of %s jumps", m.name)
		m.wall.Store(r.Int64N(int64(2*365*24*time.Hour)) - int64(365*24*time.Hour))
	case "journal error", "image error":
		f := &fault{place: "journal", after: r.IntN(30), times: 1 + r.IntN(3), err: syscall.EIO}
		if name == "image error" {
			f.place, f.after = "images", r.IntN(10)
		}
		if r.IntN(2) == 0 {
			f.kinds = syncs
		}
		p.disk.arm(f)
		s.back(m)
		s.later.Go(func() {
			time.Sleep(4 * time.Second)
			p.die(100, false) // somebody restarts it
		})
	case "take over":
		// The master dies, with what was under way, and another one takes its place.
		if st, ok := m.status(); ok && st.Master != "" {
			m = w.machine(st.Master)
		}
		if p = m.process(); p == nil || p.dead() || other == m {
			return
		}
		keep := []int{100, 0, r.IntN(100)}[r.IntN(3)]
		wait, away := time.Duration(r.ExpFloat64()*float64(time.Second)), time.Duration(r.ExpFloat64()*float64(3*time.Second))
		p.die(keep, r.IntN(2) == 0)
		s.later.Go(func() {
			p.bury()
			time.Sleep(wait)
			s.op.oldDead(other)
			time.Sleep(away)
			s.op.restart(m)
		})
	case "promote":
		s.op.promote(m)
	case "old dead":
		s.op.oldDead(m)
	case "forget":
		s.op.forget(m, other, r.IntN(3) == 0)
	case "set":
		if st, ok := m.status(); ok && st.Master != "" {
			m = w.machine(st.Master)
		}
		s.op.run(m, "set", blockrepl.SetRequest{OnDegraded: []string{"", "suspend", "continue"}[r.IntN(3)], KeepBytes: []int64{0, 64 << 10, 1 << 30}[r.IntN(3)]}, nil)
	case "stop":
		s.later.Go(func() { s.op.stop(m) })
	}
}

// calm ends the faults and has the operator do what status says until all are healthy.
func (s *schedule) calm() {
	w := s.w
	w.tell("calm")
	w.net.heal()
	w.net.setDelay(time.Millisecond)
	for _, m := range w.machines {
		if p := m.process(); p != nil {
			p.disk.disarm()
		}
	}
	s.op.finish()
	w.bootAll()
	w.await("every server healthy", healthyMax, func() bool {
		if w.serving() {
			return true
		}
		s.op.obey()
		return false
	})
}

// drain waits until every request has its answer.
func (s *schedule) drain(clients *sync.WaitGroup, cancel context.CancelFunc) {
	done := make(chan struct{})
	go func() {
		clients.Wait()
		close(done)
	}()
	t := time.NewTimer(healthyMax)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
		s.w.describe()
		s.w.errorf("requests have no answer %v after the last fault", healthyMax)
	}
	cancel()
	<-done
	s.w.await("healthy behind the last write", healthyMax, func() bool { return s.w.healthy(s.w.machines...) })
}
