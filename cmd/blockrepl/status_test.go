package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/blockrepl/blockrepl/blockrepl"
)

func healthyStatus() *blockrepl.Status {
	return &blockrepl.Status{Cluster: "lab", Server: "a", Version: "1.2.3", Volumes: []blockrepl.VolumeStatus{{
		Name: "vol0", State: blockrepl.StateHealthy, Role: "master", SizeBytes: 1 << 30, Epoch: "3.a", Last: 1240, Committed: 1234, Applied: 1234,
		InSync: []string{"a", "b"}, Holder: "db1", Peers: []blockrepl.PeerStatus{{Server: "b", State: "live", InSync: true, SinceMilli: 12000}},
	}}}
}

func degradedStatus() *blockrepl.Status {
	s := healthyStatus()
	s.Volumes = append(s.Volumes, blockrepl.VolumeStatus{
		Name: "database", State: blockrepl.StateDegraded, Role: "master", SizeBytes: 1536 << 20, Epoch: "12.a", Last: 99, Committed: 99, Applied: 98,
		InSync: []string{"a"}, Reason: "server b does not answer", Next: "start server b",
		Resync:      &blockrepl.ResyncStatus{Source: "a", DoneBytes: 1 << 20, TotalBytes: 1 << 30, SentBytes: 4096, LeftSeconds: 90},
		Quarantines: []blockrepl.QuarantineStatus{{ID: "q1", First: 5, Last: 9, Epoch: "2.b"}},
		Peers: []blockrepl.PeerStatus{{Server: "b", State: "down", Reason: "no answer for 2s", Link: "dial server b at 10.0.0.2:10810: connection refused", SinceMilli: 125000,
			Durable: 4, LagRecords: 320, LagBytes: 1363149, LagSeconds: 12.4}},
	})
	return s
}

func TestStatusLinesAreAlignedAndSayTheWayOut(t *testing.T) {
	const want = `cluster lab, server a, blockrepl 1.2.3
vol0      healthy   master  1 GiB    epoch 3.a last 1240 committed 1234 applied 1234  in sync a b, held by db1
  b       live      in sync 12s      has everything
database  degraded  master  1.5 GiB  epoch 12.a last 99 committed 99 applied 98       in sync a
  b       down      -       2m5s     behind 320 records, 1.3 MiB, 12.4s               no answer for 2s
    dial server b at 10.0.0.2:10810: connection refused
  ! server b does not answer
  resync from a: 1 MiB of 1 GiB compared, 4 KiB differed and travelled, 1m30s left
  quarantine q1: records 5 to 9 of epoch 2.b are set aside
  next: start server b
`
	var plain, colour bytes.Buffer
	renderStatus(&plain, degradedStatus(), false)
	got := strings.ReplaceAll(plain.String(), "in sync  12s", "in sync 12s")
	if want := strings.ReplaceAll(want, "  ", " "); strings.ReplaceAll(got, "  ", " ") == "" || squeeze(got) != squeeze(want) {
		t.Errorf("got:\n%s\nwant (but for the widths):\n%s", plain.String(), want)
	}
	renderStatus(&colour, degradedStatus(), true)
	if stripped := stripColour(colour.String()); stripped != plain.String() {
		t.Errorf("with colours the text differs:\n%s\n%s", stripped, plain.String())
	}
	var column []int
	for _, line := range strings.Split(plain.String(), "\n") {
		for _, state := range []string{"healthy", "live", "degraded", "down"} {
			if i := strings.Index(line, " "+state+" "); i > 0 {
				column = append(column, i)
			}
		}
	}
	if len(column) != 4 || column[0] != column[1] || column[1] != column[2] || column[2] != column[3] {
		t.Errorf("states begin at columns %v, want four equal ones:\n%s", column, plain.String())
	}
}

func squeeze(s string) string { return strings.Join(strings.Fields(s), " ") }

func stripColour(s string) string {
	for {
		before, rest, ok := strings.Cut(s, "\x1b[")
		if !ok {
			return s
		}
		_, after, _ := strings.Cut(rest, "m")
		s = before + after
	}
}

