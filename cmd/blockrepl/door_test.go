package main

import (
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestAdminDoorRefusesWhatBrowsersSend(t *testing.T) {
	reached := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	door := newAdminServer(reached).Handler
	tests := []struct {
		name, method, host, path string
		header                   [2]string
		want                     int
	}{
		{"status by address", "GET", "127.0.0.1:10811", "/v1/status", [2]string{}, 204},
		{"status by IPv6", "GET", "[::1]:10811", "/v1/status", [2]string{}, 204},
		{"status by localhost", "GET", "localhost:10811", "/v1/status", [2]string{}, 204},
		{"command", "POST", "blockrepl", "/v1/volumes/v/promote", [2]string{"Content-Type", "application/json"}, 204},
		{"health", "GET", "127.0.0.1", "/healthz", [2]string{}, 200},
		{"a name that a foreign server resolves", "GET", "rebind.example:10811", "/v1/status", [2]string{}, 403},
		{"a page's form", "POST", "127.0.0.1:10811", "/v1/volumes/v/promote", [2]string{"Content-Type", "text/plain"}, 415},
		{"a page's script", "POST", "127.0.0.1:10811", "/v1/volumes/v/promote", [2]string{"Origin", "https://evil.example"}, 403},
	}
	for _, tt := range tests {
		r := httptest.NewRequest(tt.method, tt.path, nil)
		r.Host = tt.host
		if tt.header[0] != "" {
			r.Header.Set(tt.header[0], tt.header[1])
		}
		w := httptest.NewRecorder()
		door.ServeHTTP(w, r)
		if w.Code != tt.want {
			t.Errorf("%s: status %d, want %d", tt.name, w.Code, tt.want)
		}
	}
}

func TestMetricsDoorChangesNothing(t *testing.T) {
	var seen []string
	door := newMetricsServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		seen = append(seen, r.Method+" "+r.URL.Path)
	})).Handler
	for _, request := range []string{"GET /metrics", "GET /v1/status", "GET /healthz", "POST /v1/status", "POST /v1/volumes/v/promote",
		"GET /v1/volumes/v/journal", "GET /debug/pprof/", "DELETE /metrics"} {
		method, path, _ := strings.Cut(request, " ")
		door.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(method, path, nil))
	}
	if got := strings.Join(seen, ", "); got != "GET /metrics, GET /v1/status" {
		t.Errorf("reached the server: %s", got)
	}
}

// Connections to the metrics address were not bounded: they could take the file descriptors that the journal needs.
func TestMetricsDoorClosesTheOldestConnectionOfTooMany(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	door := metricsDoor(ln)
	var inside []net.Conn
	come := func() {
		client, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		conn, err := door.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { client.Close(); conn.Close() })
		inside = append(inside, conn)
	}
	open := func(conn net.Conn) bool { return conn.SetDeadline(time.Time{}) == nil }
	for range metricsConnsMax {
		come()
	}
	if err := inside[1].Close(); err != nil {
		t.Error(err)
	}
	come()
	if !open(inside[0]) {
		t.Error("a connection was closed although there was room")
	}
	come()
	if open(inside[0]) || !open(inside[2]) || !open(inside[len(inside)-1]) {
		t.Error("not the oldest connection made room, or none")
	}
}

func TestPermissionsGoByTheCertificatesName(t *testing.T) {
	p := newPermissions([]PermissionConfig{
		{Name: "db1", Volumes: []string{"vol0"}, Access: accessReadWrite},
		{Name: "backup", Access: accessReadOnly},
	})
	for _, tt := range []struct {
		p            permissions
		name, volume string
		writes, ok   bool
	}{
		{p, "db1", "vol0", true, true},
		{p, "db1", "vol1", true, false},
		{p, "backup", "vol1", false, true},
		{p, "other", "vol0", false, false},
		{p, "", "vol0", false, false},
		{nil, "", "vol0", true, true},
	} {
		writes, ok := tt.p.access(tt.name, tt.volume)
		if ok != tt.ok || ok && writes != tt.writes {
			t.Errorf("access of %q to %q = %v, %v, want %v, %v", tt.name, tt.volume, writes, ok, tt.writes, tt.ok)
		}
	}
}

func TestAddressInUseIsSaidPlainly(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, err = listen(t.Context(), "nbd", Addr(ln.Addr().String()), nil)
	if err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("got %v", err)
	}
}
