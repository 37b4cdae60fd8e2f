package bubble

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl"
)

// made is how many connections there were between two machines.
func (n *network) made(a, b string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.pairs[[2]string{a, b}] + n.pairs[[2]string{b, a}]
}

// linesOf counts all lines of a machine's log, of level Info and above.
func (w *world) linesOf(m *machine) int { return w.logged(m.name, "") }

// A link that is reset as soon as it is up, 1,000 times: it is tried again with
// back-off, writes go on, and the operator reads of it now and then. It was some
// 1,500 lines a minute.
func TestLinkThatBreaksAThousandTimesIsAFewLogLines(t *testing.T) {
	row(t, func(w *world, a, b, c *machine, cl *client) {
		const times = 1000
		before := map[*machine]int{}
		for _, m := range w.machines {
			before[m] = w.linesOf(m)
		}
		began := time.Now()
		for i := range times {
			made := w.net.made("a", "c")
			w.net.reset("a", "c")
			w.await("a new link", answerMax, func() bool { return w.net.made("a", "c") > made })
			if i%50 == 0 {
				cl.must(cl.place())
			}
			time.Sleep(20 * time.Millisecond) // it is up
		}
		took := time.Since(began)
		if took < times*200*time.Millisecond {
			w.errorf("%d links in %v: no back-off", times, took)
		}
		minutes := int(took/time.Minute) + 1
		for _, m := range w.machines {
			// The first ones are told, then what lasts.
			if n := w.linesOf(m) - before[m]; n > 40+5*minutes {
				w.errorf("%s wrote %d lines in %d minutes", m.name, n, minutes)
			}
		}
		for m, peer := range map[*machine]string{a: "c", c: "a"} {
			st, ok := m.status()
			if !ok {
				w.fatalf("%s does not answer", m.name)
			}
			for _, p := range st.Peers {
				if p.Server == peer && (p.LinkFlaps < times || !strings.Contains(p.Link, "breaks again and again") || !strings.Contains(p.Link, "reset")) {
					w.errorf("%s says of %s: %d flaps, %q", m.name, peer, p.LinkFlaps, p.Link)
				}
			}
			if n := w.logged(m.name, "link breaks again and again"); n < minutes-1 || n > minutes+1 {
				w.errorf("%s warned %d times in %d minutes", m.name, n, minutes)
			}
			if n := len(m.events(t)); n > 100 {
				w.errorf("%d events of %s", n, m.name)
			}
		}
		time.Sleep(2 * time.Minute)
		for _, m := range []*machine{a, c} {
			if n := w.logged(m.name, "link holds again"); n != 1 {
				w.errorf("%s says %d times that the link holds again, want once", m.name, n)
			}
		}
		last := ""
		for _, e := range a.events(t) {
			if e.Args["peer"] == "c" {
				last = e.Text
			}
		}
		if last != "peer is live" {
			w.errorf("the last event of a about c is %q, want that it is live", last)
		}
		w.end()
	})
}

// events are the recent ones that a machine shows.
func (m *machine) events(t *testing.T) (list []blockrepl.StateChange) {
	rec := httptest.NewRecorder()
	p := m.process()
	if !p.use(func(ctx context.Context) {
		p.srv.AdminHandler().ServeHTTP(rec, httptest.NewRequestWithContext(ctx, http.MethodGet, "/v1/events", nil))
	}) {
		t.Fatalf("%s is off", m.name)
	}
	if err := json.Unmarshal(rec.Body.Bytes(), &list); err != nil {
		t.Fatal(err)
	}
	return list
}
