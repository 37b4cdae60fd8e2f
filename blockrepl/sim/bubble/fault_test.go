package bubble

import (
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl"
)

// allFaults are the names that a schedule draws from. What of the reference's faults is
// not among them: a reload of the configuration, which exchanges certificates, permissions
// and the log's level, all in package main, and nothing that a volume knows of.
var allFaults = []string{"kill", "power", "kill in a call", "one way", "both ways", "isolate", "reset", "full", "damage", "promote", "old dead",
	"take over", "take over", "forget", "set", "stop", "wall", "journal error", "image error", "power all", "hang",
	"pause", "pause", "usurp", "resize", "journal full", "image full", "data lost", "old copy", "old copy", "journal rot", "image rot",
	"accept loss", "lie", "lie", "resolve", "resolve"}

// carelessFaults are commands of a careless operator; loneFaults take from one disk what
// it had called durable.
var (
	carelessFaults = []string{"accept loss", "lie", "lie", "resolve", "resolve"}
	loneFaults     = []string{"data lost", "old copy", "journal rot", "image rot"}
)

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

// pause lets a machine sleep for a while, at least for least.
func (s *schedule) pause(m *machine, least time.Duration) {
	d := least + time.Duration(s.rng.ExpFloat64()*float64(3*time.Second))
	p := m.process()
	if p == nil || !p.pause(d) {
		return
	}
	s.later.Go(func() {
		time.Sleep(d)
		p.resume()
		s.w.tell("%s wakes up", m.name)
	})
}

// met counts a fault, by what the server was doing.
func (s *schedule) met(name string, m *machine) {
	state := m.doing()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cover.add(name, state, 1)
}

func (s *schedule) hit(what string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hits[what] += n
}

func (s *schedule) has(name string) bool { return slices.Contains(s.names, name) }

// master is the machine that m takes for the master, or m.
func (s *schedule) master(m *machine) *machine {
	if st, ok := m.status(); ok && s.w.has(st.Master) {
		return s.w.machine(st.Master)
	}
	return m
}

func (s *schedule) fault(name string) {
	w, r := s.w, s.rng
	m := w.machines[r.IntN(len(w.machines))]
	other := w.machines[r.IntN(len(w.machines))]
	if slices.Contains(loneFaults, name) {
		s.upset(name, m)
		return
	}
	switch name {
	case "take over", "set", "usurp":
		m = s.master(m)
	}
	p := m.process()
	if p == nil || p.dead() || s.op.held(m) {
		return
	}
	switch name {
	case "one way", "both ways", "take over", "usurp", "forget", "reset":
		if other == m {
			return
		}
	}
	s.met(name, m)
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
	case "journal error", "image error", "journal full", "image full":
		f := &fault{place: "journal", after: r.IntN(30), times: 1 + r.IntN(3), err: syscall.EIO}
		if strings.HasPrefix(name, "image") {
			f.place, f.after = "images", r.IntN(10)
		}
		switch {
		case strings.HasSuffix(name, "full"): // although there was room a moment ago
			f.err = syscall.ENOSPC
		case r.IntN(2) == 0:
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
		s.op.run(m, "set", blockrepl.SetRequest{OnDegraded: []string{"", "suspend", "continue"}[r.IntN(3)], KeepBytes: []int64{0, 64 << 10, 1 << 30}[r.IntN(3)]}, nil)
	case "pause":
		s.pause(m, 0)
	case "usurp":
		// The master sleeps; somebody else is promoted; it wakes up, with requests of
		// clients who have not left, and believes in itself.
		s.pause(m, time.Second)
		wait := time.Duration(r.ExpFloat64() * float64(time.Second))
		s.later.Go(func() {
			time.Sleep(wait)
			s.op.promote(other)
		})
	case "resize":
		size := w.size() + int64(8+r.IntN(64))*sector
		if size <= sectorsMost*sector && !s.op.careless { // else a size could be among what is lost
			s.op.run(m, "resize", blockrepl.ResizeRequest{SizeBytes: size}, nil)
		}
	case "accept loss":
		s.op.acceptLoss(m, r.IntN(2) == 0)
	case "lie":
		s.op.lie(m)
	case "resolve":
		s.op.resolve(m)
	case "stop":
		s.later.Go(func() { s.op.stop(m) })
	}
}
