package main

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl"
)

// Bounds of the admin and metrics addresses.
const (
	adminBodyMax     = 1 << 20 // bytes; the longest command has some hundred
	adminHeaderMax   = 64 << 10
	adminHeaderWait  = 10 * time.Second
	adminIdleWait    = 2 * time.Minute
	adminStopWait    = time.Second
	metricsConnsMax  = 64 // connections to the metrics address; at one more the oldest is closed
	commandMediaType = "application/json"
)

// newAdminServer serves commands. A browser on this host must not be made to send
// them: by a page that posts to 127.0.0.1, or by a name that is resolved to it.
func newAdminServer(h http.Handler) *http.Server {
	return newHTTPServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case !directHost(r.Host):
			refuse(w, http.StatusForbidden, "host "+r.Host+": ask by address", "use --admin with an IP address or a unix socket")
		case r.Method != http.MethodGet && r.Header.Get("Origin") != "":
			refuse(w, http.StatusForbidden, "commands from web pages are not accepted", "use the blockrepl command")
		case r.Method == http.MethodPost && !strings.HasPrefix(r.Header.Get("Content-Type"), commandMediaType):
			refuse(w, http.StatusUnsupportedMediaType, "want Content-Type: "+commandMediaType, "")
		case r.URL.Path == "/healthz":
			healthz(w)
		default:
			r.Body = http.MaxBytesReader(w, r.Body, adminBodyMax)
			h.ServeHTTP(w, r)
		}
	}))
}

// newMetricsServer serves what monitoring reads, and nothing that changes.
func newMetricsServer(h http.Handler) *http.Server {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", h)
	mux.Handle("GET /v1/status", h)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { healthz(w) })
	return newHTTPServer(mux)
}

// metricsDoor bounds the connections to the metrics address, which is often open to a
// network. That of the admin is for this host and its owner.
func metricsDoor(ln net.Listener) net.Listener { return &crowd{Listener: ln, max: metricsConnsMax} }

func newHTTPServer(h http.Handler) *http.Server {
	return &http.Server{Handler: h, ReadHeaderTimeout: adminHeaderWait, IdleTimeout: adminIdleWait, MaxHeaderBytes: adminHeaderMax}
}

// healthz says that the process serves; how the volumes are is in the status.
func healthz(w io.Writer) {
	_, _ = io.WriteString(w, "ok\n") // an error means that the asker has gone
}

// directHost reports whether a request names its host by address, or by a name
// that no foreign DNS server can give out.
func directHost(host string) bool {
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = host
	}
	return name == "localhost" || name == "blockrepl" || name == "" || net.ParseIP(strings.Trim(name, "[]")) != nil
}

func refuse(w http.ResponseWriter, status int, text, next string) {
	w.Header().Set("Content-Type", commandMediaType)
	w.WriteHeader(status)
	// As above: nobody is left to tell.
	_ = json.NewEncoder(w).Encode(blockrepl.CommandError{Error: text, Next: next, Code: "refused"})
}
