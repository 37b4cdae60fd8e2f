package blockrepl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/pprof"
	"strings"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: the operator's commands, by HTTP. Does: asks the volume's loop.
// Goes to: JSON, in the shapes of status.go and command.go; an error is a
// CommandError. Who may reach the address is the program's business.

// AdminHandler serves status, commands, journal, metrics and recent events.
func (s *Server) AdminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) { answerJSON(w, s.Status(r.Context())) })
	mux.HandleFunc("GET /v1/events", func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, s.events.recent()) })
	mux.Handle("GET /metrics", s.metricsHandler())
	s.command(mux, "promote", handlePromote)
	s.command(mux, "forget", handleForget)
	s.command(mux, "resolve", handleResolve)
	s.command(mux, "resize", handleResize)
	s.command(mux, "set", handleSet)
	s.command(mux, "verify", handleVerify)
	s.command(mux, "init", handleInit)
	s.command(mux, "drop", handleDrop)
	s.query(mux, "journal", streamJournal)
	s.query(mux, "journal/info", journalInfo)
	s.query(mux, "journal/verify", journalVerify)
	if s.opt.Pprof {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	}
	return mux
}

// command serves POST /v1/volumes/{name}/what: do reads the body and gives the
// answer.
func (s *Server) command(mux *http.ServeMux, what string, do func(context.Context, *Volume, io.Reader) (any, error)) {
	mux.HandleFunc("POST /v1/volumes/{name}/"+what, func(w http.ResponseWriter, r *http.Request) {
		v := s.find(w, r)
		if v == nil {
			return
		}
		answer, err := do(r.Context(), v, http.MaxBytesReader(w, r.Body, bodyMax))
		if err != nil {
			v.logr.Warn("command refused", "command", what, "err", err)
			answerError(r.Context(), w, v, err)
			return
		}
		v.logr.Info("command done", "command", what)
		answerJSON(w, answer)
	})
}

// query serves GET /v1/volumes/{name}/what.
func (s *Server) query(mux *http.ServeMux, what string, do func(http.ResponseWriter, *http.Request, *Volume) error) {
	mux.HandleFunc("GET /v1/volumes/{name}/"+what, func(w http.ResponseWriter, r *http.Request) {
		v := s.find(w, r)
		if v == nil {
			return
		}
		if err := do(w, r, v); err != nil {
			answerError(r.Context(), w, v, err)
		}
	})
}

func (s *Server) find(w http.ResponseWriter, r *http.Request) *Volume {
	name := r.PathValue("name")
	v := s.Volume(name)
	if v == nil {
		var names []string
		for _, v := range s.volumes {
			names = append(names, v.name)
		}
		writeError(w, http.StatusNotFound, CommandError{
			Error: fmt.Sprintf("server %s has no volume %q", s.opt.ID, name), Next: "its volumes are: " + strings.Join(names, ", "), Code: "not-found"})
	}
	return v
}

// errBadRequest says that a command's body or query cannot be understood.
var errBadRequest = errors.New("bad request")

func readBody(body io.Reader, into any) error {
	d := json.NewDecoder(body)
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: %w", errBadRequest, err)
	}
	return nil
}

func handlePromote(ctx context.Context, v *Volume, body io.Reader) (any, error) {
	var q PromoteRequest
	if err := readBody(body, &q); err != nil {
		return nil, err
	}
	res, err := v.command(ctx, func(id uint64) replica.Event {
		return replica.Promote{ID: id, DryRun: q.DryRun, OldMasterDead: q.OldMasterDead, AcceptLoss: q.AcceptLoss}
	})
	if err != nil && (res.Report == nil || res.Report.Allowed) {
		return nil, err
	}
	return v.promoteReport(&res), nil // a refusal is told by the report, with all it found
}

func handleForget(ctx context.Context, v *Volume, body io.Reader) (any, error) {
	var q ForgetRequest
	if err := readBody(body, &q); err != nil {
		return nil, err
	}
	server, err := record.ParseServerID(q.Server)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errBadRequest, err)
	}
	res, err := v.command(ctx, func(id uint64) replica.Event {
		return replica.Forget{ID: id, Server: server, Force: q.Force}
	})
	if err != nil {
		return nil, err
	}
	out := ForgetReport{Volume: v.name, Warning: res.Note, InSync: []string{}}
	// It is done: the warning is told also when the loop is too slow for the rest.
	if view, err := v.viewSoon(ctx); err == nil {
		for _, m := range view.Config.InSync {
			out.InSync = append(out.InSync, m.ID.String())
		}
	}
	return out, nil
}

