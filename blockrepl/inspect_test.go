package blockrepl

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
)

// stuck is an asker who reads the first line and then no more, until it is let go.
type stuck struct {
	*httptest.ResponseRecorder
	once    sync.Once
	reached chan struct{}
	goOn    chan struct{}
}

func (s *stuck) Write(p []byte) (int, error) {
	s.once.Do(func() { close(s.reached); <-s.goOn })
	return s.ResponseRecorder.Write(p)
}

// The program stops the server before its admin address. A journal show that was under
// way then held an iterator of the database that was closed, which panics.
func TestStopBesideAnAskerWhoReadsTheJournal(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.start(0)
	w := c.connect(0, "db1")
	r := seeded(t)
	for i := range int64(64) {
		w.write(i*65536, noise(r, 65536))
	}
	asker := &stuck{ResponseRecorder: httptest.NewRecorder(), reached: make(chan struct{}), goOn: make(chan struct{})}
	ended := make(chan any, 1)
	h := c.servers[0].AdminHandler()
	go func() {
		defer func() { ended <- recover() }()
		h.ServeHTTP(asker, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v1/volumes/vol0/journal?data=1", nil))
	}()
	<-asker.reached
	s := c.servers[0]
	c.servers[0] = nil
	func() {
		defer func() {
			if p := recover(); p != nil {
				t.Errorf("Stop beside a journal show panics: %v", p)
			}
		}()
		if err := s.Stop(context.Background(), false); err != nil {
			t.Errorf("Stop beside a journal show: %.300v", err)
		}
	}()
	close(asker.goOn)
	if p := <-ended; p != nil {
		t.Errorf("the asker's handler panicked: %.300v", p)
	}
	if n := bytes.Count(asker.Body.Bytes(), []byte("\n")); n < 64 {
		t.Logf("the asker got %d lines, status %d", n, asker.Code)
	}
}
