package bubble

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
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
	fromFlag  = flag.Uint64("from", 0, "the first seed; 0: drawn")
	shortenIt = flag.Bool("shorten", true, "look which faults a failing seed needs, for 2 minutes")
	live      = flag.Bool("live", false, "print what happens when it happens, for a schedule that hangs")
	offFlag   = flag.String("off", "", "faults that never strike, by name, separated by commas")
	faultsFor = flag.Duration("faults-for", 0, "how long faults strike; 0: drawn from the seed")
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
	c := &campaign{t: t, began: time.Now(), hits: map[string]int{}, cover: cover{}}
	first := *fromFlag
	if first == 0 {
		first = rand.Uint64()
	}
	if *oneSeed != 0 {
		c.play(*oneSeed)
	} else {
		t.Logf("first seed %d", first)
	}
	for *oneSeed == 0 && !t.Failed() && (*length != 0 && time.Since(c.began) < *length || *length == 0 && c.played < *schedules) {
		c.play(first + uint64(c.played))
	}
	c.end()
}

// TestSaved plays the seeds that are kept.
func TestSaved(t *testing.T) {
	c := &campaign{t: t, began: time.Now(), hits: map[string]int{}, cover: cover{}}
	for _, seed := range saved {
		c.play(seed)
	}
	c.end()
}

// TestCoverage plays fixed seeds and looks what they tried: a fault that never strikes
// proves nothing.
func TestCoverage(t *testing.T) {
	if coverSeeds == 0 {
		t.Skip("the race detector plays too few")
	}
	c := &campaign{t: t, began: time.Now(), hits: map[string]int{}, cover: cover{}}
	for seed := uint64(1); seed <= coverSeeds && !t.Failed(); seed++ {
		c.play(seed)
	}
	c.end()
	for _, name := range c.cover.missing() {
		t.Errorf("never tried in %d schedules: %s", c.played, name)
	}
}

// campaign counts what a test played.
type campaign struct {
	t      *testing.T
	began  time.Time
	played int
	hits   map[string]int
	cover  cover
}

// A schedule in which many clients send much again and again has a dozen sectors that
// nobody can decide about. More of them than undecidedMost for each schedule, over
// undecidedLeast schedules or more, would mean that schedules pass unjudged.
const (
	undecidedMost  = 1
	undecidedLeast = 30
)

// end tells what was played.
func (c *campaign) end() {
	c.t.Log(c)
	if n := c.hits["undecided sectors"]; c.played >= undecidedLeast && n > undecidedMost*c.played {
		c.t.Errorf("%d sectors of %d schedules cannot be decided within %d steps each", n, c.played, stepsMost)
	}
}

func (c *campaign) String() string {
	return fmt.Sprintf("%d schedules: %v%v", c.played, c.hits, c.cover)
}

// play plays one seed. When it fails it is printed how to repeat it, and what is left
// of it when it is shortened.
func (c *campaign) play(seed uint64) {
	s := &schedule{hits: map[string]int{}, cover: cover{}}
	ok := c.t.Run(fmt.Sprint(seed), func(t *testing.T) {
		rng := rand.New(rand.NewPCG(seed, 's'))
		inBubble(t, seed, 1+min(2, rng.IntN(5)), func(w *world) { s.run(w, rng) })
		s.hit("undecided sectors", s.w.history.undecided)
		s.hit("replays of a whole journal", s.w.replayed)
	})
	c.played++
	for k, v := range s.hits {
		c.hits[k] += v
	}
	for fault, states := range s.cover {
		for state, n := range states {
			c.cover.add(fault, state, n)
		}
	}
	if !ok {
		c.t.Logf("repeat with %s", replay(seed, *offFlag, *faultsFor))
		if *shortenIt {
			c.t.Log(shorten(seed, s.cover))
		}
	}
}

// schedule is the course of one run.
type schedule struct {
	w     *world
	rng   *rand.Rand
	op    *operator
	mu    sync.Mutex
	hits  map[string]int // guarded by mu
	cover cover          // guarded by mu
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
	if s.op.careless {
		s.settle()
	}
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
	s.op.careless = len(w.machines) > 1 && r.IntN(4) == 0
	for _, name := range allFaults {
		n := 2
		if slices.Contains(carelessFaults, name) {
			n = 1
		}
		if r.IntN(n) == 0 && (s.op.careless || !slices.Contains(carelessFaults, name)) {
			s.names = append(s.names, name)
		}
	}
	s.patient = r.IntN(3) == 0
	w.tell("servers %d, shared %v, %v, slow %v, memtable %d, keep %d, delay %v, patient %v, careless %v, faults %q", len(w.machines), w.volume.Shared,
		w.volume.OnDegraded, w.slow, w.memTable, w.volume.Keep, w.net.delay, s.patient, s.op.careless, s.names)
}

func (s *schedule) faults() {
	// Each fault has a generator of its own: one that is switched off leaves the others
	// as they were.
	r := s.w.rand('f')
	time.Sleep(time.Duration(r.Int64N(int64(3 * time.Second))))
	began, off := time.Now(), strings.Split(*offFlag, ",")
	for range r.IntN(12) {
		if *faultsFor > 0 && time.Since(began) >= *faultsFor {
			return
		}
		s.rng = s.w.rand(r.Uint64())
		if len(s.names) > 0 {
			if name := s.names[r.IntN(len(s.names))]; !slices.Contains(off, name) {
				s.fault(name)
			}
		}
		time.Sleep(time.Duration(r.ExpFloat64() * float64(1500*time.Millisecond)))
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
	for _, m := range w.machines {
		m.damaged.Store(false)
	}
}

// settle ends what a careless operator has lost: from now on nothing may be. Copies of
// requests that were answered before lie nowhere any more.
func (s *schedule) settle() {
	w := s.w
	time.Sleep(zombieMax + ioTimeout)
	s.op.sober()
	w.await("every server healthy under one master", healthyMax, func() bool {
		var first blockrepl.VolumeStatus
		for i, m := range w.machines {
			st, ok := m.status()
			if i == 0 {
				first = st
			}
			if !ok || st.State != blockrepl.StateHealthy || st.Epoch != first.Epoch || st.Master != first.Master {
				return false
			}
		}
		return true
	})
	w.history.settle()
	time.Sleep(2 * time.Second)
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