func handleResolve(ctx context.Context, v *Volume, body io.Reader) (any, error) {
	var q ResolveRequest
	if err := readBody(body, &q); err != nil {
		return nil, err
	}
	if q.Keep != v.s.opt.ID.String() {
		return nil, fmt.Errorf("%w: this is server %s; ask server %q itself to keep its side", errBadRequest, v.s.opt.ID, q.Keep)
	}
	res, err := v.command(ctx, func(id uint64) replica.Event { return replica.Resolve{ID: id} })
	if err != nil {
		return nil, err
	}
	return v.promoteReport(&res), nil
}

func handleSet(ctx context.Context, v *Volume, body io.Reader) (any, error) {
	var q SetRequest
	if err := readBody(body, &q); err != nil {
		return nil, err
	}
	var policy wire.OnDegraded
	switch q.OnDegraded {
	case "":
	case wire.Suspend.String():
		policy = wire.Suspend
	case wire.Continue.String():
		policy = wire.Continue
	default:
		return nil, fmt.Errorf("%w: on_degraded %q: want suspend or continue", errBadRequest, q.OnDegraded)
	}
	if q.KeepBytes < 0 {
		return nil, fmt.Errorf("%w: keep of %d bytes", errBadRequest, q.KeepBytes)
	}
	_, err := v.command(ctx, func(id uint64) replica.Event {
		return replica.SetOptions{ID: id, OnDegraded: policy, Keep: q.KeepBytes}
	})
	if err != nil {
		return nil, err
	}
	if view, err := v.viewSoon(ctx); err == nil {
		return SetReport{Volume: v.name, OnDegraded: view.Config.OnDegraded.String(), KeepBytes: view.Config.Keep}, nil
	}
	return SetReport{Volume: v.name, OnDegraded: q.OnDegraded, KeepBytes: q.KeepBytes}, nil // it is done
}

func handleDrop(_ context.Context, v *Volume, body io.Reader) (any, error) {
	var q DropRequest
	if err := readBody(body, &q); err != nil {
		return nil, err
	}
	log := v.log.Load()
	if log == nil {
		return nil, fmt.Errorf("volume %q has no journal yet: %w", v.name, errNotFound)
	}
	err := log.DropQuarantine(q.Quarantine)
	if errors.Is(err, journal.ErrNoQuarantine) {
		return nil, fmt.Errorf("%w: %w", errNotFound, err)
	}
	return DropReport{Volume: v.name, Quarantine: q.Quarantine}, err
}

func answerJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	// An error here means that the asker has gone.
	_ = enc.Encode(v)
}

func writeError(w http.ResponseWriter, status int, e CommandError) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(e) // as above
}

// answerError finds the code for an error, and the way out that the volume's
// state names.
func answerError(ctx context.Context, w http.ResponseWriter, v *Volume, err error) {
	e := CommandError{Error: err.Error(), Code: "refused"}
	status := http.StatusConflict
	switch {
	case errors.Is(err, errBadRequest):
		e.Code, status = "bad-request", http.StatusBadRequest
	case errors.Is(err, errNotFound):
		e.Code, status = "not-found", http.StatusNotFound
	case errors.Is(err, replica.ErrTimeout), errors.Is(err, context.DeadlineExceeded):
		e.Code, status = "timeout", http.StatusGatewayTimeout
	case errors.Is(err, ErrStopped), errors.Is(err, replica.ErrFailed):
		status = http.StatusServiceUnavailable
	}
	// What the volume needs is no way out of a request that was wrong.
	if e.Code != "bad-request" && e.Code != "not-found" {
		if view, err := v.viewSoon(ctx); err == nil {
			e.Next = view.Next
			if view.State == replica.SplitBrain && e.Code == "refused" {
				e.Code = "split-brain"
			}
		}
	}
	writeError(w, status, e)
}

// errNotFound says that a quarantine or record is not there.
var errNotFound = errors.New("not found")