// adminServer answers as a server's admin address does.
func adminServer(t *testing.T, answer http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(answer)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func answering(v any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { json.NewEncoder(w).Encode(v) }
}

func TestStatusExitTellsHealthy(t *testing.T) {
	split := healthyStatus()
	split.Volumes[0].State = blockrepl.StateSplitBrain
	for _, tt := range []struct {
		status *blockrepl.Status
		args   []string
		want   int
	}{
		{healthyStatus(), nil, exitOK},
		{degradedStatus(), nil, exitUnhealthy},
		{degradedStatus(), []string{"vol0"}, exitOK},
		{degradedStatus(), []string{"database"}, exitUnhealthy},
		{degradedStatus(), []string{"databse"}, exitError},
		{split, nil, exitSplitBrain},
	} {
		addr := adminServer(t, answering(tt.status))
		code, _, errs := runHere(t, append([]string{"status", "--admin", addr}, tt.args...)...)
		if code != tt.want {
			t.Errorf("status %v of %v: exit %d, want %d; %s", tt.args, tt.status.Volumes[0].State, code, tt.want, errs)
		}
		if tt.want == exitError && !strings.Contains(errs, `did you mean "database"`) {
			t.Errorf("unknown volume: %q", errs)
		}
	}
}

func TestStatusJSONIsWhatTheServerAnswers(t *testing.T) {
	want := degradedStatus()
	code, out, _ := runHere(t, "status", "--json", "--admin", adminServer(t, answering(want)))
	var got blockrepl.Status
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != exitUnhealthy {
		t.Fatalf("exit %d, %v", code, err)
	}
	if len(got.Volumes) != 2 || got.Volumes[1].Peers[0].LagRecords != 320 {
		t.Errorf("got %+v", got)
	}
}

func TestRefusalsBecomeExitCodes(t *testing.T) {
	for code, want := range map[string]int{"refused": exitRefused, "split-brain": exitSplitBrain, "bad-request": exitUsage, "not-found": exitError, "timeout": exitError} {
		addr := adminServer(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" {
				t.Errorf("got %s with content type %q", r.Method, r.Header.Get("Content-Type"))
			}
			w.WriteHeader(http.StatusConflict)
			answering(blockrepl.CommandError{Error: "no", Next: "do that", Code: code})(w, r)
		})
		got, _, errs := runHere(t, "forget", "vol0", "c", "--admin", addr)
		if got != want || errs != "blockrepl: no; do that\n" {
			t.Errorf("%s: exit %d, want %d; stderr %q", code, got, want, errs)
		}
	}
}

// Bug: at the metrics address a command ended with a bare 404 page.
func TestWhatIsNoAdminAddressIsNamed(t *testing.T) {
	addr := adminServer(t, newMetricsServer(http.NotFoundHandler()).Handler.ServeHTTP)
	code, _, errs := runHere(t, "promote", "vol0", "--admin", addr)
	if code != exitError || !strings.Contains(errs, "404") || !strings.Contains(errs, "`metrics`") {
		t.Errorf("exit %d, %q", code, errs)
	}
}

func TestPromoteReportNamesWhatCouldBeLost(t *testing.T) {
	report := blockrepl.PromoteReport{Volume: "vol0", Candidate: "b", Needs: "--old-master-dead", Reason: "a does not answer",
		MissingFirst: 7, MissingLast: 9, MissingSeconds: 1.5,
		Servers: []blockrepl.PromoteServer{{Server: "a"}, {Server: "b", Answers: true, Role: "slave", Last: 6, Epoch: "3.a", InSync: true}}}
	addr := adminServer(t, answering(report))
	code, out, errs := runHere(t, "promote", "vol0", "--dry-run", "--admin", addr)
	if code != exitRefused {
		t.Errorf("exit %d, want %d", code, exitRefused)
	}
	for _, want := range []string{"3 records, 7 to 9, of a master not heard for 1.5s", "SERVER", "slave"} {
		if !strings.Contains(out, want) {
			t.Errorf("stdout lacks %q:\n%s", want, out)
		}
	}
	if want := "blockrepl: promote vol0 on b: a does not answer; if that is so: blockrepl promote vol0 --old-master-dead --admin " + addr + "\n"; errs != want {
		t.Errorf("stderr %q, want %q", errs, want)
	}
}

