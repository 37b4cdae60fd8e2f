package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
)

// profileJob takes CPU profiles of the servers of a cluster while f runs, one file a job and server in -profile DIR:
//
//	go tool pprof -top FILE
//
// Profiling costs a few percent, so the figures of such a run are not for comparing.
func (b *bench) profileJob(ctx context.Context, j job, p *peer, f func() error) error {
	if b.o.profile == "" || p.cluster == nil {
		return f()
	}
	if err := os.MkdirAll(b.o.profile, 0o755); err != nil {
		return fmt.Errorf("make profile directory: %w", err)
	}
	var wg sync.WaitGroup
	errs := make([]error, len(p.cluster.servers))
	for i, s := range p.cluster.servers {
		wg.Go(func() { // ends with the answer, which comes after the seconds asked for
			var text []byte
			seconds := max(1, int(b.o.seconds))
			if errs[i] = s.ask(ctx, http.MethodGet, fmt.Sprintf("/debug/pprof/profile?seconds=%d", seconds), nil, &text); errs[i] != nil {
				return
			}
			name := fmt.Sprintf("%s-%s-%s.pprof", j.name, p.name, s.id)
			errs[i] = os.WriteFile(filepath.Join(b.o.profile, name), text, 0o644)
		})
	}
	err := f()
	wg.Wait()
	return firstError(append([]error{err}, errs...)...)
}
