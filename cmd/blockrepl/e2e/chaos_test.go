package e2e

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl"
)

// TestChaos does everything at once on real processes in network namespaces: kill
// -9, SIGSTOP, networks cut in one direction or whole, disks that hang or are full,
// data directories that vanish, clocks that jump from one life of a server to the
// next, and an operator who promotes and forgets whenever the program lets him without
// a flag. Clients write and read all the time, libnbd's among them; what they may see is
// checked at each read. When all is over every server becomes healthy by itself and holds
// the same, also as nbdcopy and QEMU read it. Why no clock on the wall jumps here: chaos_clock_test.go.
func TestChaos(t *testing.T) {
	rng := newRand(t)
	servers, policy := []string{"a", "b", "c"}[:2+min(1, rng.IntN(4))], []string{"suspend", "continue"}[rng.IntN(2)]
	t.Logf("servers %v, on_degraded = %s", servers, policy)
	n, disks := newNetwork(t, servers...), newDisks(t, servers...)
	x := &chaos{t: t, disks: disks, full: map[string]bool{}, n: n, rng: rng, clocks: newClocks(t), done: map[string]int{}}
	c := startCluster(t, setup{servers: servers, size: "16MiB", keep: "64MiB", onDegraded: policy, shared: true, peerTimeout: 500 * time.Millisecond, ioTimeout: 10 * time.Second,
		data: func(id string) string { return disks[id].data() }, host: n.host, prefix: x.prefix, top: func(*server) string { return "insecure = true\n" }})
	h := newHistory(rng, killBlocks)
	l := startLoad(t, h, rng, loadSetup{clients: 4, depth: 16, reads: 4, roam: true, full: true, wait: 4 * time.Second}, c.servers...)
	t.Cleanup(func() {
		for _, d := range disks {
			d.thaw(t) // a process whose write hangs cannot be killed
		}
	})
	l.awaitWrites(c, 100, soon)
	x.c, x.load, x.histories = c, l, []*history{h}
	if othersClients(t) {
		x.libnbd = startLibnbd(l, rng)
		x.histories = append(x.histories, x.libnbd.h)
		x.libnbd.awaitReads(c, 20)
	}

	until := time.Now().Add(chaosTime(t))
	for time.Now().Before(until) && !t.Failed() {
		x.round()
		if x.rng.IntN(replaceEvery) == 0 {
			x.replace()
		}
	}
	x.healAll()
	if t.Failed() {
		t.FailNow()
	}
	x.over()
	x.figures()
}

// over waits until all clients have gone on, stops them, and looks whether every server
// holds what it may: through its export, by others' clients, and in its image.
func (x *chaos) over() {
	x.load.awaitWrites(x.c, 100, time.Minute)
	if x.libnbd != nil {
		x.libnbd.awaitReads(x.c, 20)
		x.libnbd.stop()
	}
	x.load.stop()
	x.c.awaitHealthyWithin(time.Minute)
	x.clocksShifted()
	for _, s := range x.c.servers {
		for _, h := range x.histories {
			if err := h.readAll(s, ""); err != nil {
				x.t.Error(err)
			}
		}
	}
	if x.libnbd != nil {
		x.c.wholeDevice(x.histories...)
	}
	x.c.finish()
	for _, s := range x.c.servers {
		for _, h := range x.histories {
			if err := h.imageHolds(s); err != nil {
				x.t.Error(err)
			}
		}
	}
}

func (x *chaos) figures() {
	for _, what := range slices.Sorted(maps.Keys(x.done)) {
		x.t.Logf("%4d × %s", x.done[what], what)
	}
	l := x.load
	x.t.Logf("%d writes, %d refused for lack of space, %d reads, %d opens", l.writes.Load(), l.space.Load(), l.reads.Load(), l.opens.Load())
	if x.libnbd != nil {
		x.t.Log(x.libnbd.figures())
	}
}

func chaosTime(t *testing.T) time.Duration {
	t.Helper()
	if s := os.Getenv("BLOCKREPL_CHAOS"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil {
			t.Fatalf("BLOCKREPL_CHAOS: %v", err)
		}
		return d
	}
	return short(30*time.Second, 8*time.Second)
}