// Bug: a promotion leaves out who does not answer, and did not say it. Bug: it was guessed
// from a second request, with --json and by resolve not said at all.
func TestPromotionsSayWhoIsLeftOut(t *testing.T) {
	report := blockrepl.PromoteReport{Volume: "vol0", Candidate: "b", Allowed: true, Epoch: "4.b", Servers: []blockrepl.PromoteServer{
		{Server: "a", InSync: true}, {Server: "b", Answers: true, InSync: true}, {Server: "c", Answers: true, InSync: true}},
		InSync: []string{"b"}, Warning: "a c must not be promoted"}
	addr := adminServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			t.Errorf("a second request: %s %s", r.Method, r.URL)
		}
		answering(report)(w, r)
	})
	const said = "in sync: b\nwarning: a c must not be promoted\n"
	for _, tt := range []struct{ args, want string }{
		{"promote vol0", "b is master of vol0, epoch 4.b\n" + said},
		{"resolve vol0 --keep b", "follow it\n" + said},
	} {
		code, out, errs := runHere(t, append(strings.Fields(tt.args), "--admin", addr)...)
		if code != exitOK || !strings.HasSuffix(out, tt.want) {
			t.Errorf("%s: exit %d, %s\nstdout ends not with %q:\n%s", tt.args, code, errs, tt.want, out)
		}
		_, out, _ = runHere(t, append(strings.Fields(tt.args), "--json", "--admin", addr)...)
		var got blockrepl.PromoteReport
		if err := json.Unmarshal([]byte(out), &got); err != nil || strings.Join(got.InSync, " ") != "b" || got.Warning != report.Warning {
			t.Errorf("%s --json: %v, %s", tt.args, err, out)
		}
	}
}

// Bug: who asked again, or a script that wants b to be master, was told of an error.
func TestPromoteOfTheMasterIsDone(t *testing.T) {
	done := blockrepl.PromoteReport{Volume: "vol0", Candidate: "b", Already: true, Allowed: true, Epoch: "4.b", InSync: []string{"b", "c"}, Warning: "a must not"}
	waits := blockrepl.PromoteReport{Volume: "vol0", Candidate: "b", Reason: "the volume is suspended"}
	split := blockrepl.PromoteReport{Volume: "vol0", Candidate: "b", Reason: "split brain with c", Split: true}
	for _, tt := range []struct {
		report    blockrepl.PromoteReport
		code      int
		out, errs string
	}{
		{done, exitOK, "b is master of vol0 already, epoch 4.b\nin sync: b c\nwarning: a must not\n", ""},
		{waits, exitRefused, "", "blockrepl: promote vol0 on b: the volume is suspended\n"},
		{split, exitSplitBrain, "", "blockrepl: promote vol0 on b: split brain with c\n"},
	} {
		addr := adminServer(t, answering(tt.report))
		for _, flag := range []string{"--timeout=30s", "--dry-run"} {
			code, out, errs := runHere(t, "promote", "vol0", flag, "--admin", addr)
			if code != tt.code || !strings.HasSuffix(out, tt.out) || strings.Contains(out, "is master") != (tt.out != "") || errs != tt.errs {
				t.Errorf("%s, %q: exit %d\n%s%s", flag, tt.report.Reason, code, out, errs)
			}
		}
		code, out, _ := runHere(t, "promote", "vol0", "--json", "--admin", addr)
		var got blockrepl.PromoteReport
		if err := json.Unmarshal([]byte(out), &got); err != nil || code != tt.code || got.Already != tt.report.Already || got.Epoch != tt.report.Epoch {
			t.Errorf("--json: exit %d, %v\n%s", code, err, out)
		}
	}
}

