package blockrepl

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/blockrepl/blockrepl/journal/record"
)

// ask sends a request to a server's admin handler and decodes the answer.
func ask[T any](t *testing.T, s *Server, method, path, body string) (T, int) {
	t.Helper()
	rec := httptest.NewRecorder()
	s.AdminHandler().ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body)))
	var out T
	if err := json.Unmarshal(rec.Body.Bytes(), &out); err != nil {
		t.Fatalf("%s %s answered %d %q: %v", method, path, rec.Code, rec.Body, err)
	}
	return out, rec.Code
}

func TestStatusSaysWhereEverybodyIs(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.start(0, 1, 2)
	cl := c.connect(0, "db1")
	for n := range 10 {
		cl.write(int64(n*4096), bytes.Repeat([]byte("x"), 4096))
	}
	c.awaitHealthy(0, 1, 2)
	st, code := ask[Status](t, c.servers[0], "GET", "/v1/status", "")
	if code != http.StatusOK || st.Cluster != "lab" || st.Server != "a" || len(st.Volumes) != 1 {
		t.Fatalf("status %d: %+v", code, st)
	}
	v := st.Volumes[0]
	if v.Role != "master" || v.Epoch != "1.a" || v.Last < 11 || v.Committed != v.Last || v.Holder != "db1" || v.Master != "a" ||
		strings.Join(v.InSync, "") != "abc" || v.SizeBytes != testSize || v.JournalBytes == 0 || v.OnDegraded != "suspend" {
		t.Errorf("volume: %+v", v)
	}
	if len(v.Clients) != 1 || v.Clients[0].Identity != "db1" || v.Clients[0].Writes != 10 {
		t.Errorf("clients: %+v", v.Clients)
	}
	if len(v.Peers) != 2 || v.Peers[0].Server != "b" || v.Peers[0].State != "live" || !v.Peers[0].InSync {
		t.Errorf("peers: %+v", v.Peers)
	}
}

func TestStatusSaysHowFarAVerifyIs(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.start(0)
	v := c.servers[0].Volume("vol0")
	w := v.begin("verify", 1000)
	w.done.Store(400)
	other := v.begin("init", 2000)
	st, _ := ask[Status](t, c.servers[0], "GET", "/v1/status", "")
	if got := st.Volumes[0].Work; got == nil || got.What != "init" || got.DoneBytes != 0 || got.TotalBytes != 2000 || got.LeftSeconds != 0 {
		t.Errorf("work: %+v", got)
	}
	v.end(w) // not the one that is shown
	other.done.Store(3000)
	st, _ = ask[Status](t, c.servers[0], "GET", "/v1/status", "")
	if got := st.Volumes[0].Work; got == nil || got.DoneBytes != 2000 {
		t.Errorf("work: %+v", got)
	}
	v.end(other)
	if st, _ = ask[Status](t, c.servers[0], "GET", "/v1/status", ""); st.Volumes[0].Work != nil {
		t.Errorf("work that has ended: %+v", st.Volumes[0].Work)
	}
}

// A device that grew was zeroed for minutes, in which nothing was applied, and nothing
// said so.
func TestStatusSaysHowFarAGrownDeviceIsZeroed(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.start(0)
	progress, end := c.servers[0].Volume("vol0").growing()
	shown := func() *WorkStatus {
		st, _ := ask[Status](t, c.servers[0], "GET", "/v1/status", "")
		return st.Volumes[0].Work
	}
	if got := shown(); got != nil {
		t.Errorf("before there is anything to zero: %+v", got)
	}
	for _, done := range []int64{0, 400} {
		progress(done, 1000)
		if got := shown(); got == nil || got.What != "resize" || got.DoneBytes != done || got.TotalBytes != 1000 {
			t.Errorf("work: %+v, want resize: %d of 1000", got, done)
		}
	}
	end()
	if got := shown(); got != nil {
		t.Errorf("work that has ended: %+v", got)
	}
}

