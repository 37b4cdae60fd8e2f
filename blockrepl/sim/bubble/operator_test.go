package bubble

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
)

// operator gives commands. Among faults they come at random, but by the rules that
// the commands' own words ask the operator to keep:
//
//   - --old-master-dead is said only when the server of the newest mastership is
//     off, and it stays off until the command is answered, and only of a server in
//     the in-sync set;
//   - what was forgotten, or left out by --old-master-dead, is not promoted before it
//     is in sync again;
//   - one promotion at a time.
//
// In the calm the operator does what status says, and nothing else but to keep them.
//
// A careless one, in some schedules, breaks the first two: promotes with --accept-loss,
// asserts of a running master that it is dead, and chooses a side of the split brain that
// comes of it. From then until all are healthy again writes may be lost, and history
// judges what was before, and what comes after, each as a disk of its own.
type operator struct {
	w  *world
	wg sync.WaitGroup // commands under way

	mu        sync.Mutex
	free      sync.Cond
	promoting bool
	keepOff   map[*machine]bool
	warned    map[*machine]bool
	until     time.Time // no --old-master-dead before: a stop may have asked a slave to take over

	said map[*machine]said // only obey looks at it

	careless bool             // set before the first command
	wild     bool             // a command was given that may lose writes; guarded by mu
	tried    map[*machine]int // promotions that status asked for since; only obey looks at it
}

// said is what a status has been saying, since when.
type said struct {
	next  string
	since time.Time
}

const saidFor = 3 * time.Second

func newOperator(w *world) *operator {
	o := &operator{w: w, keepOff: map[*machine]bool{}, warned: map[*machine]bool{}, said: map[*machine]said{}, tried: map[*machine]int{}}
	o.free.L = &o.mu
	return o
}

// held reports whether a machine must stay off.
func (o *operator) held(m *machine) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.keepOff[m]
}

// restart starts a machine once nobody needs it to be off.
func (o *operator) restart(m *machine) {
	o.mu.Lock()
	for o.keepOff[m] {
		o.free.Wait()
	}
	o.mu.Unlock()
	for range 5 { // a fault of its disk may come back
		if m.process() != nil || m.boot() == nil {
			return
		}
	}
}

// begin takes the one promotion.
func (o *operator) begin(keepOff *machine) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.promoting {
		return false
	}
	o.promoting = true
	if keepOff != nil {
		o.keepOff[keepOff] = true
	}
	return true
}

func (o *operator) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.promoting = false
	clear(o.keepOff)
	o.free.Broadcast()
}

// run gives a command in the background.
func (o *operator) run(m *machine, what string, body any, after func()) {
	o.w.tell("operator: %s at %s %+v", what, m.name, body)
	o.wg.Go(func() {
		err := m.command(what, body, nil)
		o.w.tell("operator: %s at %s: %v", what, m.name, err)
		if after != nil {
			after()
		}
	})
}

// barred reports whether m must not be promoted: a command was told so, or asserted it.
func (o *operator) barred(m *machine) bool {
	o.mu.Lock()
	warned := o.warned[m]
	o.mu.Unlock()
	return warned && !o.member(m)
}

func (o *operator) bar(m *machine) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.warned[m] = true
}

func (o *operator) promote(m *machine) {
	if m.damaged.Load() || o.barred(m) || !o.begin(nil) {
		return
	}
	o.run(m, "promote", blockrepl.PromoteRequest{}, o.end)
}

// oldDead promotes a member of the in-sync set when the newest master is off.
func (o *operator) oldDead(m *machine) {
	st, proposed, ok := o.newest()
	if !ok || st.Epoch.IsZero() || proposed != nil && proposed.Master != st.Master || !o.member(m) {
		return
	}
	dead := o.w.machine(st.Master.String())
	if dead == m || dead.process() != nil || !o.begin(dead) {
		return
	}
	if dead.process() != nil || o.stopped() { // started meanwhile, or its mastership may have been given away
		o.end()
		return
	}
	o.run(m, "promote", blockrepl.PromoteRequest{OldMasterDead: true}, func() {
		o.leftOut()
		o.end()
	})
}

// leftOut warns of all that the newest state has out of sync: perhaps no majority
// knows that state.
func (o *operator) leftOut() {
	for _, m := range o.w.machines {
		if !o.member(m) {
			o.bar(m)
		}
	}
}

func (o *operator) forget(m, lost *machine, force bool) {
	if m == lost {
		return
	}
	if st, ok := m.status(); !ok || st.Role != "master" || m.damaged.Load() {
		return
	}
	o.bar(lost)
	o.run(m, "forget", blockrepl.ForgetRequest{Server: lost.name, Force: force}, nil)
}

// stop stops a machine in order and starts it again.
func (o *operator) stop(m *machine) {
	p := m.process()
	if p == nil || p.dead() || !o.begin(nil) {
		return
	}
	o.mu.Lock()
	o.until = time.Now().Add(10 * peerTimeout)
	o.mu.Unlock()
	_ = m.stop(true) // its disk may have failed
	o.end()
	time.Sleep(peerTimeout)
	o.restart(m)
}