// Bug: Ctrl-C ended a command without a word, and the server carried it out later.
func TestAnInterruptedCommandSaysThatItMayGoOn(t *testing.T) {
	addr := adminServer(t, func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) // else the server does not look whether the asker has gone
		syscall.Kill(os.Getpid(), syscall.SIGINT)
		<-r.Context().Done()
	})
	code, _, errs := runHere(t, "resize", "vol0", "2GiB", "--admin", addr)
	if want := "blockrepl: interrupted; " + mayStill + "\n"; code != exitError || errs != want {
		t.Errorf("exit %d, stderr %q, want %q", code, errs, want)
	}
}

// A server that is down, with another disk even, and one whose image was being copied
// were said to have everything.
func TestLagIsOfWhatAPeerHasNow(t *testing.T) {
	v := &blockrepl.VolumeStatus{Role: "master"}
	for state, want := range map[string]string{"live": "has everything", "catch-up": "has everything", "down": "had everything", "probe": "had everything", "resync": "gets the image"} {
		if got := lagText(v, &blockrepl.PeerStatus{State: state, Durable: 7}); got != want {
			t.Errorf("a peer in state %s without a lag: %q, want %q", state, got, want)
		}
	}
	if got := lagText(v, &blockrepl.PeerStatus{State: "resync", Durable: 7, LagRecords: 2}); got != "gets the image" {
		t.Errorf("a peer in resync behind by 2: %q", got)
	}
}

func TestLagOfAPeerThatANewMasterNeverHeardIsABound(t *testing.T) {
	v := &blockrepl.VolumeStatus{Role: "master"}
	if got := lagText(v, &blockrepl.PeerStatus{Server: "a", State: "down", LagRecords: 261, LagBytes: 504, LagSeconds: 3}); got != "behind at most 261 records" {
		t.Errorf("got %q", got)
	}
}

func TestCompletionNamesTheVolumesOfTheServer(t *testing.T) {
	addr := adminServer(t, answering(degradedStatus()))
	for typed, want := range map[string]string{"promote": "vol0\ndatabase\n", "forget vol0": "", "version": "", "promote --dr": "--dry-run\n"} {
		args := append(strings.Fields(typed), "--generate-bash-completion")
		cmd := exec.CommandContext(t.Context(), "blockrepl", args...)
		cmd.Env = append(os.Environ(), "BLOCKREPL_ADMIN="+addr)
		if out, err := cmd.Output(); err != nil || string(out) != want {
			t.Errorf("%s: %q, %v, want %q", typed, out, err, want)
		}
	}
}

func TestAdminAddressComesFromTheConfigurationWhenNotGiven(t *testing.T) {
	addr := adminServer(t, answering(healthyStatus()))
	path := filepath.Join(t.TempDir(), "a.toml")
	if err := os.WriteFile(path, []byte("admin = \""+addr+"\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("BLOCKREPL_ADMIN", "")
	if code, out, errs := runHere(t, "status", "--config", path); code != 0 || !strings.Contains(out, "cluster lab") {
		t.Errorf("exit %d, %q, %q", code, out, errs)
	}
	// Bug: what could not be read was passed over, and another server was asked.
	for _, text := range []string{"admin = \"" + addr, ""} {
		broken := filepath.Join(t.TempDir(), "b.toml")
		if text != "" {
			if err := os.WriteFile(broken, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if code, _, errs := runHere(t, "status", "--config", broken); code != exitUsage || !strings.Contains(errs, "with --admin") {
			t.Errorf("file with %q: exit %d, %q", text, code, errs)
		}
	}
	if err := os.WriteFile(path, []byte("admin = \""+addr+"\"\nno_such_key = 1\nsize = \"x\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := runHere(t, "status", "--config", path); code != 0 {
		t.Errorf("a file with another mistake: exit %d, %q", code, errs)
	}
	t.Setenv("BLOCKREPL_ADMIN", "127.0.0.1:1")
	if code, _, _ := runHere(t, "status", "--config", path); code != exitUnreachable {
		t.Errorf("BLOCKREPL_ADMIN does not win over the file: exit %d", code)
	}
}
