package bubble

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl"
)

// What the rows share: a cluster of three, and a client that does one thing after
// the other.

// answerMax is how long a row waits for an answer that must come.
const answerMax = 30 * time.Second

// seedOf draws a row's seed, or takes the one that -seed names.
func seedOf() uint64 {
	if *oneSeed != 0 {
		return *oneSeed
	}
	return rand.Uint64()
}

// row runs body with three servers that are healthy and a client at the first.
func row(t *testing.T, body func(w *world, a, b, c *machine, cl *client)) {
	t.Helper()
	inBubble(t, seedOf(), 3, func(w *world) {
		w.bootAll()
		cl := w.client(0, "db1")
		defer cl.leave(false)
		a, b, c := w.machines[0], w.machines[1], w.machines[2]
		w.awaitHealthy()
		cl.moveTo(a)
		for range 5 {
			cl.must(cl.place())
		}
		w.awaitHealthy()
		body(w, a, b, c, cl)
	})
}

// moveTo leaves the present server without a word and connects to m; what has no
// answer is sent again there.
func (c *client) moveTo(m *machine) {
	c.leave(true)
	c.w.await("connected to "+m.name, answerMax, func() bool { return c.attach(context.Background(), m) })
}

// begin sends one change and does not wait.
func (c *client) begin(lo, n int) *operation {
	o := &operation{client: c.i, lo: lo, n: n, done: make(chan struct{})}
	c.w.history.begin(o)
	if o.id%5 > 0 {
		o.val = o.id
	}
	c.mu.Lock()
	a := c.conn
	c.pending = append(c.pending, o)
	c.mu.Unlock()
	if a == nil {
		c.w.fatalf("client %d has no connection", c.i)
	}
	a.submit(o)
	return o
}

// wait gives the outcome of a change; false when none comes within limit.
func (o *operation) wait(limit time.Duration) (error, bool) {
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-o.done:
		return o.err, true
	case <-t.C:
	}
	select { // both may have been there
	case <-o.done:
		return o.err, true
	default:
		return nil, false
	}
}

// must sends a change that must be done.
func (c *client) must(lo, n int) { c.answered(c.begin(lo, n)) }

// answered waits for a change that must be done.
func (c *client) answered(o *operation) {
	err, ok := o.wait(answerMax)
	if !ok || err != nil {
		c.w.describe()
		c.w.fatalf("operation %d of client %d: answered %v, %v", o.id, c.i, ok, err)
	}
}

// refusal sends a change that must be refused, and gives the error.
func (c *client) refusal(lo, n int) error {
	err, ok := c.begin(lo, n).wait(answerMax)
	if !ok || err == nil {
		c.w.describe()
		c.w.fatalf("a change that must be refused: answered %v, %v", ok, err)
	}
	return err
}

// attached reports whether the client still has a connection.
func (c *client) attached() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conn != nil
}

// stays looks that something holds for a while.
func (w *world) stays(what string, d time.Duration, ok func() bool) {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if !ok() {
			w.describe()
			w.fatalf("for %v it must be so: %s", d, what)
		}
	}
}

// order gives a command that must succeed.
func (w *world) order(m *machine, what string, body, answer any) {
	w.tell("operator: %s at %s %+v", what, m.name, body)
	if err := m.command(what, body, answer); err != nil {
		w.describe()
		w.fatalf("%s at %s: %v", what, m.name, err)
	}
}

// takeOver promotes m in the place of a dead master.
func (w *world) takeOver(m *machine) {
	var rep blockrepl.PromoteReport
	w.order(m, "promote", blockrepl.PromoteRequest{OldMasterDead: true}, &rep)
	if !rep.Allowed {
		w.fatalf("promote --old-master-dead at %s is refused: %s", m.name, rep.Reason)
	}
}

// forget takes a server out of the in-sync set.
func (w *world) forget(at, lost *machine) {
	w.order(at, "forget", blockrepl.ForgetRequest{Server: lost.name}, nil)
}

// is reports whether a machine's status has this state.
func (m *machine) is(s blockrepl.VolumeState) bool {
	st, ok := m.status()
	return ok && st.State == s
}

// end awaits health, reads everything everywhere and compares the disks.
func (w *world) end() {
	w.awaitHealthy()
	for _, m := range w.machines {
		w.readAll(m)
	}
	w.equal()
}

// obeyed lets the operator do what status says until all are healthy.
func (w *world) obeyed() {
	o := newOperator(w)
	w.await("every server healthy", healthyMax, func() bool {
		if w.healthy(w.machines...) {
			return true
		}
		o.obey()
		return false
	})
	o.finish()
}