// stopped reports whether a server was stopped in order not long ago.
func (o *operator) stopped() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return time.Now().Before(o.until)
}

// finish waits for the commands under way.
func (o *operator) finish() { o.wg.Wait() }

// newest is the newest state that any disk knows, and the newest beyond it that a
// master may have proposed; false when a disk cannot be read.
func (o *operator) newest() (st, proposed *wire.State, ok bool) {
	var all []*wire.State
	for _, m := range o.w.machines {
		h, ok, err := m.hard()
		if err != nil {
			return nil, nil, false
		}
		if !ok {
			continue
		}
		if st == nil || newer(&h.State, st) {
			st = &h.State
		}
		if h.Proposed != nil {
			all = append(all, h.Proposed)
		}
	}
	if st == nil {
		return nil, nil, false
	}
	for _, c := range all {
		if newer(c, st) && (proposed == nil || newer(c, proposed)) {
			proposed = c
		}
	}
	return st, proposed, true
}

func newer(a, b *wire.State) bool {
	if c := a.Epoch.Compare(b.Epoch); c != 0 {
		return c > 0
	}
	return a.Number > b.Number
}

// member reports whether m is in the in-sync set now, however the changes under
// way end; that takes a warning back.
func (o *operator) member(m *machine) bool {
	st, proposed, ok := o.newest()
	in := func(st *wire.State) bool {
		for i := range st.InSync {
			if st.InSync[i].ID == m.id {
				return true
			}
		}
		return false
	}
	if !ok || m.damaged.Load() || !in(st) || proposed != nil && !in(proposed) {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.warned, m)
	return true
}

// has reports whether there is a server of that name; none is the master of a volume
// that does not exist yet.
func (w *world) has(name string) bool {
	return slices.ContainsFunc(w.machines, func(m *machine) bool { return m.name == name })
}

// size is the largest that any status names, in bytes.
func (w *world) size() (size int64) {
	for _, m := range w.machines {
		if st, ok := m.status(); ok {
			size = max(size, st.SizeBytes)
		}
	}
	return size
}

func (w *world) machine(name string) *machine {
	for _, m := range w.machines {
		if m.name == name {
			return m
		}
	}
	panic("bubble: bug: no server " + name)
}

// obey looks at every status and does what one has been saying for a while.
func (o *operator) obey() {
	for _, m := range o.w.machines {
		st, ok := m.status()
		if !ok {
			continue
		}
		was := o.said[m]
		if st.Next == "" || st.Next != was.next {
			o.said[m] = said{next: st.Next, since: time.Now()}
			continue
		}
		if time.Since(was.since) < saidFor {
			continue
		}
		delete(o.said, m)
		o.w.tell("operator reads at %s: %s, %s; next: %s", m.name, st.State, st.Reason, st.Next)
		o.do(m, &st)
		o.finish()
		return // one thing at a time
	}
}

func (o *operator) do(m *machine, st *blockrepl.VolumeStatus) {
	if st.State == blockrepl.StateFailed {
		m.crash(100)
		o.restart(m)
		return
	}
	_, command, ok := strings.Cut(st.Next, "blockrepl ")
	if !ok {
		return
	}
	words := strings.Fields(command)
	switch words[0] {
	case "promote":
		if o.isWild() {
			o.insist(m)
			return
		}
		if m.damaged.Load() || o.barred(m) {
			return
		}
		o.run(m, "promote", blockrepl.PromoteRequest{OldMasterDead: o.noMaster() && o.member(m)}, nil)
	case "forget":
		at := m
		if strings.HasPrefix(st.Next, "on the master") && st.Master != "" {
			at = o.w.machine(st.Master)
		}
		lost := strings.TrimRight(words[2], ";.")
		if _, up := o.w.machine(lost).status(); up && strings.Contains(st.Next, "gone for good") {
			return // it is not: it may even be master by our own command
		}
		force := len(words) > 3 && words[3] == "--force" || len(o.w.machines) == 2
		if newest, _, ok := o.newest(); force && (!ok || newest.Master != at.id) {
			return // somebody else was promoted meanwhile, perhaps the lost one
		}
		if force {
			o.bar(o.w.machine(lost))
		}
		o.run(at, "forget", blockrepl.ForgetRequest{Server: lost, Force: force}, nil)
	case "resolve":
		if o.isWild() {
			o.resolve(m)
			return
		}
		o.w.errorf("split brain although the operator kept the rules: %s: %s", m.name, st.Reason)
	}
}

// noMaster reports whether the server that the newest state names master is none.
func (o *operator) noMaster() bool {
	newest, _, ok := o.newest()
	if !ok {
		return false
	}
	st, ok := o.w.machine(newest.Master.String()).status()
	return !ok || st.Role != "master"
}