// replaceEvery: after one round of so many a server's data directory is taken away.
const replaceEvery = 8

// chaos is who takes part, and what is broken now.
type chaos struct {
	t         *testing.T
	c         *cluster
	load      *load
	libnbd    *libnbdClient // nil: not installed
	histories []*history    // of the clients
	n         *network
	rng       *rand.Rand
	disks     map[string]*disk
	full      map[string]bool // whose disk is
	clocks    bool            // servers can have clocks of their own
	mend      []func()        // undo what this round did
	done      map[string]int
}

// round breaks one to three things, lets an operator act, and mends them in any order.
func (x *chaos) round() {
	for range 1 + x.rng.IntN(3) {
		x.hurt()
		x.pass(50, 700)
	}
	if x.rng.IntN(2) == 0 {
		x.pass(500, 1500) // long enough for the peers to notice
		x.operate()
		x.pass(50, 700)
	}
	x.rng.Shuffle(len(x.mend), func(i, j int) { x.mend[i], x.mend[j] = x.mend[j], x.mend[i] })
	x.healAll()
	if x.rng.IntN(3) == 0 {
		x.operate()
	}
	x.pass(50, 1500)
}

func (x *chaos) healAll() {
	for _, undo := range x.mend {
		undo()
	}
	x.mend = nil
}

// pass lets the load run for a random time.
func (x *chaos) pass(least, most int) {
	<-time.After(time.Duration(least+x.rng.IntN(most-least)) * time.Millisecond)
}

// other is any server but s.
func (x *chaos) other(s *server) *server {
	list := x.c.others(s)
	return list[x.rng.IntN(len(list))]
}

func (x *chaos) hurt() {
	s := x.c.servers[x.rng.IntN(len(x.c.servers))]
	o := x.other(s)
	switch x.rng.IntN(7) {
	case 0:
		if !s.running() {
			return
		}
		x.done["kill -9"]++
		x.kill(s)
		x.start(s)
	case 1:
		if !s.running() {
			return
		}
		x.done["kill -9 and away"]++
		x.kill(s)
		x.mend = append(x.mend, func() {
			if !s.running() {
				x.start(s)
			}
		})
	case 2:
		if !s.running() {
			return
		}
		x.done["SIGSTOP"]++
		s.signal(syscall.SIGSTOP)
		x.mend = append(x.mend, func() {
			if s.running() {
				s.signal(syscall.SIGCONT)
			}
		})
	case 3:
		x.done["one direction cut"]++
		x.cut(s, o)
	case 4:
		x.done["isolated"]++
		for _, o := range x.c.others(s) {
			x.cut(s, o)
			x.cut(o, s)
		}
	case 5:
		x.freeze(s)
	case 6:
		x.fill(s)
	}
}

func (x *chaos) kill(s *server) {
	x.disks[s.id].thaw(x.t) // what hangs in a write outlives every signal
	s.signal(syscall.SIGCONT)
	s.kill()
}

func (x *chaos) cut(to, from *server) {
	x.n.deafen(to.id, from.id)
	x.mend = append(x.mend, func() { x.n.heal(to.id, from.id) })
}

// operate is an operator who uses no flag: whatever is allowed is safe.
func (x *chaos) operate() {
	s := x.c.servers[x.rng.IntN(len(x.c.servers))]
	args, what := []string{"promote", volumeName}, "promote"
	if x.rng.IntN(3) == 0 {
		args, what = []string{"forget", volumeName, x.other(s).id}, "forget"
	}
	o := s.command(append(args, "--timeout", "3s")...)
	switch o.code {
	case 0:
		x.done[what]++
	case 1, 3, 6:
		x.done[fmt.Sprintf("%s, exit status %d", what, o.code)]++
	default:
		x.t.Errorf("%s at %s: %v", what, s.id, o)
	}
	if v, err := s.volume(); err == nil && (v.State == blockrepl.StateSplitBrain || v.State == blockrepl.StateFailed) {
		x.t.Errorf("server %s: %s", s.id, summary(v))
	}
}