func TestJournalEndpointListsRecords(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.start(0)
	cl := c.connect(0, "client")
	p := bytes.Repeat([]byte("abc"), 1000)
	cl.write(512, p)
	cl.write(0, make([]byte, 4096))
	rec := httptest.NewRecorder()
	c.servers[0].AdminHandler().ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), "GET", "/v1/volumes/vol0/journal?data=1", nil))
	var kinds []string
	for lines := bufio.NewScanner(rec.Body); lines.Scan(); {
		var j JournalRecord
		if err := json.Unmarshal(lines.Bytes(), &j); err != nil {
			t.Fatalf("%q: %v", lines.Text(), err)
		}
		kinds = append(kinds, j.Kind)
		if int(j.Seq) != len(kinds) {
			t.Errorf("line %d is record %d", len(kinds), j.Seq)
		}
		if j.Kind == "write" && (!bytes.Equal(j.Data, p) || j.Offset != 512 || j.Length != 3000 || j.Codec != "s2" || j.StoredBytes >= 3000) {
			t.Errorf("write: %+v", j)
		}
	}
	if got := strings.Join(kinds, " "); got != "epoch mark write zero" {
		t.Errorf("kinds: %s", got)
	}
	info, _ := ask[JournalInfo](t, c.servers[0], "GET", "/v1/volumes/vol0/journal/info", "")
	if info.First != 1 || info.Last != 4 {
		t.Errorf("info: %+v", info)
	}
	rep, _ := ask[JournalVerify](t, c.servers[0], "GET", "/v1/volumes/vol0/journal/verify", "")
	if rep.Records != 4 || rep.Damaged != 0 {
		t.Errorf("verify: %+v", rep)
	}
	rec = httptest.NewRecorder()
	c.servers[0].AdminHandler().ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), "GET", "/v1/volumes/vol0/journal?raw=1&from=3&to=4", nil))
	var seqs []record.Seq
	for rest := rec.Body.Bytes(); len(rest) > 0; {
		var r *record.Record
		var err error
		if r, rest, err = record.DecodeNext(rest); err != nil {
			t.Fatal(err)
		}
		seqs = append(seqs, r.Seq)
	}
	if !slices.Equal(seqs, []record.Seq{3, 4}) {
		t.Errorf("raw records: %v", seqs)
	}
	for path, want := range map[string]int{
		"/v1/volumes/none/journal":               http.StatusNotFound,
		"/v1/volumes/vol0/journal?from=99":       http.StatusOK,
		"/v1/volumes/vol0/journal?from=x":        http.StatusBadRequest,
		"/v1/volumes/vol0/journal?quarantine=q1": http.StatusNotFound,
	} {
		rec := httptest.NewRecorder()
		c.servers[0].AdminHandler().ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), "GET", path, nil))
		if rec.Code != want {
			t.Errorf("GET %s: got %d %s, want %d", path, rec.Code, rec.Body, want)
		}
	}
}

func TestCommandsAreAnsweredOrRefusedWithTheWayOut(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.start(0, 1, 2)
	c.connect(0, "client").write(0, []byte("x"))
	c.awaitHealthy(0, 1, 2)
	dry, code := ask[PromoteReport](t, c.servers[1], "POST", "/v1/volumes/vol0/promote", `{"dry_run":true}`)
	if code != http.StatusOK || !dry.Allowed || !dry.Graceful || dry.Candidate != "b" || len(dry.Servers) != 3 {
		t.Errorf("dry run %d: %+v", code, dry)
	}
	for _, q := range []struct{ server, path, body, code string }{
		{"0", "promote", `{"no_such_key":1}`, "bad-request"},
		{"1", "forget", `{"server":"c"}`, "refused"},
		{"0", "forget", `{"server":"NO ID"}`, "bad-request"},
		{"0", "forget", `{"server":"a"}`, "refused"},
		{"0", "resolve", `{"keep":"b"}`, "bad-request"},
		{"0", "resolve", `{"keep":"a"}`, "refused"},
		{"0", "resize", `{"size_bytes":1000}`, "bad-request"},
		{"0", "resize", `{"size_bytes":512}`, "refused"},
		{"1", "set", `{"on_degraded":"continue"}`, "refused"},
		{"0", "set", `{"on_degraded":"perhaps"}`, "bad-request"},
		{"0", "set", `{"keep_bytes":-1}`, "bad-request"},
		{"0", "verify", `{}`, "refused"},
	} {
		e, status := ask[CommandError](t, c.servers[q.server[0]-'0'], "POST", "/v1/volumes/vol0/"+q.path, q.body)
		if e.Code != q.code || e.Error == "" || status < 400 {
			t.Errorf("%s %s at %s: got %d %+v, want code %s", q.path, q.body, q.server, status, e, q.code)
		}
	}
	c.kill(0)
	rep, _ := ask[PromoteReport](t, c.servers[1], "POST", "/v1/volumes/vol0/promote", `{"dry_run":true}`)
	if rep.Graceful || len(rep.Servers) != 3 || rep.InSync == nil || rep.Warning != "" {
		t.Errorf("dry run without the master: %+v", rep)
	}
	done, code := ask[PromoteReport](t, c.servers[1], "POST", "/v1/volumes/vol0/promote", `{"old_master_dead":true}`)
	if code != http.StatusOK || !done.Allowed || done.Epoch == "" || strings.Join(done.InSync, "") != "bc" ||
		!strings.HasPrefix(done.Warning, "a must not be promoted") {
		t.Errorf("promote %d: %+v", code, done)
	}
}

