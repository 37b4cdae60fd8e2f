package blockrepl

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// second calls f where its user asks it for a deadline the second time: between the
// outcome of a command and the question for the state that is told with it.
type second struct {
	context.Context
	n atomic.Int64
	f func()
}

func (s *second) Deadline() (time.Time, bool) {
	if s.n.Add(1) == 2 {
		s.f()
	}
	return s.Context.Deadline()
}

// forget had been carried out, and the loop then took longer than the status may: the
// answer was an error, and the operator never read which server must not be promoted
// now, which is told on the spot only.
func TestForgetTellsItsWarningBesideASlowLoop(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.start(0, 1)
	c.connect(0, "client").write(0, []byte("1"))
	c.awaitHealthy(0, 1)
	c.kill(1)
	v := c.vol(0)
	goOn := make(chan struct{})
	ctx := &second{Context: t.Context(), f: func() {
		hung := make(chan struct{})
		v.in.call(func() { close(hung); <-goOn })
		<-hung
	}}
	got, err := handleForget(ctx, v, strings.NewReader(`{"server":"b","force":true}`))
	close(goOn)
	st := c.status(0)
	if err != nil || got.(ForgetReport).Warning == "" {
		t.Errorf("in sync are %v, so it was done; told was %+v, %v", st.InSync, got, err)
	}
}

// The same of set: what was asked for is in force.
func TestSetTellsWhatIsInForceBesideASlowLoop(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.start(0)
	c.awaitHealthy(0)
	v := c.vol(0)
	goOn := make(chan struct{})
	ctx := &second{Context: t.Context(), f: func() {
		hung := make(chan struct{})
		v.in.call(func() { close(hung); <-goOn })
		<-hung
	}}
	got, err := handleSet(ctx, v, strings.NewReader(`{"on_degraded":"continue"}`))
	close(goOn)
	if err != nil || got.(SetReport).OnDegraded != "continue" {
		t.Errorf("told was %+v, %v; status says %s", got, err, c.status(0).OnDegraded)
	}
}
