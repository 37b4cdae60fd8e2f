package blockrepl

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// A read that found readsMax others waiting for a master had no io timeout: its client
// did not look for another server.
func TestReadBehindTooManyOthersSendsItsClientAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := Options{}
		o.fill()
		v := &Volume{s: &Server{opt: o}, in: newInbox()}
		v.clients.init(v)
		v.size.Store(512)
		if !v.clients.gate.TryAcquire(readsMax) {
			t.Fatal("the gate is not free")
		}
		var why error
		c := &Conn{v: v, gone: make(chan struct{}), info: ClientInfo{Abort: func(err error) { why = err }}}
		v.clients.add(c)
		ctx, cancel := context.WithTimeout(t.Context(), 10*o.IOTimeout)
		defer cancel()
		began := time.Now()
		err := c.ReadAt(ctx, make([]byte, 512), 0)
		if took := time.Since(began); !errors.Is(err, ErrAborted) || why == nil || took != o.IOTimeout {
			t.Errorf("after %v: %v; the connection was closed for: %v", took, err, why)
		}
	})
}