// Bug: a script that promotes who is the master already was refused.
func TestPromoteOfTheMasterIsAnsweredByTheReport(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.start(0, 1, 2)
	c.connect(0, "client").write(0, []byte("x"))
	c.awaitHealthy(0, 1, 2)
	promote := func(body string) PromoteReport {
		t.Helper()
		rep, code := ask[PromoteReport](t, c.servers[0], "POST", "/v1/volumes/vol0/promote", body)
		if code != http.StatusOK || rep.Candidate != "a" || len(rep.Servers) != 3 {
			t.Errorf("promote %s: %d %+v", body, code, rep)
		}
		return rep
	}
	for _, body := range []string{`{}`, `{"dry_run":true}`} {
		if rep := promote(body); !rep.Already || !rep.Allowed || rep.Epoch != "1.a" || strings.Join(rep.InSync, "") != "abc" || rep.Warning != "" {
			t.Errorf("promote %s: %+v", body, rep)
		}
	}
	c.vol(0).full.Store(true)
	if rep := promote(`{}`); rep.Already || rep.Allowed || !strings.Contains(rep.Reason, "the journal's disk is full") {
		t.Errorf("promote with a full disk: %+v", rep)
	}
	c.vol(0).full.Store(false)
	c.kill(2)
	c.await(0, "suspended", func(s VolumeStatus) bool { return s.State == StateSuspended })
	if rep := promote(`{}`); rep.Already || rep.Allowed || !strings.Contains(rep.Reason, "writes wait for c") || !strings.Contains(rep.Reason, "blockrepl forget vol0 c") {
		t.Errorf("promote while writes wait: %+v", rep)
	}
}

func TestMetricsAndEvents(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.start(0)
	c.connect(0, "client").write(0, []byte("x"))
	rec := httptest.NewRecorder()
	c.servers[0].AdminHandler().ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
	for _, want := range []string{
		`blockrepl_volume_state{state="healthy",volume="vol0"} 1`,
		`blockrepl_volume_master{volume="vol0"} 1`,
		`blockrepl_volume_number{volume="vol0",what="last"} 3`,
	} {
		if !strings.Contains(rec.Body.String(), want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	events, _ := ask[[]StateChange](t, c.servers[0], "GET", "/v1/events", "")
	if len(events) == 0 || events[0].Volume != "vol0" || events[0].Text == "" {
		t.Errorf("events: %+v", events)
	}
}

// A volume whose loop hangs, as on a disk that does not answer, kept commands without
// any answer: even the timeout of one waited for the state to name the way out.
func TestCommandsOfAHungVolumeAreAnswered(t *testing.T) {
	for path, body := range map[string]string{
		"promote": `{}`, "forget": `{"server":"b"}`, "resolve": `{"keep":"a"}`, "resize": `{"size_bytes":512}`, "set": `{}`,
		"verify": `{}`, "init": `{"content":"keep"}`, "journal": ``, "drop": `{}`,
	} {
		t.Run(path, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &Server{opt: Options{ID: mustID("a")}, byName: map[string]*Volume{}}
				v := &Volume{s: s, name: "vol0", logr: slog.New(slog.DiscardHandler), in: newInbox(), loopDone: make(chan struct{})}
				v.size.Store(512)
				v.results.init()
				s.byName["vol0"] = v
				ctx, cancel := context.WithTimeout(t.Context(), 2*commandTimeout)
				defer cancel()
				method := "POST"
				if path == "journal" {
					method = "GET"
				}
				rec := httptest.NewRecorder()
				s.AdminHandler().ServeHTTP(rec, httptest.NewRequestWithContext(ctx, method, "/v1/volumes/vol0/"+path, strings.NewReader(body)))
				var e CommandError
				if err := json.Unmarshal(rec.Body.Bytes(), &e); err != nil || rec.Code < 400 || e.Error == "" {
					t.Errorf("answered %d %q, %v", rec.Code, rec.Body, err)
				}
				if ctx.Err() != nil {
					t.Error("answered when the asker had gone")
				}
			})
		})
	}
}
